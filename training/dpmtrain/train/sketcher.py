"""LDPM's Sketcher for a GPU: SwinIR (Liang et al., ICCV 2021) on the zero-filled image.

On a CPU it takes seconds a crop. What ships shows the ControlNet another sketch: `prior/samplers/latent.py` says which.
"""

import torch
from dpmrecon.errors import BadInputError, first_line
from torch import nn


class SwinSketcher(nn.Module):
    """spandrel's SwinIR on two real channels. config: `labels`, which it does not see, and SwinIR's own words.

    Raises BadInputError without spandrel, or for what it cannot build.
    """

    def __init__(self, config: dict):
        super().__init__()
        try:
            from spandrel.architectures.SwinIR import SwinIR
        except ImportError as error:
            raise BadInputError(
                "the stage sketcher needs spandrel, which is not installed: pip install dpmrecon[sketcher]"
            ) from error
        self.config, self.labels = config, tuple(config["labels"])
        words = {name: value for name, value in config.items() if name != "labels"}
        try:
            self.network = SwinIR(in_chans=2, upscale=1, upsampler="", img_range=1.0, resi_connection="1conv", **words)
        except (TypeError, ValueError) as error:
            raise BadInputError(f"SwinIR cannot be built ({first_line(error)}): correct the recipe") from error

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, rows, cols) complex64 to the same."""
        found = self.network(torch.view_as_real(images).permute(0, 3, 1, 2).contiguous()).float()
        return torch.view_as_complex(found.permute(0, 2, 3, 1).contiguous())
