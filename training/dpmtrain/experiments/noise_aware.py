"""Training on noisy images without a clean one, where the noise's covariance is known.

The least-squares image of undersampled k-space is s = x + e with e of covariance C = sigma_n^2 (A^H A)^-1, per real
channel. Noise of covariance t^2 - C makes of it s' = x + t n, n white: what D(.; t) is to denoise. Given s', s has the
mean (1 - C/t^2) E[x | s'] + C/t^2 s', so that the D with the least error |(1 - C/t^2) D(s'; t) + C/t^2 s' - s|^2 is
E[x | s'], as if x itself had been the target (after Noisier2Noise, Moran et al., CVPR 2020, and Daras et al.,
Consistent Diffusion Meets Tweedie, ICML 2024, where C is white).

With full readouts A^H A is a matrix for each column; in its eigenvectors, the modes, C is a number each.
"""

from dataclasses import dataclass

import torch
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.physics.fourier import to_image, to_kspace
from dpmrecon.prior.denoiser import complex_noise

UNSEEN = 1e-5  # of A^H A's eigenvalues, 1 at most: below lies what no coil sees, where x is 0
TRUSTED = 0.95  # share of the modes whose noise lies below the lowest level trained


@dataclass(frozen=True)
class Modes:
    """Slices (batch, rows, cols), at scale 1, in their modes.

    vectors: (batch, cols, rows, rows) complex64, a mode in each column of a matrix; variance: (batch, cols, rows)
    float32, of the noise per real channel; image: (batch, cols, rows) complex64, s.
    """

    vectors: torch.Tensor
    variance: torch.Tensor
    image: torch.Tensor

    def lowest_level(self) -> torch.Tensor:
        """(batch,): the standard deviation of the noise that TRUSTED of the modes stay below."""
        levels = [of[of > 0].quantile(TRUSTED).sqrt() for of in self.variance]
        return torch.stack(levels)

    def share(self, level: torch.Tensor) -> torch.Tensor:
        """C/t^2, like `variance`: 1 in the few modes that have more noise than that."""
        return (self.variance / level.square()[:, None, None]).clamp(max=1)

    def noisier(self, level: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """s' in the modes, for levels (batch,)."""
        added = level[:, None, None] * (1 - self.share(level)).sqrt()
        return self.image + added * complex_noise(tuple(self.image.shape), generator)

    def to_image(self, modes: torch.Tensor) -> torch.Tensor:
        """(batch, cols, rows) in the modes to (batch, rows, cols)."""
        return (self.vectors @ modes[..., None])[..., 0].mT

    def to_modes(self, image: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_image`."""
        return (image.mT.conj()[..., None, :] @ self.vectors)[..., 0, :].conj()

    def error(self, denoised: torch.Tensor, noisier: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """(batch,): mean square per real channel, over the pixels, of what the loss makes small.

        denoised: D(s'; t), (batch, rows, cols); noisier: s' in the modes.
        """
        share = self.share(level)
        off = (1 - share) * self.to_modes(denoised) + share * noisier - self.image
        return torch.view_as_real(off).square().mean((1, 2, 3))


def modes_of(model: ForwardModel, zero_filled: torch.Tensor, sigma_n: float) -> Modes:
    """Of one slice; zero_filled: A^H y, (rows, cols); the mask leaves out rows alone; sigma_n: of y."""
    rows = len(zero_filled)
    # F^H P F along the rows
    blurred = to_image(model.mask[:, :1] * to_kspace(torch.eye(rows, dtype=torch.complex64), (-2,)), (-2,))
    normal = torch.einsum("crj,rq,cqj->jrq", model.coil_maps.conj(), blurred, model.coil_maps)
    values, vectors = torch.linalg.eigh(normal)
    seen = values > UNSEEN
    inverse = torch.where(seen, 1 / values.clamp(min=UNSEEN), 0)
    coefficients = (vectors.mH @ zero_filled.mT[..., None])[..., 0]
    return Modes(vectors[None], sigma_n**2 * inverse[None], (inverse * coefficients)[None])
