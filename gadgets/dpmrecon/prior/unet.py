"""The network inside the denoiser: a norm-free residual U-Net for any matrix size.

There is no normalisation over the image on purpose: its statistics would differ between the crops seen in
training and the whole slices seen in reconstruction. Noise level and contrast act as a scale and a shift of the
channels in every block.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Residual block: conv, scale and shift by the embedding, SiLU, conv. Starts as the identity."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * channels)
        _zero(self.second)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        return x + self.second(F.silu(torch.addcmul(shift, self.first(x), 1 + scale)))


class Blocks(nn.ModuleList):
    """The residual blocks of one level, one after the other."""

    def __init__(self, channels: int, embedding: int, count: int):
        super().__init__(Block(channels, embedding) for _ in range(count))

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        for block in self:
            x = block(x, embedding)
        return x


class UNet(nn.Module):
    """(batch, 2 * images, rows, cols) float32 to (batch, 2, rows, cols); `widths` and `blocks` are per level, finest
    first; numbers: scalars beside the images that the network is told.

    The first level works on 2x2 pixel-unshuffled data (half the matrix in each direction). Levels halve with
    ceil: an odd side is padded by one row or column of zeros on the way down and cropped on the way up.
    """

    def __init__(
        self, widths: list[int], blocks: list[int], embedding: int, n_labels: int, images: int = 1, numbers: int = 1
    ):
        super().__init__()
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, 4.0, 16)), persistent=False)
        self.embed_noise = nn.Sequential(nn.Linear(32 * numbers, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.embed_label = nn.Linear(n_labels, embedding, bias=False)
        self.stem = nn.Conv2d(8 * images, widths[0], 3, padding=1)
        self.head = nn.Conv2d(widths[0], 8, 3, padding=1)
        _zero(self.head)
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, blocks)):
            self.down_blocks.append(Blocks(width, embedding, count))
            if level + 1 < len(widths):
                self.down.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
                self.up.append(nn.ConvTranspose2d(widths[level + 1], width, 2, stride=2))
                self.up_blocks.append(Blocks(width, embedding, count))

    def forward(self, x: torch.Tensor, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """`noise` (batch,) or (batch, numbers): functions of the noise level and the like near unit range; `label`
        (batch, n_labels) one-hot or zeros."""
        angles = (noise.reshape(len(noise), -1, 1) * self.frequencies).flatten(1)
        embedding = F.silu(self.embed_noise(torch.cat([angles.cos(), angles.sin()], 1)) + self.embed_label(label))
        rows, cols = x.shape[-2:]
        h = self.stem(F.pixel_unshuffle(_pad_even(x), 2))
        skips = []
        for level, blocks in enumerate(self.down_blocks):
            h = blocks(h, embedding)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](_pad_even(h))
        for level in reversed(range(len(self.up))):
            skip = skips.pop()
            h = self.up[level](h)[..., : skip.shape[-2], : skip.shape[-1]] + skip
            h = self.up_blocks[level](h, embedding)
        return F.pixel_shuffle(self.head(h), 2)[..., :rows, :cols]


def _zero(layer: nn.Conv2d) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _pad_even(x: torch.Tensor) -> torch.Tensor:
    rows, cols = x.shape[-2:]
    return F.pad(x, (0, cols % 2, 0, rows % 2)) if rows % 2 or cols % 2 else x
