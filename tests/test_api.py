"""The front door for Python: arrays or a scan in, results out, and every mistake in one sentence."""

import dpmrecon
import numpy as np
import pytest
import torch
from dpmrecon.arrays import slice_of_arrays
from dpmrecon.errors import BadInputError, DpmreconError
from dpmrecon.mrd.file import open_scan
from dpmrecon.prior.denoiser import Denoiser
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.slices import simulated_kspace

from support.results import images, replay

SMALL = {"matrix": (48, 64), "n_coils": 6, "calibration_lines": 16, "acceleration": 2}


@pytest.fixture(scope="module")
def kspace():
    return simulated_kspace(SimulationSettings(**SMALL))[0]


@pytest.fixture(scope="module")
def loaded(model):
    return dpmrecon.load_model(model, "cpu")


def test_every_public_name_is_there():
    for name in dpmrecon.__all__:
        assert getattr(dpmrecon, name) is not None
    assert set(dpmrecon.__all__) <= set(dir(dpmrecon))
    with pytest.raises(AttributeError, match="no attribute 'reconstrukt'"):
        _ = dpmrecon.reconstrukt


def test_numpy_in_numpy_out_and_torch_in_torch_out(kspace, loaded):
    ours = dpmrecon.reconstruct(kspace, model=loaded, contrast="flair", keep_samples=True, samples=3)
    assert ours.image.shape == (48, 64) and ours.image.dtype == np.complex64
    assert ours.std.shape == (48, 64) and ours.std.dtype == np.float32
    assert ours.samples.shape == (3, 48, 64) and ours.fallback is None and 0.5 < ours.residual < 1.5
    np.testing.assert_allclose(ours.samples.mean(0), ours.image, rtol=1e-4, atol=1e-6)
    theirs = dpmrecon.reconstruct(torch.from_numpy(kspace).to(torch.complex128), model=loaded, contrast="flair")
    assert isinstance(theirs.image, torch.Tensor) and theirs.samples is None
    again = dpmrecon.reconstruct(kspace, model=loaded, contrast="flair")
    np.testing.assert_array_equal(theirs.image.numpy(), again.image)
    other = dpmrecon.reconstruct(kspace, model=loaded, contrast="flair", seed=1)
    assert np.abs(other.image - again.image).max() > 0


LIKE = {
    "negative strides": lambda k: np.flip(np.flip(k, 1).copy(), 1),
    "big-endian": lambda k: k.astype(">c8"),
    "read-only": lambda k: np.frombuffer(k.tobytes(), k.dtype).reshape(k.shape),
    "longer": lambda k: k.astype(np.clongdouble),
    "a field of records": lambda k: np.rec.fromarrays([k, np.zeros(k.shape, np.int32)], names="k,n")["k"],
    "conjugated": lambda k: torch.from_numpy(k.conj()).conj(),
    "adjoint": lambda k: torch.from_numpy(np.ascontiguousarray(k.conj().swapaxes(1, 2))).mH,
    "in a graph": lambda k: torch.from_numpy(k).requires_grad_(),
}


@pytest.mark.parametrize("kind", LIKE)
def test_arrays_of_every_kind_are_the_same_data(kspace, loaded, kind):
    given = LIKE[kind](kspace)
    plain, found = (slice_of_arrays(one, None, one[:, 16:32], None) for one in (kspace, given))
    assert torch.equal(found.kspace, plain.kspace) and found.sigma_n == plain.sigma_n
    assert torch.equal(found.calibration, plain.calibration)
    maps = dpmrecon.estimate_coil_maps(given[:, 16:32], (48, 64))
    np.testing.assert_array_equal(np.asarray(maps), dpmrecon.estimate_coil_maps(kspace[:, 16:32], (48, 64)))


@pytest.mark.parametrize("of", [np.float32, np.array, torch.tensor])
def test_numbers_of_numpy_and_torch_are_numbers(kspace, loaded, of):
    level = float(np.float32(0.01))
    found = dpmrecon.reconstruct(
        kspace, model=loaded, noise_std=of(level), seed=np.int64(3), steps=torch.tensor(2), samples=np.array(1),
        fallback=np.True_,
    )  # fmt: skip
    same = dpmrecon.reconstruct(kspace, model=loaded, noise_std=level, seed=3, steps=2, samples=1)
    np.testing.assert_array_equal(found.image, same.image)


def test_the_image_has_its_phase_on_the_fallback_too(loaded, monkeypatch):
    """Measured coil images are maps times image: those of the noise-free object, phase included."""
    clean, truth = simulated_kspace(SimulationSettings(**{**SMALL, "acceleration": 1}, noise=1e-5))
    maps = dpmrecon.estimate_coil_maps(clean, (48, 64))
    coil_images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(clean, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    combined = (maps.conj() * coil_images).sum(0)
    head = (np.abs(maps).sum(0) > 0) & (truth > 0.2 * truth.max())
    for broken in (False, True):
        if broken:
            monkeypatch.setattr(Denoiser, "forward", lambda self, x, sigma, label: x * float("nan"))
        found = dpmrecon.reconstruct(clean, model=loaded)
        assert (found.fallback is not None) == broken
        assert np.abs(np.angle(found.image * combined.conj()))[head].max() < 0.02
        assert np.angle(combined)[head].std() > 0.1  # there is a phase to be right about
    with pytest.raises(DpmreconError, match="not finite; the fallback is off"):
        dpmrecon.reconstruct(clean, model=loaded, fallback=False)


def test_maps_and_mask_and_noise_may_be_given(kspace, loaded):
    rows = np.abs(kspace).sum((0, 2)) > 0
    found = dpmrecon.reconstruct(kspace, model=loaded)
    assert found.image.shape == (48, 64)
    same = dpmrecon.reconstruct(kspace, mask=rows, model=loaded)
    np.testing.assert_array_equal(found.image, same.image)
    calibration = kspace[:, 16:32]
    maps = dpmrecon.estimate_coil_maps(calibration, (48, 64))
    given = dpmrecon.reconstruct(kspace, maps, np.broadcast_to(rows[:, None], (48, 64)), model=loaded)
    apart = dpmrecon.reconstruct(kspace, calibration=calibration, model=loaded)
    np.testing.assert_array_equal(given.image, apart.image)
    quiet, loud = (dpmrecon.reconstruct(kspace, noise_std=level, model=loaded) for level in (0.001, 0.1))
    assert quiet.residual > 20 * loud.residual  # in units of the noise that is given


@pytest.mark.parametrize(("rows", "cols"), [(48, 24), (24, 24), (24, 64), (48, 64)])
def test_a_calibration_may_be_any_block_of_the_centre(loaded, rows, cols):
    """Lines of other columns are no lines of the image, and serve the maps."""
    full, truth = simulated_kspace(SimulationSettings(**{**SMALL, "acceleration": 1}))
    undersampled = full.copy()
    undersampled[:, 1::2] = 0
    block = full[:, 24 - rows // 2 : 24 + rows // 2, 32 - cols // 2 : 32 + cols // 2]
    found = dpmrecon.reconstruct(undersampled, calibration=block, model=loaded)
    assert np.linalg.norm(np.abs(found.conventional) - truth) < 0.12 * np.linalg.norm(truth)
    maps = dpmrecon.estimate_coil_maps(block, (48, 64))
    given = dpmrecon.reconstruct(undersampled, maps, model=loaded)
    assert np.array_equal(found.image, given.image) == (cols < 64)


def test_a_wrong_noise_level_is_told(kspace, loaded):
    level = slice_of_arrays(kspace, None, None, None).sigma_n
    for factor, told in ((1 / 30, True), (1 / 5, True), (1 / 2, False), (1, False), (2, False), (5, True), (30, True)):
        found = dpmrecon.reconstruct(kspace, model=loaded, noise_std=factor * level)
        remarks = [remark for remark in found.remarks if remark.startswith("noise_std is")]
        assert len(remarks) == told and (found.verdict != "trusted") >= told
    assert f"the periphery of k-space has {level:.3g}: give the standard deviation" in remarks[0]


@pytest.mark.parametrize("noise", [5e-4, 1e-3, 5e-3])
@pytest.mark.parametrize("fov", [170.0, 150.0])
def test_signal_at_the_edge_is_no_wrong_noise_level(loaded, noise, fov):
    """A head that fills its columns leaves none beside it: the estimate is too high."""
    settings = SimulationSettings(**SMALL, fov_mm=(220.0, fov), noise=noise, noise_correlation=0.0)
    kspace, truth = simulated_kspace(settings)
    given = noise * float(np.percentile(truth, 99))
    assert slice_of_arrays(kspace, None, None, None).sigma_n > 1.8 * given
    found = dpmrecon.reconstruct(kspace, model=loaded, noise_std=given)
    assert not any(remark.startswith("noise_std") for remark in found.remarks)


def test_what_became_of_adapting_is_told(kspace, loaded):
    found = dpmrecon.reconstruct(kspace, model=loaded, adapt=True)
    assert sum(remark.startswith(("prior adapted to the scan", "prior not adapted")) for remark in found.remarks) == 1
    assert not any("adapted" in remark for remark in dpmrecon.reconstruct(kspace, model=loaded).remarks)
    few = kspace[:, 15:33]
    found = dpmrecon.reconstruct(few, model=loaded, adapt=True)
    assert found.remarks[-1] == "prior not adapted to the scan: no slice so far can be fitted to"


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("skipped", [0, 12])
def test_rounding_is_not_acquired(kspace, loaded, dtype, skipped):
    """What a Fourier transform and its inverse leave in lines, and columns, that are empty."""
    kspace = kspace.copy()
    kspace[..., :skipped] = 0
    image = np.fft.ifft2(np.fft.ifftshift(kspace, axes=(1, 2))).astype(dtype)
    again = np.fft.fftshift(np.fft.fft2(image), axes=(1, 2)).astype(dtype)
    assert (again != 0).mean() > 0.99 and (kspace != 0).mean() < 0.7
    found, plain = (slice_of_arrays(one, None, None, None) for one in (again, kspace))
    assert torch.equal(found.mask, plain.mask) and found.calibration.shape == plain.calibration.shape
    assert not plain.remarks and "hold nothing but rounding" in found.remarks[0]
    result, same = (dpmrecon.reconstruct(one, model=loaded, noise_std=0.01) for one in (again, kspace))
    np.testing.assert_allclose(result.image, same.image, rtol=0, atol=1e-3)
    assert result.verdict.startswith("caution: ")
    with pytest.raises(BadInputError, match="of the calibration's 48 lines are zero"):
        dpmrecon.estimate_coil_maps(again, (48, 64))


def test_lines_of_a_smooth_object_are_not_taken_for_rounding():
    """Without noise they fall below it without a gap."""
    row, col = np.meshgrid(np.arange(48) - 24, np.arange(64) - 32, indexing="ij")
    kspace = np.exp(-(row**2) / 30 - np.abs(col) / 9)[None].astype(np.complex64)
    level = np.abs(kspace).max((0, 2))
    assert 0 < level.min() < 1e-7 * level.max()
    data = slice_of_arrays(kspace, None, None, None)
    assert bool(data.mask.all()) and not data.remarks


def test_what_a_mask_marks_and_is_zero_is_not_acquired(kspace, loaded):
    cut = kspace.copy()
    cut[..., :12] = 0
    for data, mask in ((kspace, np.ones(48)), (cut, np.abs(kspace).sum((0, 2)) > 0)):
        plain, found = slice_of_arrays(data, None, None, None), slice_of_arrays(data, mask, None, None)
        assert torch.equal(found.mask, plain.mask) and found.sigma_n == plain.sigma_n
        (remark,) = found.remarks
        assert "samples that the mask marks as acquired are zero: they are left out" in remark and not plain.remarks
    assert remark.startswith("384 of the 2048 samples")
    assert remark in dpmrecon.reconstruct(cut, mask=mask, model=loaded).remarks


@pytest.mark.parametrize("size", [(45, 47), (64, 41)])
def test_odd_sizes_and_2d_undersampling(loaded, size):
    rng = np.random.default_rng(0)
    full = simulated_kspace(SimulationSettings(**{**SMALL, "matrix": size, "acceleration": 1}))[0]
    mask = rng.random(size) < 0.5
    mask[size[0] // 2 - 9 : size[0] // 2 + 9, size[1] // 2 - 9 : size[1] // 2 + 9] = True
    found = dpmrecon.reconstruct(full * mask, model=loaded)
    assert found.image.shape == size and found.fallback is None
    assert 0.6 < found.residual < 1.5  # the noise of such data is measured too


def test_a_scan_gives_the_images_of_replay(simulated_scan, model, loaded, tmp_path):
    scan = simulated_scan(matrix=(48, 64), n_slices=2)
    assert replay(scan, tmp_path, model) == 0
    results = list(dpmrecon.reconstruct_scan(scan, model=loaded))
    assert [result.key.slice for result in results] == [0, 1]
    for result, image in zip(results, images(tmp_path)):
        ours = np.abs(result.image) / float(image.meta["RescaleSlope"])
        np.testing.assert_allclose(ours, image.data[0, 0], rtol=1e-4, atol=1e-3)
    with open_scan(scan) as opened:
        again = list(dpmrecon.reconstruct_scan(opened, model=loaded))
    np.testing.assert_array_equal(again[1].image, results[1].image)


def test_a_missing_slice_says_why(simulated_scan, loaded, tmp_path):
    from support.edited import edited

    def cut(number, line):
        return None if line.idx.slice == 1 and line.idx.kspace_encode_step_1 >= 20 else line

    path = simulated_scan(matrix=(48, 64), n_slices=2)
    results = list(dpmrecon.reconstruct_scan(edited(path, tmp_path, cut), model=loaded))
    lost = {result.key.slice: result for result in results}[1]
    assert lost.image is None and lost.missing.startswith("incomplete: ")


BAD = [
    (lambda k: {"kspace": k[0]}, r"the k-space has shape \(48, 64\): \(n_coils, rows, cols\) of a slice"),
    (lambda k: {"kspace": np.abs(k)}, "the k-space is torch.float32: complex values are needed"),
    (lambda k: {"kspace": k.tolist()}, "the k-space is a list: a numpy array or torch tensor"),
    (lambda k: {"kspace": k * np.nan}, "the k-space has values that are not finite"),
    (lambda k: {"kspace": 0 * k}, "the k-space is zero wherever it was acquired"),
    (lambda k: {"kspace": k, "mask": np.ones((4, 4))}, r"the mask has shape \(4, 4\): zeros and ones of shape"),
    (lambda k: {"kspace": k, "mask": np.full((48, 64), 0.5)}, "zeros and ones"),
    (lambda k: {"kspace": k, "maps": k[:, :40]}, r"coil maps have shape \(6, 40, 64\) and the k-space \(6, 48, 64\)"),
    (lambda k: {"kspace": k, "maps": k}, r"the coil maps have sum \|s\|\^2 from"),
    (lambda k: {"kspace": k, "calibration": k[:2, 16:32]}, "the calibration has 2 coils and the k-space 6"),
    (
        lambda k: {"kspace": k, "calibration": np.tile(k[:, 16:32], (1, 6, 1))},
        "the calibration is 96 x 64 and the k-space 48 x 64",
    ),
    (lambda k: {"kspace": k, "calibration": k[:, 12:36]}, "4 of the calibration's 24 lines are zero: give fully"),
    (lambda k: {"kspace": k, "calibration": 0 * k}, "48 of the calibration's 48 lines are zero"),
    (lambda k: {"kspace": k * (np.arange(48) % 2)[:, None]}, "has no fully sampled centre of 8 lines"),
    (lambda k: {"kspace": k, "noise_std": -1.0}, "noise_std is -1.0: give a number above 0"),
    (lambda k: {"kspace": k, "noise_std": np.ones(2)}, r"noise_std is array\(\[1., 1.\]\): give a number above 0"),
    (lambda k: {"kspace": k, "noise_std": True}, "noise_std is True: give a number above 0"),
    (lambda k: {"kspace": k.astype(object)}, "the k-space is an array of type object: numbers are needed"),
    (lambda k: {"kspace": k, "mask": ["1"] * 48}, "the mask is an array of type <U1: numbers are needed"),
    (lambda k: {"kspace": k, "mask": [[1], [1, 1]]}, "the mask is no array of numbers .*: give rows of equal length"),
    (lambda k: {"kspace": k, "model": 5}, "model is 5: give the path of a file"),
    (lambda k: {"kspace": k, "seed": True}, "seed is True: give a whole number"),
    (lambda k: {"kspace": k, "seed": None}, "seed is None: give a whole number"),
    (lambda k: {"kspace": k, "gate": None}, "gate is None: give a text"),
    (lambda k: {"kspace": k, "adapt": "yes"}, "adapt is 'yes': give True or False"),
    (lambda k: {"kspace": k, "steps": 0}, "steps is 0: give 1 or more"),
    (lambda k: {"kspace": k, "samples": "two"}, "samples is 'two': give a whole number"),
    (lambda k: {"kspace": k, "fallback": "off"}, "fallback is 'off': give True or False"),
    (lambda k: {"kspace": k, "mode": "slow"}, "mode is 'slow': valid ones are fast, uncertainty"),
    (lambda k: {"kspace": k, "contrast": "pd"}, "contrast 'pd' is unknown to the model: valid ones are flair"),
    (lambda k: {"kspace": k, "device": "cuda:77"}, "device 'cuda:77' cannot be used"),
    (lambda k: {"kspace": k, "device": "gpu"}, "^device 'gpu' is unknown: give cpu, cuda, or cuda:1 and so on$"),
    (lambda k: {"kspace": k, "device": ""}, "device '' is unknown"),
    (lambda k: {"kspace": k, "device": 0}, "device 0 is unknown"),
    (lambda k: {"kspace": k, "device": True}, "device True is unknown"),
    (lambda k: {"kspace": k, "model": None, "device": "meta"}, "device 'meta' cannot be used"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_a_mistake_is_one_sentence(kspace, loaded, arguments, words):
    with pytest.raises(BadInputError, match=words) as caught:
        dpmrecon.reconstruct(**{"model": loaded, **arguments(kspace)})
    assert "\n" not in str(caught.value)


def test_coil_maps_are_of_fully_sampled_lines_alone(kspace):
    with pytest.raises(
        BadInputError, match="16 of the calibration's 48 lines are zero: give fully sampled lines alone"
    ):
        dpmrecon.estimate_coil_maps(kspace, (48, 64))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": 64}, r"shape is 64: \(rows, cols\) of the image"),
        ({"shape": (64,)}, r"shape is \(64,\)"),
        ({"shape": (64.0, 64.0)}, "whole numbers, are needed"),
        ({"kernel": 0}, "The kernel of the coil maps is 0, but 1 or more"),
        ({"kernel": 2.5}, "kernel is 2.5: give a whole number"),
        ({"max_calibration": 2}, "At most 2 lines of the calibration may be used, but at least 8"),
        ({"max_calibration": "all"}, "max_calibration is 'all': give a whole number"),
        ({"threshold": "2"}, "threshold is '2': give a number"),
        ({"crop": None}, "crop is None: give a number"),
        ({"threshold": 2}, "The threshold of the coil maps is 2, but 0 to 1"),
    ],
)
def test_a_mistake_at_coil_maps_is_one_sentence(kspace, arguments, words):
    with pytest.raises(BadInputError, match=words):
        dpmrecon.estimate_coil_maps(kspace[:, 16:32], **{"shape": (48, 64), **arguments})
    assert dpmrecon.estimate_coil_maps(kspace[:, 16:32], np.array([48, 64])).shape == (6, 48, 64)


def test_an_open_scan_is_taken_as_it_was_opened(simulated_scan, loaded):
    path = simulated_scan(n_coils=6)
    with open_scan(path) as opened:
        for name in ("group", "header_values", "ignore_flags"):
            with pytest.raises(BadInputError, match=f"{name} is of the opening and the scan is open already"):
                next(dpmrecon.reconstruct_scan(opened, model=loaded, **{name: "encoding.reconSpace.matrixSize.x=32"}))


def test_a_closed_scan_says_so(simulated_scan, loaded):
    path = simulated_scan(matrix=(48, 64), n_slices=3)
    taken = {"model": loaded, "steps": 1, "samples": 4}
    with open_scan(path) as opened:
        untouched, begun, done = (dpmrecon.reconstruct_scan(opened, **taken) for _ in range(3))
        next(begun)
        assert [next(done).key.slice for _ in range(3)] == [0, 1, 2]
    for results in (untouched, begun, dpmrecon.reconstruct_scan(opened, **taken)):
        with pytest.raises(BadInputError, match="the scan was closed: read its results inside the `with`"):
            list(results)
    assert list(done) == []


def test_a_scan_that_is_not_open_yet_is_told(simulated_scan, loaded):
    with pytest.raises(BadInputError, match=r"scan is what open_scan gave, and not open: `with open_scan\(path\) as"):
        next(dpmrecon.reconstruct_scan(open_scan(simulated_scan()), model=loaded))


def test_what_was_given_is_not_told_at_length(kspace, loaded):
    with pytest.raises(BadInputError, match="^scan is of type ndarray: give the path of a file$"):
        next(dpmrecon.reconstruct_scan(kspace, model=loaded))
    with pytest.raises(BadInputError, match="^model is of type Denoiser: give the path of a file$"):
        dpmrecon.reconstruct(kspace, model=loaded.model)


@pytest.mark.parametrize("scan", [5, None])
def test_a_scan_is_a_path(loaded, scan):
    with pytest.raises(BadInputError, match=f"scan is {scan}: give the path of a file"):
        list(dpmrecon.reconstruct_scan(scan, model=loaded))
    with pytest.raises(BadInputError, match=f"scan is {scan}"), dpmrecon.open_scan(scan):
        pass
    with pytest.raises(BadInputError, match=f"scan is {scan}"):
        dpmrecon.doctor(scan)
    with pytest.raises(BadInputError, match="prior is 'x': give what load_model gave"):
        dpmrecon.load_model("one-step", "cpu", prior="x")


def test_a_scan_is_taken_as_the_options_say(simulated_scan, model):
    scan = simulated_scan(n_coils=6)
    taken = {"model": model, "steps": 1, "device": "cpu"}
    (whole,), (some,) = (list(dpmrecon.reconstruct_scan(scan, coils=coils, **taken)) for coils in (None, "0-3"))
    assert not np.allclose(whole.image, some.image)
    with pytest.raises(BadInputError, match="header has no"):
        list(dpmrecon.reconstruct_scan(scan, **taken, header_values="encoding.recon=1"))
    with pytest.raises(BadInputError, match="conjugate"):
        list(dpmrecon.reconstruct_scan(scan, **taken, conjugate="perhaps"))
