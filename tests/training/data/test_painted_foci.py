"""Foci painted into training slices: where they lie, how large and how bright they are."""

import numpy as np
import pytest
import torch
from dpmtrain.data.painted_foci import DEPTH, HEIGHT, MOST, MOST_ELSEWHERE, RADIUS, SEEN, SHARE, with_foci
from scipy import ndimage


def slices_with_foci(contrast, count=60, shape=(61, 47)):
    """(before, after) of slices with an edge, bright on one side."""
    image = torch.full(shape, 0.02)
    image[:, 15:] = 0.8
    generator = torch.Generator().manual_seed(1)
    return [(image, with_foci(image, contrast, generator)[0]) for _ in range(count)]


def test_as_many_slices_as_announced_get_some():
    changed = [not torch.equal(before, after) for before, after in slices_with_foci("dwi")]
    assert np.mean(changed) == pytest.approx(SHARE["dwi"], abs=0.15)


@pytest.mark.parametrize("contrast, brighter", [("dwi", True), ("swi", False)])
def test_foci_lie_in_tissue_and_are_of_its_size_and_signal(contrast, brighter):
    ratios, sizes, counts = [], [], []
    for before, after in slices_with_foci(contrast):
        ratio = (after / before).numpy()
        labels, count = ndimage.label(np.abs(ratio - 1) > 1e-3)
        counts.append(count)
        assert not np.any(labels[:, :10])  # tissue begins at column 15, and a focus reaches 5
        ratios += list(ratio[labels > 0])
        sizes += [np.sum(labels == number) for number in range(1, count + 1)]
    assert 3 < max(counts) <= MOST.get(contrast, MOST_ELSEWHERE)
    assert np.mean(np.array(ratios) > 1) > 0.8 if brighter else np.mean(np.array(ratios) < 1) > 0.8
    assert 1 - DEPTH[1] - 1e-3 < min(ratios) and max(ratios) < 1 + HEIGHT[1] + 1e-3
    assert np.median(sizes) <= np.pi * (RADIUS[1] + 1) ** 2  # some lie on each other


def test_a_complex_slice_keeps_its_phase_and_an_empty_one_stays():
    phase = torch.polar(torch.ones(33, 29), torch.linspace(-3, 3, 29).expand(33, 29))
    image, generator = 0.7 * phase, torch.Generator().manual_seed(2)
    for _ in range(10):
        found, where = with_foci(image, "dwi", generator)
        assert torch.equal(where > 0, (found / image).abs().sub(1).abs() > SEEN)
        assert torch.allclose((found * phase.conj()).imag, torch.zeros(1), atol=1e-6)
    empty = torch.zeros(33, 29)
    found, where = with_foci(empty, "dwi", generator)
    assert torch.equal(found, empty) and not where.any()
