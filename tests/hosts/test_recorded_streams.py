"""Scans of several repetitions or b-values as a real Gadgetron sent them: a calibration that came once serves all."""

from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from dpmrecon import options
from dpmrecon.data import Volume
from dpmrecon.errors import BadInputError, UnsupportedScanError
from dpmrecon.hosts import adapters
from dpmrecon.hosts.engine import Engine
from dpmrecon.hosts.recon_data import slices_of
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.header import read_header
from dpmrecon.physics.fourier import to_image, to_kspace
from dpmrecon.prior.checkpoint import DEFAULT

from support.fake_peer import config, parts_of
from support.paths import shared
from support.recorded import as_scan, parsed, recorded
from support.results import images, replay
from support.sessions import Here

pytestmark = pytest.mark.usefixtures("loaded_once")

FEW = {"steps": "4", "samples": "1", "gate": "off"}  # the gate changes no image
# images that come, NRMSE of those whose contrast the truth has, truth, contrast
STREAMS = {
    "t2_rep_sep1": (4, 0.065, "wire/t2_rep_sep1_truth.npy", "t2"),
    "epi_dwi_sep": (4, 0.06, "epi/epi_dwi_sep_truth.npy", "dwi"),
    "epi_dwin_0.04": (2, 0.10, "epi/epi_dwin_0.04_truth.npy", "dwi"),
}


@pytest.fixture(scope="module")
def default():
    path = files("dpmrecon.checkpoints") / f"{DEFAULT}.safetensors"
    if not path.is_file():
        pytest.skip("no trained checkpoint lies in the package")
    return path


def counters(image) -> tuple[int, ...]:
    head = image.getHead()
    return head.slice, head.contrast, head.repetition


def place(image) -> tuple[int, ...]:
    return image.image_series_index, image.slice, image.contrast


def distance(image: np.ndarray, truth: np.ndarray) -> float:
    """NRMSE with the factor that fits best."""
    factor = float((image * truth).sum() / (image * image).sum())
    return float(np.linalg.norm(factor * image - truth) / np.linalg.norm(truth))


def without_drift(kspace: torch.Tensor) -> torch.Tensor:
    """EPIReconX's readout grid drifts by half a pixel over the field of view: the k-space of the image sampled where it
    should have been."""
    cols = kspace.shape[-1]
    k = torch.arange(cols) - cols // 2
    places = k - 0.5 * torch.arange(cols) / cols
    wave = torch.exp(2j * torch.pi * torch.outer(k, places) / cols) / cols**0.5
    return to_kspace(kspace @ wave, axes=(-1,))


def resampled(image: np.ndarray) -> np.ndarray:
    """An image of the server's grid without its drift."""
    kspace = to_kspace(torch.from_numpy(image).to(torch.complex64), axes=(-1,))
    return to_image(without_drift(kspace), axes=(-1,)).abs().numpy()


def slices_without_drift(*arguments, **more):
    for item in slices_of(*arguments, **more):
        yield replace(item, kspace=without_drift(item.kspace), calibration=without_drift(item.calibration))


@pytest.mark.parametrize("name", STREAMS)
def test_every_repetition_and_b_value_is_as_with_a_calibration_of_its_own(name, default, tmp_path):
    count, limit, truth_file, contrast = STREAMS[name]
    stream, truths = recorded(name), np.load(shared(truth_file))
    chain = {"contrast": contrast, **FEW, "steps": "6"}
    _, header, rest = parts_of(stream)
    answer = Here(Engine.of(options.from_pairs({"model": str(default), "device": "cpu"}))).exchange(
        config(**chain), header, rest
    )
    assert answer.errors == []
    scan = as_scan(tmp_path / "scan.h5", *parsed(stream))
    assert replay(scan, tmp_path / "out", default, *(text for key in chain for text in (f"--{key}", chain[key]))) == 0
    expected = {counters(image): image.data[0, 0] for image in images(tmp_path / "out")}
    found = {counters(image): image.data[0, 0] for image in answer.images if image.image_series_index == 1}
    assert found.keys() == expected.keys()
    assert len(found) == count
    maps = [image for image in answer.images if image.image_series_index in (4, 5)]
    wanted = [image for series in ((4, 5) if contrast == "dwi" else ()) for image in images(tmp_path / "out", series)]
    assert sorted(map(place, maps)) == sorted(map(place, wanted))
    for image in maps:
        same = next(other for other in wanted if place(other) == place(image))
        unit = 1e-6 if image.image_series_index == 5 else 1.0  # a chain rounds to whole numbers
        assert np.linalg.norm(unit * image.data - same.data) <= 0.02 * np.linalg.norm(same.data)
    for key, image in found.items():
        error = distance(image, expected[key])
        print(f"{name}: slice, contrast, repetition {key}: NRMSE to replay {error:.4f}")
        assert error <= 0.02
        if key[1] == 0:
            placed = resampled(image) if contrast == "dwi" else image
            error = distance(placed, truths[key[0]])
            print(f"  to the truth {error:.4f}")
            assert error <= limit


def test_epi_from_its_file_is_as_from_the_chain(default, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "slices_of", slices_without_drift)
    chain = {"contrast": "dwi", **FEW}
    _, header, rest = parts_of(recorded("epi_dwi_sep"))
    engine = Engine.of(options.from_pairs({"model": str(default), "device": "cpu"}))
    answer = Here(engine).exchange(config(**chain), header, rest)
    scan, truth = shared("epi/epi_dwi_sep.h5"), np.load(shared("epi/epi_dwi_sep_truth.npy"))
    assert replay(scan, tmp_path, default, *(text for key in chain for text in (f"--{key}", chain[key]))) == 0
    expected = {counters(image): image.data[0, 0] for image in answer.images if image.image_series_index == 1}
    found = {counters(image): image.data[0, 0] for image in images(tmp_path)}
    assert found.keys() == expected.keys() and len(found) == 4
    for key, image in found.items():
        error = distance(expected[key], image)
        print(f"epi_dwi_sep: slice, contrast, repetition {key}: NRMSE of the chain's to the file's {error:.4f}")
        assert error <= 0.03
        if key[1] == 0:
            error = distance(image, truth[key[0]])
            print(f"  to the truth {error:.4f}")
            assert error <= 0.055


def test_a_recorded_volume_is_imaged_as_its_file_is_replayed(default, tmp_path, short_kernel):
    _, header, rest = parts_of(recorded("flair3d_r2x2"))
    engine = Engine.of(options.from_pairs({"model": str(default), "device": "cpu"}))
    chain = {"contrast": "flair", **FEW, "steps": "3"}
    answer = Here(engine).exchange(config(**chain), header, rest)
    assert answer.errors == []
    scan = shared("scans3d/flair3d_r2x2.h5")
    assert replay(scan, tmp_path, default, *(text for key in chain for text in (f"--{key}", chain[key]))) == 0
    (found,), (expected,) = answer.images, images(tmp_path)
    assert found.data.shape == expected.data.shape == (1, 40, 56, 64)
    error = distance(found.data, expected.data)
    print(f"flair3d_r2x2: NRMSE to replay {error:.4f}")
    assert error <= 0.02
    assert distance(found.data[0], np.load(shared("scans3d/flair3d_r2x2_truth.npy"))) <= 0.075


def test_a_recorded_volume_with_a_separate_block(default, short_kernel):
    _, header, rest = parts_of(recorded("flair3d_r2x2_separate"))
    engine = Engine.of(options.from_pairs({"model": str(default), "device": "cpu"}))
    answer = Here(engine).exchange(config(contrast="flair", **{**FEW, "steps": "3"}), header, rest)
    assert answer.errors == []
    (found,) = answer.images
    assert distance(found.data[0], np.load(shared("scans3d/flair3d_r2x2_separate_truth.npy"))) <= 0.075


def noisier(bits, factor):
    """Noise of `factor` times the energy of the lines, on every sample."""
    rng = np.random.default_rng(1)
    for bit in bits:
        data = bit.data.data
        level = np.sqrt(factor * np.mean(np.abs(data) ** 2) / 2)
        bit.data.data = (data + level * (rng.normal(size=data.shape) + 1j * rng.normal(size=data.shape))).astype("c8")


def as_images(bits):
    """As if FFTXGadget were missing."""
    for bit in bits:
        lines = torch.from_numpy(np.moveaxis(bit.data.data, 0, -1).copy())
        bit.data.data = np.moveaxis(to_image(lines, axes=(-1,)).numpy(), -1, 0)


@pytest.mark.parametrize("noise", [0, 9])
@pytest.mark.parametrize("name", [*STREAMS, "t1_brain_r4", "flair_3slices_r4"])
def test_k_space_is_told_from_images_along_the_readout_whatever_the_noise(name, noise):
    stream = recorded(name)

    def taken():
        xml, bits = parsed(stream)
        noisier(bits, noise)
        return read_header(xml.replace(b"<trajectory>cartesian", b"<trajectory>epi")), bits

    header, bits = taken()
    list(slices_of(bits, header))
    header, bits = taken()
    as_images(bits)
    with pytest.raises(BadInputError, match="lacks FFTXGadget"):
        list(slices_of(bits, header))


def volume_of(name):
    """What slices_of makes of a recorded 3D stream."""
    xml, bits = parsed(recorded(name))
    heads: dict = {}
    (volume,) = slices_of(bits, read_header(xml), heads)
    assert isinstance(volume, Volume) and list(heads) == [volume.key]
    return volume, heads[volume.key]


def apart(one, other):
    """Relative distance of two arrays that may differ in their scale."""
    factor = (other.conj() * one).sum() / other.abs().square().sum()
    return float((one - factor * other).norm() / one.norm())


def test_a_recorded_volume_is_that_of_the_file():
    found, place = volume_of("flair3d_r2x2")
    with open_scan(shared("scans3d/flair3d_r2x2.h5")) as scan:
        heads: dict = {}
        (expected,) = slices(scan.acquisitions(), scan.header, heads)
    assert found.mask.equal(expected.mask) and found.kspace.shape == (8, 40, 56, 64)
    assert (found.n_lines_got, found.n_lines_needed, found.acceleration) == (752, 560, 4)
    assert apart(found.kspace, expected.kspace) < 1e-3
    assert found.calibration.shape == expected.calibration.shape == (8, 16, 16, 64)
    assert found.calibration.equal(found.kspace[:, 12:28, 20:36])
    level = float(found.kspace.norm() / expected.kspace.norm())
    assert found.sigma_n == pytest.approx(level * expected.sigma_n, rel=0.1)
    assert place == heads[expected.key]


def test_a_recorded_separate_calibration_of_a_volume():
    found, _ = volume_of("flair3d_r2x2_separate")
    whole, _ = volume_of("flair3d_r2x2")
    regular = torch.zeros(40, 56, 64)
    regular[::2, ::2] = 1
    assert found.mask.equal(regular) and found.n_lines_got == 560
    # its block lies where the embedded one does: the noise is another
    assert found.calibration.shape == (8, 16, 16, 64)
    assert apart(found.calibration, whole.calibration) < 0.05
    shifted = found.calibration.roll(1, 1)
    assert apart(shifted, whole.calibration) > 0.5


def test_a_recorded_volume_with_lost_lines_is_no_image():
    for name in ("flair3d_r2x2", "flair3d_r2x2_separate"):
        xml, bits = parsed(recorded(name))
        bits[0].data.data[:, 4, 2] = 0
        bits[0].data.headers[4, 2, 0, 0, 0].number_of_samples = 0
        (lost,) = slices_of(bits, read_header(xml))
        assert lost.reason == (
            "incomplete: 559 of the 560 lines came that the limits (partitions 0 to 39, lines 0 to 55) and R = 4 "
            "announce"
        )


def test_a_repetition_without_calibration_uses_the_last_of_its_volume():
    xml, bits = parsed(recorded("flair3d_r2x2_separate"))
    _, again = parsed(recorded("flair3d_r2x2_separate"))
    for head in again[0].data.headers.ravel():
        head.idx.repetition = 1
    again[0].ref = again[0].data  # a copy of the image lines, as the reference preparation leaves it
    first, second = slices_of([*bits, *again], read_header(xml))
    assert second.key.repetition == 1 and second.calibration.equal(first.calibration)


def test_slabs_and_misplaced_partitions_are_refused():
    xml, bits = parsed(recorded("flair3d_r2x2"))
    bits[0].data.headers[0, 0, 0, 0, 0].idx.slice = 1
    with pytest.raises(UnsupportedScanError, match="several slabs"):
        list(slices_of(bits, read_header(xml)))
    xml, bits = parsed(recorded("flair3d_r2x2"))
    bits[0].data.headers = np.roll(bits[0].data.headers, 1, axis=1)
    with pytest.raises(BadInputError, match="not at the row of their own header"):
        list(slices_of(bits, read_header(xml)))
