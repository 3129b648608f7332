"""The examples of each training step: a function of (seed, step, number in the batch) and of nothing else.

So a resumed run sees what an uninterrupted one would have seen. Two processes see the batch of one; loader processes
change no number.
"""

import hashlib
import signal
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from dpmrecon.errors import DpmreconError
from dpmrecon.prior.denoiser import complex_noise
from torch.utils.data import DataLoader, Dataset

from ..data.dataset import PreparedSlices


class Batch(NamedTuple):
    """clean: (batch, rows, cols) complex64 at scale 1; weight: like it, float32, of each pixel's error; noisy: (batch *
    draws, rows, cols), `draws` of each clean one; sigma (batch * draws,) float32, of the noise per real channel; label:
    (batch * draws, n_labels) float32, one-hot, zeros where it was dropped."""

    clean: torch.Tensor
    weight: torch.Tensor
    noisy: torch.Tensor
    sigma: torch.Tensor
    label: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Batches(Dataset):
    """`batches[k]` is what process `rank` of `processes` trains on in step k.

    data: prepared slices; settings: table [train] of a recipe; labels: the model's, in order; target: the label that
    every example gets, None for its own. A slice that cannot be read comes back as its DpmreconError: raised in a
    loader process it would reach the user with a traceback.
    """

    def __init__(
        self, data: Path, settings: dict, labels: list[str], target: str | None, processes: int = 1, rank: int = 0
    ):
        self.data, self.settings, self.labels, self.target = data, settings, labels, target
        share = settings["batch"] // processes
        self.numbers = range(rank * share, (rank + 1) * share)

    @cached_property
    def slices(self) -> PreparedSlices:
        return PreparedSlices(self.data, self.settings["real_fraction"], self.settings["volumes"])

    def __getitem__(self, step: int) -> Any:
        crop = crop_of(step, self.settings)
        try:
            examples = [self.example(step, number, crop) for number in self.numbers]
        except DpmreconError as error:
            return error
        return self.joined(examples)

    def joined(self, examples: list[tuple[torch.Tensor, ...]]) -> Any:
        """The batch of what `example` gave."""
        clean, weight, noisy, sigma, label = zip(*examples)
        return Batch(torch.stack(clean), torch.stack(weight), *(torch.cat(drawn) for drawn in (noisy, sigma, label)))

    def label_of(self, contrast: str) -> torch.Tensor:
        """(n_labels,) float32, one-hot."""
        return torch.tensor([float((self.target or contrast) == known) for known in self.labels])

    def example(self, step: int, number: int, crop: int) -> tuple[torch.Tensor, ...]:
        """One example of a step."""
        generator = torch.Generator().manual_seed(example_seed(self.settings["seed"], step, number))
        clean, foci, contrast = self.slices.example(crop, generator)
        draws = self.settings["draws"]
        kept = torch.rand(draws, generator=generator) >= self.settings["label_dropout"]
        sigma = torch.exp(self.settings["p_mean"] + self.settings["p_std"] * torch.randn(draws, generator=generator))
        noisy = clean + sigma[:, None, None] * complex_noise((draws, *clean.shape), generator)
        return (
            clean,
            focus_weight(foci, self.settings),
            noisy,
            sigma,
            kept[:, None] * self.label_of(contrast),
        )


def focus_weight(foci: torch.Tensor, settings: dict) -> torch.Tensor:
    """Of each pixel's squared error: 1, the recipe's at painted foci. foci: 1 there, 0 elsewhere."""
    return 1 + (settings["focus_weight"] - 1) * foci


def crop_of(step: int, settings: dict) -> int:
    """Side of the crops in this step: the recipe's in turn."""
    return settings["crops"][step % len(settings["crops"])]


def example_seed(seed: int, step: int, number: int) -> int:
    """63 bits that neighbouring steps and examples do not share."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {number}".encode()).digest()[:8], "big") >> 1


def load(batches: Batches, steps: range, workers: int, device: torch.device) -> Iterable[Any]:
    """The batches of `steps` in order: made in this process, or ahead of time by `workers` others."""
    if workers == 0:
        return (batches[step] for step in steps)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        multiprocessing_context="spawn",  # forking a process that has threads or CUDA may hang
        worker_init_fn=_leave_interrupts_to_the_parent,
    )


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
