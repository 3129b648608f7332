"""The loaded model, shared by the scans of a process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..options import Options
from ..prior.checkpoint import Checkpoint
from ..recon.plan import load


@dataclass(frozen=True)
class Engine:
    """The loaded model, and what runs work on its device: `run(job)` returns job() when its turn has come.

    defaults: of the options that a scan may set. service: the command line sets the process up, and no scan's
    configuration changes it.
    """

    checkpoint: Checkpoint
    device: torch.device
    defaults: Options
    run: Callable[[Callable[[], Any]], Any] = lambda job: job()
    service: bool = False

    @classmethod
    def of(cls, options: Options, run: Callable[[Callable[[], Any]], Any] | None = None) -> "Engine":
        """Load what the options name; `run`, of a service's device. Raises BadInputError and CheckpointError."""
        checkpoint, device = load(options)
        return cls(checkpoint, device, options) if run is None else cls(checkpoint, device, options, run, service=True)
