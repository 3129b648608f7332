"""Where an autoencoder with random weights begins: at a linear code of blocks of pixels, by principal components.

Group normalisation divides an image by its own energy, which a crop and a slice with air around it do not share. Here
one channel before each normalisation is a large constant: it sets the mean and the deviation, and the rest passes as it
is. As silu(x) - silu(-x) = x, the layers around it are linear too. Residual branches begin at zero.
"""

from typing import Any

import torch
import torch.nn.functional as F
from dpmrecon.errors import BadInputError
from torch import nn

CONSTANT = 64.0  # some 100 times the energy of all other channels
LOG_VARIANCE = -12.0  # of the latents: what is drawn is the mean but for .0025
RIDGE = 1e-5  # of the blocks' energy, in the least-squares decoder


@torch.no_grad()
def begin_linear(autoencoder: Any, blocks: torch.Tensor) -> None:
    """Set an AutoencoderKL of one level, with one group in each normalisation, to the linear code of `blocks`.

    blocks: (n, in_channels, h, w) float32, what it is shown. The encoder takes the strongest principal components of a
    block. The decoder makes it from them and those of its 8 neighbours, by least squares. Raises BadInputError for an
    autoencoder of another shape.
    """
    config = autoencoder.config
    width, latents, numbers = config.block_out_channels[0], config.latent_channels, config.in_channels
    if len(config.block_out_channels) != 1 or config.norm_num_groups != 1 or not latents <= numbers <= (width - 1) // 2:
        raise BadInputError(
            "a linear start needs one level, norm_num_groups = 1, and more than twice as many block_out_channels as "
            f"in_channels, not {tuple(config.block_out_channels)}, {config.norm_num_groups} and {numbers}: correct the "
            "recipe"
        )
    for name, module in autoencoder.named_modules():
        if isinstance(module, nn.GroupNorm):
            _pass(module)
        elif isinstance(module, nn.Conv2d) and name.endswith("conv2"):
            _zero(module)
        elif isinstance(module, nn.Conv2d) and name.endswith(("conv_in", "conv1")):
            module.weight[-1] = 0.0
            module.get_parameter("bias")[-1] = CONSTANT
    vectors = blocks.movedim(1, -1).flatten(0, -2).double()
    code = torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)[:, :latents].float()
    around = F.unfold(torch.einsum("nchw,ck->nkhw", blocks, code), 3, padding=1).mT.flatten(0, 1).double()
    square = around.T @ around
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square))
    back = torch.linalg.solve(square + ridge, around.T @ vectors).float()
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    _linear(encoder.conv_in, encoder.conv_out, code.T[..., None, None])
    encoder.conv_out.bias[latents:] = LOG_VARIANCE
    _linear(decoder.conv_in, decoder.conv_out, back.T.reshape(numbers, latents, 3, 3))
    for conv in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)


def _zero(conv: nn.Conv2d) -> None:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


def _linear(first: nn.Conv2d, last: nn.Conv2d, weight: torch.Tensor) -> None:
    """The first convolution hands each channel on as it is and negative; the last one computes `weight` of the two."""
    count = first.in_channels
    nn.init.zeros_(first.weight)
    for channel in range(count):
        first.weight[channel, channel, 1, 1] = 1.0
        first.weight[count + channel, channel, 1, 1] = -1.0
    first.get_parameter("bias")[:-1] = 0.0
    _zero(last)
    edge = (3 - weight.shape[-1]) // 2
    inner = last.weight[: len(weight), :, edge : 3 - edge, edge : 3 - edge]
    inner[:, :count] = weight
    inner[:, count : 2 * count] = -weight


def _pass(norm: nn.GroupNorm) -> None:
    """A normalisation that undoes what the constant makes it do."""
    channels = norm.num_channels
    nn.init.constant_(norm.weight, CONSTANT * (channels - 1) ** 0.5 / channels)
    nn.init.constant_(norm.bias, CONSTANT / channels)
    norm.weight[-1] = norm.bias[-1] = 0.0
