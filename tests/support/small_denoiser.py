"""A denoiser of a few weights that is no identity, for tests of training."""

import torch
from dpmrecon.prior.denoiser import Denoiser

CONFIG = {"widths": [4, 6], "blocks": [1, 1], "embedding": 8, "labels": ["flair", "t2"], "sigma_data": 0.25}


def denoiser():
    torch.manual_seed(0)
    model = Denoiser(CONFIG)
    for parameter in model.unet.head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model
