"""Conventional reconstruction: zero-filled and CG-SENSE, the fallback and where the scale is measured."""

import torch

from .forward import ForwardModel
from .scale import image_scale

# Noise amplification makes the best weight larger than (sigma_n / sigma_data)^2; near the best on patient09 and the
# held-out label map, whose CG-SENSE scores `dpmtrain sweep` prints
WEIGHT_FACTOR = 10.0
PRIOR_STD = 0.25  # rms per real channel of a slice whose scale is 1


def cg_sense(
    model: ForwardModel,
    zero_filled: torch.Tensor,
    sigma_n: float,
    scale: float,
    factor: float = WEIGHT_FACTOR,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """CG-SENSE (Pruessmann et al., MRM 2001) with the l2 weight `factor` (sigma_n / sigma of the image)^2.

    zero_filled: A^H y, (rows, cols), like the result, or of a volume or several sets; sigma_n: std per real channel of
    the noise in y; scale: of the slice, in the same units; start: where the iterations begin. The weight shrinks the
    image; fitting it to the data again takes that back.
    """
    weight = torch.tensor([factor * (sigma_n / (PRIOR_STD * scale)) ** 2]).clamp_min(1e-4)
    if start is None:
        zeros = torch.zeros_like(zero_filled[None])
        image = model.prox(zero_filled, zeros, weight, model.cg_steps)[0]
    else:  # prox draws to its start: the target takes that back
        target = zero_filled - weight.to(start.device) * start
        image = model.prox(target, start[None], weight, model.cg_steps)[0]
    # <A x, y> / ||A x||^2, in the image
    energy = torch.vdot(image.flatten(), model.normal(image[None]).flatten()).real
    return image * (torch.vdot(image.flatten(), zero_filled.flatten()).real / energy.clamp_min(1e-30))


def scaled(
    model: ForwardModel, zero_filled: torch.Tensor, sigma_n: float, *, go_on: bool = False
) -> tuple[float, torch.Tensor]:
    """The scale of an undersampled slice or volume by the rule of `scale.py`, and the CG-SENSE image it was taken from.

    zero_filled: A^H y. Without the fit to the data the scale of a noisy scan comes out 15 % low. The weight needs the
    scale itself: start from the zero-filled image and repeat once, which may go on from the first image.
    """
    scale, image = image_scale(model.combined(zero_filled)), zero_filled
    for last in (False, True):
        if scale == 0:  # nothing but zeros inside the support
            return 0.0, zero_filled
        image = cg_sense(model, zero_filled, sigma_n, scale, start=image if go_on and last else None)
        scale = image_scale(model.combined(image))
    return scale, image
