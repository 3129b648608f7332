"""How many scans fit into memory at a time: what each needs is `estimate`'s measurement, made once."""

import contextlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..memory import SHARE, free_memory
from ..mrd.receiving import open_as
from ..options import Options
from ..prior.checkpoint import Checkpoint
from ..recon import plan
from ..recon.types import Sampling
from ..tools.estimate import MEGA, VOLUME_MEMORY, Load, cost_model, load_of, memory_of, memory_peak
from .engines import Engine, Lost
from .sources import Source

LOOKED_AT = 20  # scans, for one whose slices are the measurement's


@dataclass(frozen=True)
class Measured:
    """MB. free: of the device before the model was there; base: of a process with the model; slices: the coefficients
    of `memory_of`, None where volumes alone were seen."""

    free: float
    base: float
    slices: np.ndarray | None


def measured(options: Options, sampling: Sampling, load: Load | None) -> Measured:
    """In a process that has done nothing else: its peak tells. load: slices to measure with."""
    free = free_memory() / MEGA
    checkpoint, device = plan.load(options)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] / MEGA
    base = memory_peak(device)
    slices = None if load is None else cost_model(checkpoint, sampling, load, device).memory
    return Measured(free, base, slices)


class Memory:
    """What scans need of it, in MB beside the loaded model; remark: what could not be measured, else None."""

    def __init__(self, sources: Mapping[str, Source], options: Options, checkpoint: Checkpoint, engine: Engine):
        self._sources, self._options, self._checkpoint, self._engine = sources, options, checkpoint, engine
        self._looks: dict[str, tuple[Sampling, Load] | None] = {}
        self._slices: np.ndarray | None = None
        self.base = 0.0
        self.remark: str | None = None

    def room(self, given: float | None, devices: int) -> float:
        """MB for all scans in hand. given: what the run may take in all, None for SHARE of what is free; devices: GPUs,
        1 on a CPU."""
        looks = [look for name in itertools.islice(self._sources, LOOKED_AT) if (look := self._look(name)) is not None]
        if not looks:
            return math.inf
        found = self._measured(*next((look for look in looks if not look[1].is_volume), looks[0]))
        if found is None:
            return 0.0  # one scan at a time
        self.base = found.base
        return (SHARE * found.free * devices if given is None else given) - self._engine.workers * found.base

    def need(self, name: str) -> float:
        """Of a scan, and of its process where the engine sees to memory; a scan that cannot be opened, which its
        reconstruction will tell, needs none."""
        look, source = self._look(name), self._sources[name]
        if look is None:
            return source.size / MEGA if source.files is not None else 0.0
        sampling, load = look
        if not load.is_volume and self._slices is None and self.remark is None:
            self._measured(sampling, load)
        coefficients = np.array(VOLUME_MEMORY) if load.is_volume else self._slices
        own = 0.0 if coefficients is None else memory_of(load, coefficients)
        return own + self.base if self._engine.by_memory else own

    def _look(self, name: str) -> tuple[Sampling, Load] | None:
        if name not in self._looks:
            source, found = self._sources[name], None
            if source.files is None:  # that of an address is not fetched to be looked at
                with contextlib.suppress(Exception), open_as(source.where, self._options) as scan:
                    _, _, sampling = plan.asked(self._options, self._checkpoint, scan.header)
                    combine = self._options.combine_averages
                    found = sampling, load_of(scan, sampling, combine_averages=combine)
            self._looks[name] = found
        return self._looks[name]

    def _measured(self, sampling: Sampling, load: Load) -> Measured | None:
        slices = None if load.is_volume else load
        found = self._engine.ask((measured, (self._options, sampling, slices)))
        if isinstance(found, Lost):
            self.remark = f"memory could not be measured, its process ended ({found.reason}): one scan at a time"
            return None
        self._slices = found.slices
        return found
