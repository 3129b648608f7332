"""A time budget for a scan: how many samples and steps each slice gets, so that its last image is out in time."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..prior.kinds import ONE_STEP
from .types import Sampling

# Share of a slice's time that is planned; the rest is reserve
PLANNED = 0.9
# Below it a second sample is worth less than the steps that it takes
STEPS_BEFORE_SAMPLES = 10
# Three evaluations beat CG-SENSE on all validation slices, two do not; of one-step one does
USEFUL_STEPS = 3


@dataclass
class Deadline:
    """What is left of `seconds` from `started` for `n_slices` slices in all.

    clock: seconds that only grow; `started` is a reading of it. reserve: seconds kept for what follows the last slice.
    Every slice gets an equal share of the time left; what a slice and an evaluation of the network cost is measured as
    the scan goes on.
    """

    seconds: float
    n_slices: int
    started: float
    reserve: float = 0.0
    clock: Callable[[], float] = time.monotonic
    per_evaluation: float | None = None  # seconds of one evaluation for one image, its data consistency included
    per_asking: float | None = None  # seconds that the gate takes to ask prior and data of a slice
    done: int = 0
    sampling_seconds: float = 0.0
    first: float | None = None  # when the first slice was ready

    def left(self) -> float:
        """Seconds until the last image must be there."""
        return self.started + self.seconds - self.reserve - self.clock()

    def share(self, n_slices: int, other: float) -> float:
        """Seconds that the next `n_slices`, which are ready, may be sampled for; other: what the preparation of each
        slice took, used until the scan itself tells what a slice costs beside the sampling."""
        now = self.clock()
        if self.first is None:
            self.first = now
        elif self.done:
            other = max(0.0, now - self.first - self.sampling_seconds) / self.done
        following = max(0, self.n_slices - self.done - n_slices)
        return (self.left() - other * following) * n_slices / (n_slices + following)

    def asking(self, n_slices: int, evaluations: int) -> float:
        """Seconds that the gate will take for `n_slices` slices; evaluations: of the network, see `agreement`."""
        if not evaluations:
            return 0.0
        return n_slices * ((self.per_evaluation or 0.0) * evaluations if self.per_asking is None else self.per_asking)

    def plan(self, sampling: Sampling, n_slices: int, seconds: float, asking: float = 0.0) -> Sampling | None:
        """The samples and steps for `n_slices` slices that fit into `seconds`; None where too few steps do. asking:
        seconds of them for the gate, which does without where it would cost more than the samples."""
        if self.per_evaluation is None:
            return sampling
        each = self.per_evaluation * n_slices
        if asking > 0:
            found = chosen(sampling, seconds - asking, each)
            if found is not None and _steps(found) >= min(STEPS_BEFORE_SAMPLES, _steps(sampling)):
                return found
            sampling = replace(sampling, asks=False)
        return chosen(sampling, seconds, each)

    def note(self, n_slices: int, evaluations: int, seconds: float, asking: float = 0.0) -> None:
        """`n_slices` are done; `evaluations` of the network for one image each took `seconds`, `asking` those of the
        gate beside them."""
        self.done += n_slices
        self.sampling_seconds += seconds + asking
        if evaluations:
            self.per_evaluation = seconds / evaluations
        if asking > 0:
            self.per_asking = asking / n_slices

    def until(self, seconds: float) -> Callable[[], bool]:
        """A question that says True from `seconds` on after now."""
        end = self.clock() + seconds
        return lambda: self.clock() >= end


def _steps(sampling: Sampling) -> int:
    """Of the image."""
    return (sampling.image or sampling).settings.steps


def chosen(sampling: Sampling, seconds: float, per_evaluation: float) -> Sampling | None:
    """`sampling` with the samples and steps that fit into `seconds`, at seconds an evaluation; None below USEFUL_STEPS.

    The uncertainty mode has its whole image first. Its spread is that of the steps it was calibrated with, so it gives
    up samples, and the spread where fewer than two are left.
    """
    most_steps = sampling.settings.steps
    evaluations = int(PLANNED * seconds / per_evaluation)
    if sampling.image is not None:
        image = chosen(sampling.image, seconds, per_evaluation)
        if image is None:
            return None
        several = min(sampling.samples, (evaluations - image.evaluations) // most_steps)
        return replace(sampling, image=image, samples=several if several > 1 else 0)
    if evaluations < (1 if sampling.sampler == ONE_STEP else min(USEFUL_STEPS, most_steps)):
        return None
    samples, steps = most(evaluations, sampling.samples, most_steps)
    return replace(sampling, samples=samples, settings=replace(sampling.settings, steps=steps))


def most(evaluations: int, samples: int, steps: int) -> tuple[int, int]:
    """(samples, steps) of at most these that `evaluations` of the network pay for.

    Both shrink alike: either alone cost 1 % in NRMSE more on the validation slices, where 3 x 20 beat 6 x 10 and 2 x 10
    beat 1 x 20 (`dpmtrain sweep --samples K --grid steps=N`).
    """
    alike = round(samples * (evaluations / (samples * steps)) ** 0.5)
    samples = max(1, min(samples, alike, evaluations // min(STEPS_BEFORE_SAMPLES, steps)))
    return samples, max(1, min(steps, evaluations // samples))
