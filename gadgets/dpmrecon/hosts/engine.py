"""The loaded model, shared by the scans of a process, and what a scan asks of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from ..data import LostSlice, Slice, Volume
from ..options import Options
from ..prior.checkpoint import Checkpoint
from ..recon.adapt import Adaptation
from ..recon.deadline import Deadline
from ..recon.plan import load
from ..recon.prepare import mapped_or_lost
from ..recon.stream import sampled, slices_at_once
from ..recon.types import Reconstruction, Sampling


@dataclass(frozen=True)
class SampleRequest:
    """Slices of a scan, or a volume, to be mapped and sampled; see `sampled` for the rest."""

    items: list[Slice | LostSlice]
    checkpoint: Checkpoint
    device: torch.device
    contrast: str | None
    sampling: Sampling
    deadline: Deadline | None = None
    adaptation: Adaptation | None = None

    def __call__(self) -> Iterator[Reconstruction | LostSlice]:
        mapped = (mapped_or_lost(item, self.device, self.contrast) for item in self.items)
        return sampled(
            mapped, self.checkpoint, self.contrast, self.sampling, deadline=self.deadline, adaptation=self.adaptation
        )

    def with_items(self, items: list[Slice | LostSlice]) -> "SampleRequest":
        return replace(self, items=items)

    def joined(self, other: "SampleRequest") -> "SampleRequest | None":
        """Both, where all slices have one size and are sampled alike, and one batch has room for them. What is adapted
        to its scan, has a deadline, or is a volume is worked on alone."""
        items, sampling = [*self.items, *other.items], self.sampling
        alone = sampling.adapt or sampling.deadline is not None
        alike = (self.contrast, sampling) == (other.contrast, other.sampling)
        if alone or not alike or len(items) > slices_at_once(sampling.batch, sampling.samples):
            return None
        shapes = {item.kspace.shape for item in items if isinstance(item, Slice)}
        return None if len(shapes) > 1 or any(isinstance(item, Volume) for item in items) else self.with_items(items)


@dataclass(frozen=True)
class Engine:
    """The loaded model, and what runs work on its device: `run(request)` gives the results of a request when its turn
    has come.

    defaults: of the options that a scan may set. service: the command line sets the process up, and no scan's
    configuration changes it.
    """

    checkpoint: Checkpoint
    device: torch.device
    defaults: Options
    run: Callable[[SampleRequest], Iterator[Reconstruction | LostSlice]] = lambda request: request()
    service: bool = False

    @classmethod
    def of(
        cls,
        options: Options,
        run: Callable[[SampleRequest], Iterator[Reconstruction | LostSlice]] | None = None,
    ) -> "Engine":
        """Load what the options name; `run`, of a service's device. Raises BadInputError and CheckpointError."""
        checkpoint, device = load(options)
        return cls(checkpoint, device, options) if run is None else cls(checkpoint, device, options, run, service=True)
