"""The gadget in a real child process behind a real socket, against a peer that does what a Gadgetron does."""

import gzip
import importlib.util

import ismrmrd
import numpy as np
import pytest
from dpmrecon.cli import main
from dpmrecon.prior.denoiser import Denoiser

from support import fake_peer
from support.fake_peer import Child, ForkedChild, close, config, parts_of
from support.paths import shared
from support.streams import IDENTIFIER, planted

needs_host = pytest.mark.skipif(
    importlib.util.find_spec("gadgetron") is None,
    reason="the gadget runs inside gadgetron-python, which is not installed (pip install dpmrecon[gadgetron])",
)
RECORDED = {"t1_brain_r4": "t1", "flair_3slices_r4": "flair", "flair_3slices_r4_separate_acs": "flair"}
WINDOW = [prefix + key for prefix in ("", "GADGETRON_") for key in ("WindowCenter", "WindowWidth")]
FEW = {"steps": 2, "samples": 1, "device": "cpu"}


@needs_host
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_gadgetron_gets_the_images_of_replay(name, tmp_path):
    recorded = shared(f"wire/{name}.recondata.bin.gz")
    _, header, rest = parts_of(gzip.decompress(recorded.read_bytes()))
    few = {**FEW, "gate": "warn" if name == "t1_brain_r4" else "off"}  # of one slice: the gate takes longer than these
    child = Child() if name == "t1_brain_r4" else ForkedChild()
    child.peer.send(config(contrast=RECORDED[name], seed=7, **few), header, rest)
    answer = child.peer.answer()
    assert answer.errors == []
    assert answer.ids[-1] == fake_peer.CLOSE
    assert "CG-SENSE" not in child.output()
    given = [text for option, value in few.items() for text in (f"--{option}", str(value))]
    command = ["replay", str(shared(f"ismrmrd/{name}.h5")), "--out", str(tmp_path), "--seed", "7", *given]
    assert main([*command, "--contrast", RECORDED[name]]) == 0
    dataset = ismrmrd.Dataset(str(tmp_path / "images.h5"), "dataset", create_if_needed=False)
    expected = [dataset.read_image("image_1", index) for index in range(dataset.number_of_images("image_1"))]
    dataset.close()
    assert len(answer.images) == len(expected) == (1 if name.startswith("t1") else 3)
    for found, wanted in zip(answer.images, expected):
        assert found.data.dtype == np.float32
        for field, _ in ismrmrd.ImageHeader._fields_:
            if field != "attribute_string_len":
                ours, theirs = getattr(found.getHead(), field), getattr(wanted.getHead(), field)
                assert np.array_equal(np.array(ours), np.array(theirs)), field
        assert "dpmrecon_fallback" not in found.meta
        different = {key for key in found.meta if found.meta[key] != wanted.meta[key]}
        # Gadgetron's units and a measured noise level: nothing else of the meta may change
        assert different <= {"dpmrecon_residual", "RescaleSlope", "GADGETRON_ScaleRatio", *WINDOW}
        error = np.linalg.norm(found.data - wanted.data) / np.linalg.norm(wanted.data)
        print(f"{name}: slice {found.getHead().slice}: NRMSE between wire and replay {error:.2g}")
        assert error <= 0.02


@needs_host
def test_the_child_sends_each_image_when_its_slice_is_done(model, stream):
    header, (first, second) = stream
    child = ForkedChild()
    child.peer.send(config(model=model, **FEW), header, first)
    image = child.peer.image()  # the second slice is not even sent
    assert image.getHead().slice == 0
    child.peer.send(second, close())
    answer = child.peer.answer()
    assert [found.getHead().slice for found in answer.images] == [1]
    assert answer.ids[-1] == fake_peer.CLOSE
    assert child.end().returncode == 0


@needs_host
def test_a_server_that_dies_leaves_no_spinning_process(model, stream):
    header, (first, second) = stream
    child = ForkedChild()
    child.peer.send(config(model=model, **FEW), header, first, second[:5000])
    child.peer.image()
    child.peer.socket.close()
    assert "the connection ended within a message" in child.output()  # one that spins stays until its alarm


@needs_host
def test_wrong_properties_reach_the_client_as_an_error(model, stream):
    header, messages = stream
    child = ForkedChild()
    child.peer.send(config(model=model, stpes=3), header, *messages, close())
    answer = child.peer.answer()
    expected = (
        "property 'stpes' is unknown: valid ones are contrast, model, sampler, mode, steps, samples, seed, "
        "fallback, gate, adapt, deadline, device, batch, precision, combine-averages, conjugate, noise, coils, "
        "ignore-flags, group, set, output, b-values, vein-phase, reformat"
    )
    assert answer.raw == fake_peer.error(expected) + close()
    child.output()


@needs_host
def test_a_raising_model_gives_labelled_images(model, stream):
    header, messages = stream

    def broken(self, x, sigma, label):
        raise RuntimeError("no such kernel")

    child = ForkedChild(before=lambda: setattr(Denoiser, "forward", broken))
    child.peer.send(config(model=model, **FEW), header, *messages, close())
    answer = child.peer.answer()
    assert [image.getHead().slice for image in answer.images] == [0, 1]
    for image in answer.images:
        assert "CG-SENSE FALLBACK: the sampler failed (no such kernel)" in image.meta["GADGETRON_ImageComment"]
        assert "CG-SENSE FALLBACK" in image.meta["SeriesDescription"]
    assert "slice 1: CG-SENSE FALLBACK" in child.output()


@needs_host
def test_no_patient_data_in_the_output_of_the_child(model, stream):
    header, messages = stream
    child = ForkedChild()
    child.peer.send(config(model=model, **FEW), planted(header), *messages, close())
    assert len(child.peer.answer().images) == 2
    assert IDENTIFIER.decode() not in child.output()
