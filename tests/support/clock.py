"""Time that passes only where a test says so."""

from dataclasses import dataclass

import torch


@dataclass
class Clock:
    """Seconds that stand still but for what a test adds to `now`, and for `per_image` of each network it watches."""

    now: float = 0.0
    per_image: float = 0.0

    def __call__(self) -> float:
        return self.now

    def watch(self, network: torch.nn.Module) -> None:
        """From now on an evaluation of the network takes `per_image` seconds for each of its images."""
        network.register_forward_hook(self._evaluated)

    def _evaluated(self, network: torch.nn.Module, given: tuple, images: torch.Tensor) -> None:
        self.now += self.per_image * len(images)
