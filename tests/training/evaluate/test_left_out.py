"""What images miss of the lines that were left out."""

import pytest
import torch
from dpmrecon.prior.denoiser import complex_noise
from dpmtrain.evaluate.plan import Condition
from dpmtrain.evaluate.references import CPU
from dpmtrain.evaluate.scoring import Undersampled, true_image
from dpmtrain.evaluate.validation import full_slice

SIGMA = 0.05


def head(rows: float = 0.8, scan_R: int = 1, sigma: float = SIGMA) -> Undersampled:
    """rows: half of the head's length over that of the field of view, above 1 it folds."""
    down, along = torch.meshgrid(torch.linspace(-1, 1, 63), torch.linspace(-1, 1, 56), indexing="ij")
    inside = (down / rows) ** 2 + (along / 0.7) ** 2 < 1
    image = inside * (0.6 + 0.3 * torch.sin(7 * down) * torch.cos(5 * along))
    return Undersampled(full_slice("head", 0, "t1", image, sigma), Condition("regular", 4, 20, scan_R), CPU)


@pytest.mark.parametrize("scan_R", [1, 2])
def test_the_truth_misses_the_noise_and_noise_gains_nothing(scan_R):
    """Noise of the pixels of variance q adds its energy to the noise's: q of each coil's pixel, as maps are of norm 1
    over the coils."""
    here = head(scan_R=scan_R)
    truth = true_image(here.mapped, here.full.coil_images)
    support, n_coils = here.mapped.model.support, len(here.full.coil_images)
    least = here.missed(truth)
    assert least == pytest.approx(1, abs=0.03)
    noisy = truth + support * 2 * SIGMA * complex_noise(tuple(truth.shape), torch.Generator().manual_seed(1))
    added = 4 * float(support.mean()) / n_coils
    assert here.missed(noisy) ** 2 - least**2 == pytest.approx(added, rel=0.1)


@pytest.mark.parametrize("scan_R", [1, 2])
def test_only_lines_that_were_not_given_are_asked(scan_R):
    here = head(scan_R=scan_R)
    given, asked = here.mapped.data.mask, here.left_out.data.mask
    assert torch.equal(given + asked, here.reference.data.mask)
    assert (here.left_out.data.kspace.abs().sum((0, 2)) > 0).tolist() == asked[:, 0].bool().tolist()


def test_two_sets_of_maps_share_the_image():
    here = head(rows=1.1, sigma=SIGMA / 5)
    assert here.mapped.n_sets == 2
    truth = here.mapped.model.combined(true_image(here.mapped, here.full.coil_images))
    assert here.missed(truth) == pytest.approx(1, abs=0.05)
