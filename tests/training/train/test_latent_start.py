"""The linear start of an autoencoder: it is the code of the strongest components, at any scale; what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from dpmrecon.errors import BadInputError
from dpmtrain.train.latent_stages import nearly_real
from dpmtrain.train.latent_start import begin_linear

from support.latent import CONFIG, latent_model

PATCHED = {
    **CONFIG,
    "patch": 2,
    "autoencoder": {
        "in_channels": 8,
        "out_channels": 8,
        "latent_channels": 4,
        "block_out_channels": [20],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 1,
        "mid_block_add_attention": False,
    },
}


def smooth(n: int, rows: int, cols: int) -> torch.Tensor:
    """Images that four of a block's eight numbers nearly tell: (n, rows, cols) complex64."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 2, rows // 3, cols // 3, generator=generator)
    parts = F.interpolate(coarse, (rows, cols), mode="bicubic", align_corners=True)
    return torch.complex(parts[:, 0], parts[:, 1])


def started(images: torch.Tensor):
    model = latent_model(PATCHED)
    begin_linear(model.autoencoder, F.pixel_unshuffle(model.padded(images), model.patch))
    return model


def test_the_start_is_linear_and_better_than_the_components_alone():
    images = smooth(6, 24, 40)
    model = started(images)
    once, twice = model.encode(images), model.encode(3 * images)
    torch.testing.assert_close(twice, 3 * once, rtol=0.01, atol=0.01 * float(once.abs().max()))
    blocks = F.pixel_unshuffle(model.padded(images), 2).movedim(1, -1).flatten(0, -2)
    kept = torch.linalg.svd(blocks, full_matrices=False).Vh[:4]
    alone = (blocks - blocks @ kept.T @ kept).square().sum().sqrt()
    lost = (model.decode(once, 24, 40) - images).abs().square().sum().sqrt()
    assert lost < alone < 0.3 * images.abs().square().sum().sqrt()


def test_air_around_an_image_changes_nothing_inside():
    images = smooth(2, 24, 40)
    model = started(images)
    wide = F.pad(images, (40, 40, 24, 24))
    inside = model.decode(model.encode(wide), 72, 120)[:, 24:48, 40:80]
    torch.testing.assert_close(inside, model.decode(model.encode(images), 24, 40), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("changes", [{"norm_num_groups": 2}, {"block_out_channels": [16]}])
def test_another_shape_is_refused(changes):
    model = latent_model({**PATCHED, "autoencoder": {**PATCHED["autoencoder"], **changes}})
    before = copy.deepcopy(model.autoencoder.state_dict())
    with pytest.raises(BadInputError, match="a linear start needs one level, norm_num_groups = 1"):
        begin_linear(model.autoencoder, torch.zeros(1, 8, 4, 4))
    assert all(torch.equal(before[name], value) for name, value in model.autoencoder.state_dict().items())


def test_nearly_real_images_are_those_of_the_code():
    real, other = torch.ones(1, 4, 4, dtype=torch.complex64), torch.full((1, 4, 4), 1 + 0.5j)
    assert torch.equal(nearly_real(torch.cat([other, real])), real)
    assert torch.equal(nearly_real(other), other)
