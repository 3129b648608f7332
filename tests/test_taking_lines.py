"""Options that say how lines and headers are taken: of `replay`, of MRD clients, and not of a Gadgetron's chain."""

import json

import ismrmrd
import numpy as np
import pydicom
import pytest
from dpmrecon import options
from dpmrecon.hosts.adapters import Gadgetron, MrdClient
from dpmrecon.hosts.engine import Engine

from support import fake_peer
from support.acquisitions import write_lines
from support.converters import Head, copied, nrmse
from support.results import images, replay, report
from support.sessions import Here
from support.streams import edited_stream

NEAR = 0.02  # share that an error may be off


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return Head.of(tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="module")
def engine(model):
    return Engine.of(options.from_pairs({"model": str(model), "device": "cpu", "steps": "4", "samples": "2"}))


def error(out, head) -> float:
    (image,) = images(out)
    return nrmse(image.data[0, 0], head.truth[0])


PLACES = (1, 2, 4, 5, 6, 7)  # of the scan's channels among eight


def on_channels(lines, places) -> list[ismrmrd.Acquisition]:
    for line in lines:
        line.available_channels = 8
        for place in places:
            line.channel_mask[place // 64] |= 1 << place % 64
    return lines


def receiver_noise(head) -> list[ismrmrd.Acquisition]:
    """The noise at a quarter of the dwell time, of eight channels."""
    rng, found = np.random.default_rng(4), []
    for line in head.noise:
        data = 30 * (rng.standard_normal((8, 256)) + 1j * rng.standard_normal((8, 256)))
        data[list(PLACES)] = 2 * line.data
        found.append(copied(line, data))
        found[-1].sample_time_us /= 4
    return on_channels(found, range(8))


@pytest.fixture(scope="module")
def deaf(head, tmp_path_factory):
    """A scan without noise measurement whose channels are numbered."""
    lines = on_channels(head.sampled(), PLACES)
    return write_lines(tmp_path_factory.mktemp("deaf") / "scan.h5", head.header(), lines)


@pytest.fixture(scope="module")
def noise_file(head, tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("noise") / "noise.h5", head.header(), receiver_noise(head))


@pytest.fixture(scope="module")
def plain(head, model, tmp_path_factory):
    """The folder of what comes out with a noise measurement of its own."""
    out = tmp_path_factory.mktemp("plain")
    assert replay(write_lines(out / "scan.h5", head.header(), head.noise + head.sampled()), out, model) == 0
    return out


def test_noise_of_another_file(head, deaf, noise_file, model, plain, tmp_path, capsys):
    assert replay(deaf, tmp_path, model, "--noise", str(noise_file)) == 0
    (own,), (found,) = report(plain)["slices"], report(tmp_path)["slices"]
    assert found["noise_source"] == own["noise_source"] == "noise scan"
    assert found["sigma_n"] == pytest.approx(own["sigma_n"], rel=0.01)
    assert error(tmp_path, head) == pytest.approx(error(plain, head), rel=NEAR)
    assert replay(deaf, tmp_path / "without", model) == 0
    assert report(tmp_path / "without")["slices"][0]["noise_source"] == "k-space periphery"
    for bad, words in ((deaf, "holds no noise measurement"), (tmp_path / "no.h5", "does not exist")):
        capsys.readouterr()
        assert replay(deaf, tmp_path / "bad", model, "--noise", str(bad)) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("names", [("dataset_1", "dataset_2"), ("dataset", "dataset_2"), ("noise", "dataset")])
def test_noise_of_another_group_of_the_file(head, model, plain, tmp_path, capsys, names):
    """As Siemens's dependency measurements are written."""
    scan = write_lines(tmp_path / "scan.h5", head.header(), receiver_noise(head), names[0])
    write_lines(scan, head.header(), on_channels(head.sampled(), PLACES), names[1])
    assert replay(scan, tmp_path, model) == 0
    assert report(tmp_path)["slices"][0]["noise_source"] == "noise scan"
    assert error(tmp_path, head) == pytest.approx(error(plain, head), rel=NEAR)
    said = f"the noise measurement is that of the file's group '{names[0]}'"
    assert said in report(tmp_path)["remarks"][0]
    assert said in capsys.readouterr().err


def test_that_of_the_option_comes_first(head, noise_file, model, plain, tmp_path):
    loud = [copied(line, 40 * line.data) for line in receiver_noise(head)]
    scan = write_lines(tmp_path / "scan.h5", head.header(), on_channels(loud, range(8)), "dataset_1")
    write_lines(scan, head.header(), on_channels(head.sampled(), PLACES), "dataset_2")
    assert replay(scan, tmp_path / "loud", model) in (0, 3)
    assert "times as loud as the quietest part of k-space" in "".join(report(tmp_path / "loud")["remarks"])
    assert replay(scan, tmp_path / "out", model, "--noise", str(noise_file)) == 0
    assert report(tmp_path / "out")["remarks"] == []
    assert error(tmp_path / "out", head) == pytest.approx(error(plain, head), rel=NEAR)


def five_coils(head) -> list[ismrmrd.Acquisition]:
    return [copied(line, np.delete(line.data, 2, 0)) for line in head.noise + head.sampled()]


def with_a_loud_one(head) -> list[ismrmrd.Acquisition]:
    """Channel 2 spikes, in the image's lines alone."""
    lines = head.noise + head.sampled()
    for line in lines[len(head.noise) :]:
        line.data[2] = 5e3 * np.roll(line.data[2], 40)
    return lines


FROM_0 = "give channel numbers from 0 to 65535, as 0-5,7"


def test_channels_are_chosen(head, model, tmp_path, capsys):
    fewer = write_lines(tmp_path / "fewer.h5", head.header(), five_coils(head))
    scan = write_lines(tmp_path / "scan.h5", head.header(), with_a_loud_one(head))
    assert replay(fewer, tmp_path / "fewer", model) == 0
    assert replay(scan, tmp_path / "out", model, "--coils", "0-1,3-5") == 0
    assert error(tmp_path / "out", head) == pytest.approx(error(tmp_path / "fewer", head), rel=NEAR)
    wrong = (("0-8", "coils up to 8 are asked for and the scan has 6"), ("all", FROM_0), ("5-2", FROM_0))
    for text, words in (*wrong, ("0-999999999999", FROM_0), ("0-65536", FROM_0), ("9" * 5000, FROM_0)):
        capsys.readouterr()
        assert replay(scan, tmp_path / "bad", model, "--coils", text) == 2
        assert words in capsys.readouterr().err


def with_user_lines(head) -> list[ismrmrd.Acquisition]:
    """Lines of another thing, which only a flag of the sequence's own tells apart."""
    others = [copied(line, 3 * line.data[::-1]) for line in head.sampled()[::4]]
    for line in others:
        line.set_flag(ismrmrd.ACQ_USER3)
    return head.noise + others + head.sampled()


def test_flags_that_are_ignored_are_chosen(head, model, plain, tmp_path, capsys):
    scan = write_lines(tmp_path / "scan.h5", head.header(), with_user_lines(head))
    assert replay(scan, tmp_path / "lost", model) == 4
    assert replay(scan, tmp_path / "out", model, "--ignore-flags", "user3,NAVIGATION_DATA") == 0
    assert error(tmp_path / "out", head) == pytest.approx(error(plain, head), rel=NEAR)
    assert report(tmp_path / "out")["lines"]["kinds"]["left out: user3"] == len(head.sampled()[::4])
    capsys.readouterr()
    assert replay(scan, tmp_path / "bad", model, "--ignore-flags", "user9") == 2
    assert "flag 'USER9' is unknown: valid ones are FIRST_IN_ENCODE_STEP1" in capsys.readouterr().err


VIEW = "encoding.reconSpace.fieldOfView_mm"


def test_header_values_are_given(head, plain, model, tmp_path, capsys):
    values = f"{VIEW}.z=6;subjectInformation.patientName=Other^Name;measurementInformation.seriesDescription=neu"
    assert replay(plain / "scan.h5", tmp_path, model, "--set", values) == 0
    (file, *_) = (pydicom.dcmread(path) for path in (tmp_path / "dicom").rglob("01_*/*.dcm"))
    assert (file.PatientName, file.SliceThickness) == ("Other^Name", 6)
    assert images(tmp_path)[0].getHead().field_of_view[2] == 6
    with ismrmrd.Dataset(str(tmp_path / "images.h5"), "dataset", create_if_needed=False) as dataset:
        assert "Other^Name" in dataset.read_xml_header().decode()
    for text, words in (
        (f"{VIEW}.w=3", f"the header has no '{VIEW}.w': valid names in place of 'w' are x, y, z"),
        ("sequence.TR=3", "valid names in place of 'sequence' are version, "),
        (VIEW, "give path=value, as in encoding.trajectory=epi"),
        (f"{VIEW}.x=-1", "reconSpace.fieldOfView_mm.x as -1"),
    ):
        capsys.readouterr()
        assert replay(plain / "scan.h5", tmp_path / "bad", model, "--set", text) == 2
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("dpmrecon: ")]
        assert words in line


GIVEN = {
    "noise": "noise.h5",
    "coils": "0-3",
    "group": "dataset_2",
    "ignore-flags": "USER3",
    "set": f"{VIEW}.z=6",
    "conjugate": "on",
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_gadgetrons_chain_is_told_that_its_gadgets_took_the_lines(head, engine, name):
    header = fake_peer.text_message(fake_peer.HEADER, head.header().encode())
    answer = Here(engine).exchange(fake_peer.config(**{name: GIVEN[name]}), header, fake_peer.close())
    assert answer.errors == [
        f"{name} needs raw acquisitions, which the gadgets before this one have taken: leave it out of the chain"
    ]


def test_a_services_convention_is_not_that_of_a_gadgetron(model):
    defaults = {"model": str(model), "device": "cpu", "steps": "4", "samples": "2", "conjugate": "on"}
    service = Engine.of(options.from_pairs(defaults))
    gadgetron, client = Gadgetron(), MrdClient()
    assert gadgetron.options(b"<configuration/>", service).conjugate == "auto"
    assert client.options(b"dpm_flair", service).conjugate == "on"


def properties(**given: str) -> bytes:
    """A chain in full, with our node in it."""
    inner = "".join(f'<property name="{name}" value="{value}"/>' for name, value in given.items())
    execute = f'<execute name="dpmrecon.gadget" type="python"/><configuration>{inner}</configuration>'
    chain = f"<configuration><stream><external>{execute}</external></stream></configuration>"
    return fake_peer.text_message(fake_peer.CONFIG, chain.encode())


def parameters(**given: str) -> bytes:
    return fake_peer.text_message(fake_peer.CONFIG, json.dumps({"parameters": given}).encode())


@pytest.mark.parametrize("config", [properties, parameters])
@pytest.mark.parametrize("name", ["noise", "coils", "ignore-flags", "set", "conjugate"])
def test_an_mrd_client_gives_them_too(head, engine, model, deaf, noise_file, tmp_path, config, name):
    lines = {
        "noise": lambda: on_channels(head.sampled(), PLACES),
        "coils": lambda: with_a_loud_one(head),
        "ignore-flags": lambda: with_user_lines(head),
    }.get(name, lambda: head.noise + head.sampled())()
    value = {"noise": str(noise_file), "coils": "0-1,3-5"}.get(name, GIVEN[name])
    header = fake_peer.text_message(fake_peer.HEADER, head.header().encode())
    sent = map(fake_peer.acquisition, lines)
    answer = Here(engine).exchange(config(**{name: value}), header, *sent, fake_peer.close())
    assert answer.texts == []
    scan = write_lines(tmp_path / "scan.h5", head.header(), lines)
    assert replay(scan, tmp_path, model, f"--{name}", value) == 0
    (one, *_), (other,) = answer.images, images(tmp_path)
    assert nrmse(one.data[0, 0], other.data[0, 0]) < 2e-3  # whole numbers
    assert list(one.getHead().field_of_view) == list(other.getHead().field_of_view)


@pytest.mark.parametrize("config", [properties, parameters])
def test_a_stream_has_no_groups(head, engine, config):
    header = fake_peer.text_message(fake_peer.HEADER, head.header().encode())
    answer = Here(engine).exchange(config(group="dataset_2"), header, fake_peer.close())
    assert answer.texts == [b"ERROR: group names a measurement of a file, and a stream is one: leave it out\0"]


def test_what_data_an_image_is_of_is_in_the_report_and_makes_its_uid(simulated_scan, model, tmp_path):
    scan = simulated_scan(n_coils=6)
    uids = []
    for number, taken in enumerate(({}, {"coils": "0-3"}, {})):
        out = tmp_path / str(number)
        asked = [word for name, value in taken.items() for word in (f"--{name}", value)]
        assert replay(scan, out, model, *asked) == 0
        assert report(out)["taken"] == taken
        file = min((out / "dicom").rglob("*.dcm"))
        uids.append(pydicom.dcmread(file).SOPInstanceUID)
    assert uids[0] == uids[2] != uids[1]


@pytest.mark.parametrize(("contrast", "told"), [("t1", True), ("flair", False), (None, False)])
def test_a_contrast_that_is_not_the_protocol_s_is_said(simulated_scan, model, engine, tmp_path, contrast, told):
    scan = simulated_scan(matrix=(48, 64), n_slices=2)
    expected = "the contrast given is t1 and the scan's protocol is named as flair"
    assert replay(scan, tmp_path, model, *(["--contrast", contrast] if contrast else [])) == 0
    assert any(expected in remark for remark in report(tmp_path)["remarks"]) == told
    session = Here(engine)
    rest = edited_stream(scan)[1:-1]
    session.exchange(fake_peer.config(**({"contrast": contrast} if contrast else {})), *rest, fake_peer.close())
    assert any(expected in text for text in session.session.record["decisions"]) == told
