"""Parameters that come after the header, as OpenRecon's card and MRD clients of its kind send them."""

import json

import numpy as np
import pytest
from dpmrecon.hosts.adapters import LATE, Gadgetron
from dpmrecon.hosts.audit import AuditLog
from dpmrecon.hosts.parameters import parameters_of

from support import fake_peer
from support.fake_peer import config_name
from support.sessions import Here, exchange
from support.streams import raw_stream


def text(parameters: object) -> bytes:
    return fake_peer.text_message(fake_peer.TEXT, json.dumps(parameters).encode() + b"\0")


def with_text(stream: list[bytes], *texts: bytes) -> list[bytes]:
    """After the header."""
    return [*stream[:2], *texts, *stream[2:]]


def test_parameters_take_the_place_of_the_configurations(start, scan):
    server = start()
    stream = raw_stream(scan)
    plain = exchange(server, *stream)
    given = {"version": "1.1.0", "parameters": {"samples": "1", "seed": 3, "combineaverages": "False", "steps": "0"}}
    answer = exchange(server, *with_text(stream, text(given)))
    assert answer.texts == answer.errors == []
    assert plain.images[0].meta["dpmrecon_seed"] == "0" and answer.images[0].meta["dpmrecon_seed"] == "3"
    assert len(plain.images) == 4 and len(answer.images) == 2  # one sample has no spread
    steps = {image.meta["dpmrecon_steps"] for image in (*plain.images, *answer.images)}
    assert len(steps) == 1  # 0 is the model's


def test_images_are_those_of_the_same_options_by_configuration(start, scan):
    server, stream = start(), raw_stream(scan)
    one = exchange(server, fake_peer.text_message(2, b'{"parameters": {"seed": 5}}\0'), *stream[1:])
    other = exchange(server, *with_text(stream, text({"parameters": {"seed": "5", "contrast": "auto"}})))
    assert len(one.images) == len(other.images) == 4
    for image, same in zip(one.images, other.images):
        assert np.array_equal(image.data, same.data)


def test_the_name_of_the_configuration_can_be_a_parameter(scan, engine):
    stream = [config_name("openrecon"), *raw_stream(scan)[1:]]
    assert b"config 'openrecon' is unknown" in Here(engine).exchange(*stream).texts[0]
    session = Here(engine)
    answer = session.exchange(*with_text(stream, text({"parameters": {"config": "dpm_t2"}})))
    assert answer.texts == [] and len(answer.images) == 2
    assert session.session.record["contrast"] == "t2"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"sendOriginal": "True"}, "property 'sendOriginal' is unknown: valid ones are contrast, sampler"),
        ({"model": "latent"}, "property 'model' belongs to the command line"),
        ({"samples": "-1"}, "property 'samples' is -1: give 1 or more"),
        ({"combineaverages": "maybe"}, "property 'combine-averages' is 'maybe': give on or off"),
    ],
)
def test_a_bad_parameter_is_one_sentence(start, scan, parameters, words):
    answer = exchange(start(), *with_text(raw_stream(scan), text({"parameters": parameters})))
    assert answer.images == [] and words in answer.texts[0].decode()


def test_a_text_that_is_of_a_log_is_passed_over(start, scan):
    server, stream = start(), raw_stream(scan)
    log = fake_peer.text_message(fake_peer.TEXT, b"scanner: table moved\0")
    plain, answer = exchange(server, *stream), exchange(server, *with_text(stream, log, log))
    assert answer.texts == [] and len(answer.images) == len(plain.images)
    assert all(np.array_equal(one.data, other.data) for one, other in zip(answer.images, plain.images))


def test_parameters_may_come_before_the_header_and_after_a_log(scan, engine):
    """Over those of a text before them."""
    stream, log = raw_stream(scan), fake_peer.text_message(fake_peer.TEXT, b"scanner: table moved\0")
    one, other = (text({"parameters": given}) for given in ({"seed": 4, "contrast": "t1"}, {"seed": 5}))
    plain = Here(engine).exchange(
        fake_peer.text_message(2, b'{"parameters": {"seed": 5, "contrast": "t1"}}\0'), *stream[1:]
    )
    for texts in ([log, one, other, stream[1]], [one, stream[1], log, other], [stream[1], one, log, other, log]):
        session = Here(engine)
        answer = session.exchange(stream[0], *texts, *stream[2:])
        assert answer.texts == [] and session.session.record["contrast"] == "t1"
        assert LATE not in session.session.record["decisions"]
        assert len(answer.images) == len(plain.images) > 0
        assert all(np.array_equal(one.data, other.data) for one, other in zip(answer.images, plain.images))


def test_parameters_that_come_among_the_lines_are_told_and_not_used(scan, engine):
    """Once, in the record and to the peer; texts of a log are nobody's."""
    stream, log = raw_stream(scan), fake_peer.text_message(fake_peer.TEXT, b"scanner: table moved\0")
    plain = Here(engine).exchange(*stream)
    session, late = Here(engine), text({"parameters": {"seed": 5}})
    answer = session.exchange(*stream[:4], log, late, *stream[4:-1], late, stream[-1])
    assert answer.texts == [f"REMARK: {LATE}\0".encode()]
    assert session.session.record["decisions"] == [LATE] and session.session.record["error"] is None
    assert len(answer.images) == len(plain.images) > 0
    assert all(np.array_equal(one.data, other.data) for one, other in zip(answer.images, plain.images))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"parameters": 3}', b'{"parameters": [1]}', b"\xff\xfe{"])
def test_what_is_no_json_of_parameters_states_nothing(body):
    assert parameters_of(body) == (None, {})


def test_fields_that_leave_the_choice_state_nothing_and_others_do():
    given = {"contrast": "auto", "deadline": 0.0, "steps": 0, "samples": "", "seed": 0, "veinphase": "auto"}
    assert parameters_of(json.dumps({"parameters": given}).encode()) == (None, {"seed": "0", "vein-phase": "auto"})


def test_the_hash_of_a_scan_leaves_its_parameters_out(start, scan, tmp_path):
    audit = AuditLog(tmp_path / "audit.jsonl")
    server, stream = start(audit=audit), raw_stream(scan)
    for texts in ([], [text({"parameters": {"seed": 1}})]):
        exchange(server, *with_text(stream, *texts))
    one, other = (json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines())
    assert one["input"] == other["input"] is not None
    assert one["parameters"]["seed"] != other["parameters"]["seed"]


def test_a_gadgetrons_next_message_is_not_waited_for():
    """Its configuration is all there is, and its data come when the scan is over."""
    assert Gadgetron().added(None) == []
