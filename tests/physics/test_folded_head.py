"""When a second set of maps is taken, and what two sets hold of a folded head."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from dpmrecon.data import Slice
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.physics.coil_compression import compressed
from dpmrecon.physics.coil_maps import estimate_coil_maps, estimate_map_sets
from dpmrecon.physics.fourier import to_image
from dpmrecon.simulation.settings import SimulationSettings
from dpmrecon.simulation.simulate import simulate

from support.bart import bart_maps

SCAN = {"matrix": (96, 96), "n_slices": 1, "wrap": True, "oversampling": 1, "contrast": "t1", "noise": 0.0075}
HEAD_MM = 190.0  # how far the head of subject 0 reaches along the lines, 150 along the readout


def scanned(folder, lines_mm=150.0, **changes) -> Slice:
    settings = SimulationSettings(**{**SCAN, "fov_mm": (lines_mm, 230.0), "acceleration": 2, **changes})
    simulate(folder / "scan.h5", settings)
    with open_scan(folder / "scan.h5") as scan:
        (data,) = slices(scan.acquisitions(), scan.header)
    return compressed(data)


def sets_of(data):
    assert data.calibration is not None
    return estimate_map_sets(data.calibration, tuple(data.mask.shape))


@pytest.mark.parametrize("contrast", ["t1", "t2", "flair", "dwi"])
@pytest.mark.parametrize("n_coils", [8, 16])
def test_a_folded_head_has_two_sets_of_maps(tmp_path, contrast, n_coils):
    lines_mm = 135.0 if contrast == "dwi" else 150.0  # its fat is suppressed: the brain has to fold
    assert len(sets_of(scanned(tmp_path, lines_mm, contrast=contrast, n_coils=n_coils))) == 2


@pytest.mark.parametrize("changes", [{"n_coils": 4}, {"n_coils": 32}, {"noise": 0.02}, {"calibration_lines": 10}])
@pytest.mark.parametrize("subject", [1, 3])
def test_a_folded_head_has_them_in_other_scans_too(tmp_path, changes, subject):
    assert len(sets_of(scanned(tmp_path, subject=subject, **changes))) == 2


@pytest.mark.parametrize(
    ("lines_mm", "n_coils", "calibration_lines"),
    [
        *itertools.product([HEAD_MM + 5], [1, 2, 3, 4, 8, 16, 32], [8, 10, 24]),
        *itertools.product([215.0, 280.0], [1, 4, 16], [8, 24]),
    ],
)
def test_a_head_inside_the_field_of_view_has_one(tmp_path, lines_mm, n_coils, calibration_lines):
    data = scanned(tmp_path, lines_mm, n_coils=n_coils, calibration_lines=calibration_lines)
    sets = sets_of(data)
    assert len(sets) == 1
    assert torch.equal(sets[0], estimate_coil_maps(data.calibration, tuple(data.mask.shape)))


@pytest.mark.parametrize("noise", [0.001, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("contrast", ["t1", "flair", "dwi"])
@pytest.mark.parametrize("n_coils", [4, 8, 16])
def test_noise_does_not_ask_for_a_second_set(tmp_path, noise, contrast, n_coils):
    inside = {"wrap": False}  # nothing lies beyond this field of view
    assert len(sets_of(scanned(tmp_path, 215.0, noise=noise, contrast=contrast, n_coils=n_coils, **inside))) == 1


@pytest.mark.parametrize("changes", [{"swap_phase": True}, {"subject": 3}, {"subject": 7}, {"acceleration": 4},
                                     {"phantom": "letters"}, {"matrix": (161, 75)}])  # fmt: skip
def test_other_heads_inside_the_field_of_view_have_one(tmp_path, changes):
    assert len(sets_of(scanned(tmp_path, 240.0, **changes))) == 1


@pytest.mark.parametrize("contrast", ["t1", "t2", "flair"])
@pytest.mark.parametrize("n_coils", [4, 8, 16])
def test_a_few_percent_too_much_ask_for_a_second_set(tmp_path, contrast, n_coils):
    data = scanned(tmp_path, 0.93 * HEAD_MM, contrast=contrast, n_coils=n_coils, noise=0.001, acceleration=1)
    sets = sets_of(data)
    assert len(sets) == 2
    assert lost(sets, data) < 0.6 * lost(estimate_coil_maps(data.calibration, tuple(data.mask.shape))[None], data)


@pytest.mark.parametrize("contrast", ["t1", "t2", "flair", "dwi"])
@pytest.mark.parametrize("lines_mm", [HEAD_MM, 165.0, 150.0])
def test_the_sets_of_a_head_that_is_cut_off_at_the_edge_hold_it(tmp_path, contrast, lines_mm):
    data = scanned(tmp_path, lines_mm, contrast=contrast, wrap=False)
    one = estimate_coil_maps(data.calibration, tuple(data.mask.shape))[None]
    assert lost(sets_of(data), data) <= lost(one, data)


def test_two_sets_are_orthonormal_and_hold_the_folded_head(tmp_path):
    data = scanned(tmp_path, noise=0.001, acceleration=1)
    sets = sets_of(data)
    here = (sets != 0).any(1)
    gram = torch.einsum("acyx,bcyx->yxab", sets.conj(), sets)
    identity = torch.diag_embed(here.permute(1, 2, 0).to(gram.dtype))
    assert torch.allclose(gram, identity, atol=1e-4)
    # the second set only where the head folds, at the edges
    folded = here[1].any(1).nonzero().flatten().tolist()
    assert 0 in folded and 95 in folded and not set(range(30, 66)) & set(folded)
    one = estimate_coil_maps(data.calibration, (96, 96))[None]
    assert lost(sets, data) < 0.03 < 0.15 < lost(one, data)


@pytest.mark.parametrize("size", [(75, 96), (96, 61)])
def test_odd_sizes(tmp_path, size):
    sets = sets_of(scanned(tmp_path, matrix=size))
    assert sets.shape[0] == 2 and sets.shape[2:] == size


def test_the_first_set_continues_smoothly_to_the_edge(tmp_path):
    sets = sets_of(scanned(tmp_path, noise=0.001))
    down = (sets[0, :, 1:].conj() * sets[0, :, :-1]).sum(0)
    there = down != 0
    assert down.real[there].quantile(0.01) > 0.9  # of neighbours, 1 for equal ones


@pytest.mark.skipif(shutil.which("bart") is None, reason="bart is not installed")
def test_bart_finds_the_same_two_dimensions(tmp_path):
    data = scanned(tmp_path, noise=0.001, acceleration=1)
    theirs = bart_maps(tmp_path, data.calibration, "-m2", "-r24", "-t0.0004", "-c0.9")
    ours = sets_of(data)
    both = (ours != 0).any(1).all(0) & (theirs != 0).any(1).all(0)
    assert both.sum() > 0.6 * (theirs != 0).any(1)[1].sum()
    # projections on the spans: their common part, 2 where they are the same
    overlap = torch.einsum("acyx,bcyx->yxab", ours.conj(), theirs).abs().square().sum((-2, -1))[both]
    assert overlap.quantile(0.02) > 1.98
    assert lost(ours, data) < 1.05 * lost(theirs, data)


def lost(sets, data):
    """The coil images that the maps (n_sets, n_coils, rows, cols) cannot hold, root of a fraction of the energy."""
    images = to_image(data.kspace)
    held = torch.einsum("acyx,cyx->ayx", sets.conj(), images)
    rest = images - torch.einsum("acyx,ayx->cyx", sets, held)
    magnitude = torch.linalg.vector_norm(images, dim=0)
    head = magnitude > 0.1 * np.percentile(magnitude, 99)
    return float(torch.linalg.vector_norm(rest[:, head]) / torch.linalg.vector_norm(images[:, head]))
