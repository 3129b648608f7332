"""ESPIRiT maps against known maps, against sigpy and BART, and against real and simulated scans."""

import math
import shutil

import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics import coil_maps
from dpmrecon.physics.coil_maps import estimate_coil_maps
from dpmrecon.physics.fourier import crop_or_pad, to_image, to_kspace

from support.bart import bart_maps
from support.paths import shared

SHAPE = (75, 62)


def phantom(shape=SHAPE, n_coils=6, noise=0.002, seed=3):
    """Maps (n_coils, rows, cols) of unit norm, head (rows, cols) bool, and k-space of the noisy coil images. The
    first coil has a zero inside the head."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in shape), indexing="ij")
    coils = [0.4 * torch.complex(cols - 0.3, rows + 0.2)]
    for i in range(1, n_coils):
        angle = 2 * math.pi * i / (n_coils - 1)
        y, x = rows - 1.2 * math.sin(angle), cols - 1.2 * math.cos(angle)
        coils.append(torch.polar(1 / (0.3 + x**2 + y**2), 0.6 * x - 0.4 * y + 1.3 * i))
    maps = torch.stack(coils)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    radius = (rows / 0.75) ** 2 + (cols / 0.65) ** 2
    head = radius < 1
    skull = (radius > 0.75) & (radius < 0.85)
    image = head * ~skull * (0.6 + 0.4 * torch.cos(9 * rows) * torch.cos(7 * cols)) * torch.polar(head * 1.0, cols)
    samples = noise * torch.view_as_complex(torch.randn(n_coils, *shape, 2, generator=generator))
    return maps, head, to_kspace(maps * image) + samples


def scan(name):
    return torch.from_numpy(np.load(shared(f"ismrmrd/{name}")))


def scan_or_phantom(which):
    if which == "phantom":
        return phantom()[2]
    return to_kspace(scan("t1_brain_truth_coil_images.npy")[0])


def centre(kspace, rows, cols):
    r, c = kspace.shape[1] // 2 - rows // 2, kspace.shape[2] // 2 - cols // 2
    return kspace[:, r : r + rows, c : c + cols]


def support(maps):
    return (maps != 0).any(0)


def agreement(ours, theirs):
    """|<s, s'>| on the joint support, where both have norm 1."""
    both = support(ours) & support(theirs)
    return (ours.conj() * theirs).sum(0).abs()[both]


def dice(ours, theirs):
    a, b = support(ours), support(theirs)
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("calibration", [(24, 24), (75, 62), (17, 62), (21, 12), (75, 13)])
def test_known_maps_are_found_from_calibrations_of_any_size(calibration):
    maps, head, kspace = phantom()
    estimate = estimate_coil_maps(centre(kspace, *calibration), SHAPE)
    assert estimate.shape == maps.shape and estimate.dtype == torch.complex64
    assert bool(support(estimate)[head].all())
    norm = torch.linalg.vector_norm(estimate, dim=0)
    assert torch.allclose(norm, support(estimate).float(), atol=1e-5)
    assert agreement(estimate, maps * head).min() > 0.99


@pytest.mark.parametrize("calibration", [(8, 62), (8, 8), (75, 8), (9, 24), (10, 62), (11, 10), (12, 24), (13, 13)])
def test_few_lines_get_a_kernel_that_fits_them(calibration):
    maps, head, kspace = phantom()
    estimate = estimate_coil_maps(centre(kspace, *calibration), SHAPE)
    assert support(estimate)[head].all()
    # the worst pixel lies at the first coil's zero; eight samples each way know no more
    assert agreement(estimate, maps * head).quantile(0.02) > (0.97 if calibration == (8, 8) else 0.985)


def test_a_kernel_that_is_asked_for_is_taken():
    kspace = centre(phantom()[2], 24, 24)
    assert torch.equal(estimate_coil_maps(kspace, SHAPE, kernel=6), estimate_coil_maps(kspace, SHAPE))
    assert not torch.equal(estimate_coil_maps(kspace, SHAPE, kernel=5), estimate_coil_maps(kspace, SHAPE))
    with pytest.raises(BadInputError, match="has 9 lines, but at least 10"):
        estimate_coil_maps(kspace[:, :9], SHAPE, kernel=8)


def test_background_is_outside_the_support():
    _, head, kspace = phantom()
    found = support(estimate_coil_maps(kspace, SHAPE))
    assert found[head].all() and found[~head].float().mean() < 0.6
    assert not found[:, :3].any() and not found[:3].any()


def test_phase_has_no_vortex_in_the_head():
    maps, head, kspace = phantom()
    estimate = estimate_coil_maps(kspace, SHAPE)
    phase = (estimate.conj() * maps).sum(0)
    assert largest_step(phase, head) < 0.5
    # with the first coil, which has a zero, as phase reference
    assert largest_step(phase * torch.sgn(estimate[0]), head) > 1.5


def largest_step(image, head):
    """The largest phase difference (rad) between neighbours that are both in the head."""
    steps = []
    for axis in (0, 1):
        size = image.shape[axis] - 1
        a, b = image.narrow(axis, 0, size), image.narrow(axis, 1, size)
        steps.append((a * b.conj()).angle().abs()[head.narrow(axis, 0, size) & head.narrow(axis, 1, size)].max())
    return float(max(steps))


def test_order_of_coils_and_scale_of_the_data_change_nothing():
    kspace = phantom()[2]
    maps = estimate_coil_maps(kspace, SHAPE)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    permuted = estimate_coil_maps(kspace[order], SHAPE)
    assert torch.allclose(permuted, maps[order], atol=1e-3)
    for factor in (1e-7, 1e6, 3j):
        assert torch.allclose(estimate_coil_maps(factor * kspace, SHAPE), maps, atol=1e-3)


def test_chunks_change_nothing(monkeypatch):
    kspace = phantom()[2]
    maps = estimate_coil_maps(kspace, SHAPE)
    monkeypatch.setattr(coil_maps, "CHUNK", 7 * SHAPE[1] * 36)  # 7 rows at once: 75 is no multiple
    assert torch.allclose(estimate_coil_maps(kspace, SHAPE), maps, atol=1e-4)


def test_dominant_eigenvector_is_exact():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.view_as_complex(torch.randn(400, 5, 5, 2, generator=generator))
    values = torch.rand(400, 5, generator=generator) * 0.8
    values[:, 0] = torch.linspace(0, 1, 400)
    basis = torch.linalg.qr(matrices)[0]
    matrices = basis * values[:, None] @ basis.mH
    vectors, found = coil_maps.dominant(matrices, torch.ones(5, dtype=torch.complex64))
    inside = values[:, 0] >= 0.95
    assert torch.equal(found >= 0.95, inside)
    assert (vectors.conj() * basis[:, :, 0]).sum(1).abs()[inside].min() > 0.9999
    for factor in (0.55, 0.3, 0.1, 1e-12):  # the power nears, reaches and passes underflow
        assert (coil_maps.dominant(matrices * factor, torch.ones(5, dtype=torch.complex64))[1] < 0.6).all()


def test_one_coil():
    _, head, kspace = phantom()
    image = torch.ones(SHAPE, dtype=torch.complex64) * head
    maps = estimate_coil_maps(to_kspace(image)[None], SHAPE)
    assert maps.shape == (1, *SHAPE)
    assert torch.allclose(maps[0], support(maps).to(torch.complex64), atol=1e-5)
    assert support(maps)[head].all() and not support(maps).all()


@pytest.mark.parametrize(
    ("calibration", "shape", "message"),
    [
        (torch.ones(4, 7, 24, dtype=torch.complex64), SHAPE, "has 7 lines, but at least 8"),
        (torch.ones(4, 24, 7, dtype=torch.complex64), SHAPE, "has 7 samples, but at least 8"),
        (torch.ones(24, 24, dtype=torch.complex64), SHAPE, r"shape \(24, 24\)"),
        (torch.ones(4, 24, 24, dtype=torch.complex64), (9, 62), "9 x 62, but coil maps need at least 11"),
        (torch.zeros(4, 24, 24, dtype=torch.complex64), SHAPE, "zero or"),
        (torch.full((4, 24, 24), complex("nan")), SHAPE, "not finite"),
    ],
)
def test_unusable_input_is_refused(calibration, shape, message):
    with pytest.raises(BadInputError, match=message):
        estimate_coil_maps(calibration, shape)


def test_crop_out_of_range_is_refused():
    with pytest.raises(BadInputError, match=r"crop of the coil maps is 0\.5"):
        estimate_coil_maps(phantom()[2], SHAPE, crop=0.5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("which", ["phantom", "t1_brain"])
def test_sigpy_finds_the_same_maps(which):
    sigpy_app = pytest.importorskip("sigpy.mri.app", reason="sigpy is not installed", exc_type=ImportError)
    kspace = scan_or_phantom(which)
    calib = sigpy_app.EspiritCalib(kspace.numpy(), 24, thresh=0.02, crop=0.9, show_pbar=False)
    theirs = torch.from_numpy(calib.run())
    ours = estimate_coil_maps(kspace, kspace.shape[1:])
    assert agreement(ours, theirs).min() > 0.999
    assert dice(ours, theirs) > 0.99


@pytest.mark.skipif(shutil.which("bart") is None, reason="bart is not installed")
@pytest.mark.parametrize("which", ["phantom", "t1_brain"])
def test_bart_finds_the_same_maps(which, tmp_path):
    kspace = scan_or_phantom(which)
    # its threshold is on squared singular values
    theirs = bart_maps(tmp_path, kspace, "-m1", "-r24", "-t0.0004", "-c0.9")
    ours = estimate_coil_maps(kspace, kspace.shape[1:])
    magnitude = torch.linalg.vector_norm(to_image(kspace), dim=0)
    assert agreement(ours, theirs * (magnitude > 0.1 * magnitude.max())).min() > 0.999
    # BART stops its iteration early, which shows where a second eigenvalue is close, far from the head
    assert agreement(ours, theirs).quantile(0.01) > 0.99
    assert dice(ours, theirs) > 0.95


@pytest.mark.skipif(shutil.which("bart") is None, reason="bart is not installed")
def test_eight_lines_serve_as_well_as_with_barts_smaller_kernel(tmp_path):
    maps, head, kspace = phantom()
    lines = centre(kspace, 8, SHAPE[1])
    padded = crop_or_pad(lines, SHAPE[0], 1)
    theirs = bart_maps(tmp_path, padded, "-m1", "-k4", "-r8:24:1", "-t0.0004", "-c0.8")
    ours = estimate_coil_maps(lines, SHAPE)
    true = to_image(kspace)
    assert residual(ours, true, head) < 1.02 * residual(theirs, true, head)


def residual(maps, images, head):
    """Energy of the coil images (n_coils, rows, cols) that the maps cannot hold, as a fraction, square root."""
    lost = images - (maps.conj() * images).sum(0) * maps
    return float(torch.linalg.vector_norm(lost[:, head]) / torch.linalg.vector_norm(images[:, head]))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_maps_hold_the_simulated_scan(which):
    images = scan("flair_3slices_object.npy")[which] * scan("flair_3slices_coils.npy")
    magnitude = torch.linalg.vector_norm(images, dim=0)
    head = magnitude > 0.05 * magnitude.max()
    kspace = to_kspace(images)
    maps = estimate_coil_maps(centre(kspace, 24, 256), images.shape[1:])
    assert support(maps)[head].all()
    assert residual(maps, images, head) < 0.01


def test_maps_hold_the_real_head():
    images = scan("t1_brain_truth_coil_images.npy")[0]
    magnitude = torch.linalg.vector_norm(images, dim=0)
    head = magnitude > 0.1 * magnitude.max()
    kspace = to_kspace(images)
    maps = estimate_coil_maps(centre(kspace, 24, 230), images.shape[1:])
    assert support(maps)[head].float().mean() > 0.999
    assert support(maps)[scan("t1_brain_mask.npy")[0].bool()].float().mean() > 0.9
    assert residual(maps, images, head) < 0.1  # the coil images carry noise
