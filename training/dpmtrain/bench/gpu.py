"""`dpmtrain bench-gpu`: seconds a slice of the product's own way; beside them `dps`, and what the device can do at
most.

For a GPU, and for a small run on a CPU. Two networks: that of a checkpoint; that of a recipe with random weights, on
which time does not depend.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from dpmrecon.device import has_bfloat16, synchronize
from dpmrecon.errors import DpmreconError
from dpmrecon.prior.checkpoint import Checkpoint
from dpmrecon.prior.denoiser import Denoiser
from dpmrecon.prior.kinds import settings_from
from dpmrecon.recon.prepare import with_coil_maps
from dpmrecon.recon.stream import sampled
from dpmrecon.recon.types import MappedSlice, Sampling
from dpmrecon.simulation.settings import SimulationSettings

from ..evaluate.references import simulated
from ..evaluate.tables import fields_of, markdown, write_tables
from ..hardware import PeakMemory, TimedDenoiser, attainable, device_name, network_work
from ..train.recipe import read_recipe


@dataclass(frozen=True)
class Timing:
    """One sampler with one network. Seconds are of one slice: coil maps, start (scale and CG-SENSE), forward passes of
    the network, and the rest of the sampling (data consistency; the gradients of `dps`).

    gflop: of the network for one slice, gradients included; roofline: seconds that they would take at the FLOP/s of a
    large matrix product; or, if more, to move inputs, outputs and weights at the speed of a copy; memory_mb: peak, of
    the GPU's tensors or of the process.
    """

    network: str
    device: str
    precision: str
    method: str
    evaluations: int
    batch: int
    maps: float
    start: float
    forward: float
    rest: float
    gflop: float
    roofline: float
    memory_mb: float | None

    @property
    def seconds(self) -> float:
        return self.maps + self.start + self.forward + self.rest


def random_network(recipe: Path, like: Checkpoint, device: torch.device) -> Checkpoint:
    """The recipe's network as it is before training, with the sampler settings of `like`."""
    denoiser = Denoiser(read_recipe(recipe)["model"]).requires_grad_(False).eval().to(device)
    denoiser.bf16 = has_bfloat16(device)
    return Checkpoint(denoiser, like.card, f"{recipe.stem}, random weights")


def mapped_slices(
    matrix: int, n_coils: int, count: int, device: torch.device
) -> tuple[list[MappedSlice], dict[str, float]]:
    """Slices of a simulated R = 4 scan as a reconstruction maps them; seconds of a slice's maps and start."""
    scanned, _ = simulated(SimulationSettings("flair", (matrix, matrix), n_slices=count, n_coils=n_coils))
    # the first one twice: it pays for what is set up once
    found = [item for item in with_coil_maps([scanned[0], *scanned], device) if isinstance(item, MappedSlice)][1:]
    maps, start = (sum(item.seconds[stage] for item in found) / count for stage in ("maps", "conventional"))
    return found, {"maps": maps, "start": start}


def timings(
    network: Checkpoint, cases: list[MappedSlice], before: dict[str, float], steps: tuple[int, ...], dps_steps: int
) -> list[Timing]:
    """`prox` at every number of evaluations, all slices in one batch; `dps`, a slice at a time."""
    device, shape = network.denoiser.device, cases[0].conventional.shape
    work = {
        gradient: network_work(network.denoiser.config, (shape[0], shape[1]), gradient) for gradient in (False, True)
    }
    precisions = [torch.float32, *([torch.bfloat16] if network.denoiser.bf16 else [])]
    peaks = {dtype: attainable(device, dtype) for dtype in precisions}
    rows = []
    for sampler, count, group in [*(("prox", count, cases) for count in steps), ("dps", dps_steps, cases[:1])]:
        gradient = sampler == "dps"
        flops, moved = work[gradient]
        lower = network.denoiser.bf16 and not gradient
        speed, bandwidth = peaks[torch.bfloat16 if lower else torch.float32]
        memory = PeakMemory(device)
        _sampled(network, group, sampler, min(2, count))  # what is set up once, and memory's first touch
        forward, total = _sampled(network, group, sampler, count)
        peak = memory.read()
        rows.append(
            Timing(
                network=network.model_id,
                device=device_name(device),
                precision="bfloat16" if lower else "float32",
                method=f"{sampler} {count}",
                evaluations=count,
                batch=len(group),
                maps=before["maps"],
                start=before["start"],
                forward=forward / len(group),
                rest=(total - forward) / len(group),
                gflop=count * flops / 1e9,
                # half the bytes in bfloat16; a gradient moves them about twice
                roofline=count * max(flops / speed, moved * (0.5 if lower else 1 + gradient) / bandwidth),
                memory_mb=None if peak is None else peak / 2**20,
            )
        )
        print(f"{rows[-1].network} {rows[-1].method}: {rows[-1].seconds:.3f} s a slice", flush=True)
    return rows


def _sampled(network: Checkpoint, group: list[MappedSlice], sampler: str, steps: int) -> tuple[float, float]:
    """(seconds of forward passes, of the whole sampling) of one sample of every slice in one batch."""
    timed: Any = TimedDenoiser(network.denoiser)
    device = network.denoiser.device
    settings = settings_from({**network.card.get("sampling", {}).get(sampler, {}), "steps": steps})
    synchronize(device)
    started = time.perf_counter()
    sampling = Sampling(sampler, settings, samples=1, seed=0, batch=len(group), fallback=True)
    list(sampled(group, replace(network, model=timed), None, sampling))
    synchronize(device)
    total = time.perf_counter() - started
    if len(timed.spans) < steps:  # slices of unlike numbers of virtual coils take more
        raise DpmreconError(f"{sampler} failed on {device}: give fewer --slices or a smaller --matrix")
    return timed.seconds(), total


def write_table(out: Path, title: str, rows: list[Timing]) -> None:
    """table.md and table.csv in `out`; the table is printed as well."""
    heads, *lines = fields_of(Timing, rows, digits=17)
    lines = [[*line, row.seconds] for line, row in zip(lines, rows)]
    write_tables(out, [[*heads, "seconds"], *lines], "\n".join([title, "", *table(rows)]))


def table(rows: list[Timing]) -> list[str]:
    """Markdown lines: the rows, and what each network gains over `dps` in the same run."""
    heads = ["network", "method", "precision", "batch", "s/slice", "maps", "start", "network s", "rest"]
    heads += ["network share", "GFLOP", "roofline s", "network / roofline", "peak MB"]
    lines = [heads]
    for row in rows:
        cells = [row.network, row.method, row.precision, str(row.batch), f"{row.seconds:.3f}"]
        cells += [f"{value:.3f}" for value in (row.maps, row.start, row.forward, row.rest)]
        cells += [f"{row.forward / row.seconds:.0%}", f"{row.gflop:.0f}", f"{row.roofline:.4f}"]
        # the time of dps's gradients is among the rest
        spent = row.forward + (row.rest if row.method.startswith("dps") else 0)
        cells += [f"{spent / row.roofline:.1f}", "" if row.memory_mb is None else f"{row.memory_mb:.0f}"]
        lines.append(cells)
    found = [*markdown(lines), "", f"On {rows[0].device}."]
    for network in dict.fromkeys(row.network for row in rows):
        *fast, dps = [row for row in rows if row.network == network]
        found += [
            f"- {network}: {row.method} {row.seconds:.3f} s a slice, {dps.seconds / row.seconds:.0f} times faster than "
            f"{dps.method} ({dps.seconds:.2f} s), {dps.gflop / row.gflop:.0f} times less network compute"
            for row in fast
        ]
    return found
