"""Tiny latent models, for tests that skip where diffusers is not installed."""

from typing import Any

import pytest
import torch
from dpmrecon.contrasts import LABELS

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
}
CONFIG: dict[str, Any] = {
    "labels": list(LABELS),
    "patch": 1,
    "autoencoder": {
        "in_channels": 2,
        "out_channels": 2,
        "latent_channels": 4,
        "block_out_channels": [4, 4, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "mid_block_add_attention": False,
    },
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "num_class_embeds": len(LABELS) + 1,
    },
    "schedule": SCHEDULE,
}


def latent_model(config: dict[str, Any] = CONFIG):
    """Always the same random weights, of which the ControlNet's outputs are none."""
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e .[latent]")
    from dpmrecon.prior.latent import LatentModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LatentModel(config)
        model.start_controlnet()
        for layer in [*model.controlnet.controlnet_down_blocks, model.controlnet.controlnet_mid_block]:
            torch.nn.init.normal_(layer.weight, std=0.3)
    return model.requires_grad_(False).eval()
