"""What others would reconstruct: deepinv's DPS and DiffPIR on our denoiser, and what a Gadgetron returned.

deepinv (Tachella et al., 2025) is optional: `pip install deepinv`.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.prior.problem import Problem


def import_deepinv() -> tuple[Any, str | None]:
    """deepinv, or None and the reason: it may be absent, or its torchvision built for another torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's packages
            import deepinv
    except (ImportError, RuntimeError, OSError) as error:
        return None, f"deepinv cannot be imported ({str(error).splitlines()[0]}): pip install deepinv"
    return deepinv, None


Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x (batch, rows, cols), sigma (batch,)) -> x0


def as_complex(channels: torch.Tensor) -> torch.Tensor:
    """(batch, 2, ...) float -> (batch, ...) complex."""
    return torch.view_as_complex(channels.movedim(1, -1).contiguous())


def as_channels(array: torch.Tensor) -> torch.Tensor:
    """(batch, ...) complex -> (batch, 2, ...) float."""
    return torch.view_as_real(array).movedim(-1, 1)


class RealDenoiser(torch.nn.Module):
    """A denoiser of complex images as deepinv calls it: (batch, 2, rows, cols) float32, sigma a number or (batch,).

    Our sigma is per real channel and so is theirs. The image that deepinv sees is (1 + x / span) / 2 with `span`, as
    DiffPIR wants it in [0, 1], and x itself without.
    """

    def __init__(self, denoise: Denoise, span: float | None = None):
        super().__init__()
        self.denoise, self.span = denoise, span

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, *args, **kwargs) -> torch.Tensor:
        levels = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1).expand(len(x))
        if self.span is None:
            return as_channels(self.denoise(as_complex(x), levels))
        image = self.denoise(as_complex(self.span * (2 * x - 1)), 2 * self.span * levels)
        return (1 + as_channels(image) / self.span) / 2


def deepinv_dps(problem: Problem, denoise: Denoise, steps: int, weight: float, seed: int) -> torch.Tensor:
    """`deepinv.sampling.DPS` as it comes (VP schedule from sigma = 152 down, DDPM solver): (batch, rows, cols).

    Two things are not its defaults: the network's output is not clipped to [-1, 1], which suits photographs and cuts
    the brightest percent of a slice, and nothing is rescaled (`minus_one_one`): images of scale 1 lie about in
    [-1, 1], the range of its state.
    """
    # time points: the network is not evaluated at the last one, sigma = 0
    sampler = dps_sampler(denoise, seed, weight=weight, num_steps=steps + 1)
    return run_dps(sampler, problem, (len(problem.start), 2, *problem.start.shape[-2:]))


def dps_sampler(denoise: Denoise, seed: int, **options) -> Any:
    """deepinv's DPS with what `deepinv_dps` changes. Raises BadInputError where deepinv cannot be imported."""
    rng = torch.Generator().manual_seed(seed)
    sampler = _deepinv().sampling.DPS(RealDenoiser(denoise), minus_one_one=False, rng=rng, **options)
    sampler.data_fidelity.clip = None
    return sampler


def run_dps(sampler: Any, problem: Problem, start: torch.Tensor | tuple[int, ...]) -> torch.Tensor:
    """Image (batch, rows, cols) of deepinv's DPS for a problem. start: its first state, or the shape of one."""
    found = sampler(as_channels(problem.kspace), _physics(problem.model), x_init=start)
    return as_complex(found.float())


def deepinv_diffpir(
    problem: Problem, denoise: Denoise, steps: int, weight: float, seed: int, zeta: float = 1.0, span: float = 1.0
) -> torch.Tensor:
    """`deepinv.sampling.DiffPIR` (Zhu et al., 2023) with its lambda = `weight`: (batch, rows, cols).

    It clamps denoised images to [0, 1], which stands for real and imaginary parts from -span to span. zeta: share of
    fresh noise. The image is what the network makes of the last state: deepinv computes it, and returns the state
    itself, whose noise of .01 span alone would be an NRMSE of .03 span.
    """
    deepinv = _deepinv()
    images: list[torch.Tensor] = []

    def last(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        images[:] = [denoise(x, sigma)]
        return images[0]

    sampler = deepinv.sampling.DiffPIR(
        RealDenoiser(last, span),
        deepinv.optim.data_fidelity.L2(),
        sigma=float(problem.sigma_n[0]) / (2 * span),
        max_iter=steps,
        zeta=zeta,
        lambda_=weight,
    )
    middle = problem.model.forward(torch.full_like(problem.start, 1 + 1j))
    kspace = (problem.kspace / span + middle) / 2
    start = (1 + as_channels(problem.start) / span) / 2
    with torch.random.fork_rng(devices=[]):  # it draws from the global generator
        torch.manual_seed(seed)
        sampler(as_channels(kspace), _physics(problem.model), x_init=start)
    return images[0]


def _deepinv() -> Any:
    deepinv, reason = import_deepinv()
    if deepinv is None:
        raise BadInputError(str(reason))
    return deepinv


def _physics(model: ForwardModel) -> Any:
    class Physics(_deepinv().physics.LinearPhysics):  # type: ignore[name-defined, misc]
        """Our operator, the fast A^H A for its conjugate gradients too."""

        def A_adjoint_A(self, x: torch.Tensor, **kwargs) -> torch.Tensor:
            return as_channels(model.normal(as_complex(x)))

    return Physics(
        A=lambda x, **_: as_channels(model.forward(as_complex(x))),
        A_adjoint=lambda y, **_: as_channels(model.adjoint(as_complex(y))),
    )


def gadgetron_images(path: Path) -> dict[int, np.ndarray]:
    """Slice number -> magnitude (rows, cols) float32 of an image file that a Gadgetron's client wrote (group `res`).

    Its intensities have a unit of their own. Raises BadInputError where the file holds no such images.
    """
    import ismrmrd

    try:
        dataset = ismrmrd.Dataset(str(path), "res", False)
        images = [dataset.read_image("image_1", n) for n in range(dataset.number_of_images("image_1"))]
        dataset.close()
    except (OSError, LookupError) as error:
        raise BadInputError(f"{path} is no image file of a Gadgetron ({error}): give another folder") from error
    return {int(image.slice): np.abs(image.data.squeeze()).astype(np.float32) for image in images}
