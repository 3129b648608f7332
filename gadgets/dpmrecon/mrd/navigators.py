"""Navigators of EPI: the ghost of a shot, and the directions of lines that lost their flag."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .readouts import Readout

if TYPE_CHECKING:
    import torch

    from ..physics.epi import Ghost

# Amplitude of the ghost over the signal's, above which it counts
LARGE_GHOST = 0.02
# Samples between echoes of both directions, below which they tell no direction, and of this distance, what the echo of
# a line lies off one of them at most
TOGETHER, UNLIKE = 0.03, 0.25


@dataclass
class Navigators:
    """Navigators of one shot, in the order they came; `used`: a line came after them, so that the next ones are of
    another shot. before: the whole ones of the slice before, back to those that tell a ghost; lines: (backwards, data),
    turned; off_centre: as `Readout.gridded` has it; shot: the labels of the lines that they were measured for."""

    before: Navigators | None = None
    lines: list[tuple[bool, np.ndarray]] = field(default_factory=list)
    used: bool = False
    off_centre: float = 0.0
    shot: tuple | None = None
    _ghost: Ghost | None = None

    def followed(self) -> Navigators:
        """Those of the next shot."""
        whole = len({backwards for backwards, _ in self.lines}) == 2
        return Navigators(self if whole else self.before)

    def ghost(self, readout: Readout, shape: tuple[int, ...]) -> Ghost | None:
        """For lines of a shape (n_coils, n_samples); None without a navigator of each direction, or where they are
        noise."""
        from ..physics.epi import ghost_of

        if self._ghost is None:
            directions = []
            for backwards in (False, True):
                mean = self.mean(shape, backwards=backwards)
                if mean is None:
                    return None
                directions.append(readout.gridded(mean, backwards=backwards, off_centre=self.off_centre))
            self._ghost = ghost_of(*directions)
        return self._ghost

    def take_turns(self) -> None:
        """Every other one is reversed."""
        self.lines = [(bool(number % 2), data) for number, (_, data) in enumerate(self.lines)]

    def alternate(self, shape: tuple[int, ...], echoes: float = 0.0) -> bool:
        """Whether those without the flag REVERSE, of a shape (n_coils, n_samples), differ by turns as two directions
        do. echoes: samples that these lie apart at least; those of turbo spin echoes differ in phase alone."""
        found = self._second_over_first(shape)
        return found is not None and found.before > LARGE_GHOST and abs(found.slope) >= _slope(echoes, shape)

    def is_like_the_second(self, line: np.ndarray) -> bool | None:
        """Of those that alternate, whether a line beside the centre of k-space has its echo where the second one has,
        not where the first one has; None where that cannot be told. Phases grow with time, echoes stay."""
        import torch

        found, own = self._second_over_first(line.shape), self._second_over_first(line.shape, torch.from_numpy(line))
        if found is None or own is None or abs(found.slope) < _slope(TOGETHER, line.shape):
            return None
        beside = abs(own.slope), abs(own.slope - found.slope)
        return None if min(beside) > UNLIKE * abs(found.slope) else beside[1] < beside[0]

    def _second_over_first(self, shape: tuple[int, ...], second: torch.Tensor | None = None) -> Ghost | None:
        """What the second, fourth ... have over the others, or `second` has; None where some bear REVERSE."""
        from ..physics.epi import ghost_of

        turns = Navigators(lines=self.lines)
        turns.take_turns()
        first, other = (turns.mean(shape, backwards=backwards) for backwards in (False, True))
        second = other if second is None else second
        told = any(backwards for backwards, _ in self.lines)
        return None if told or first is None or second is None else ghost_of(first, second)

    def mean(self, shape: tuple[int, ...], *, backwards: bool) -> torch.Tensor | None:
        """Of those of a direction and a shape (n_coils, n_samples); None without any."""
        import torch

        fitting = [(own, data) for own, data in self.lines if data.shape == shape]
        # of an even train one is left out: phase grows with time
        fitting = fitting[:-1] if len(fitting) > 2 and len(fitting) % 2 == 0 else fitting
        data = [torch.from_numpy(data) for own, data in fitting if own == backwards]
        return torch.stack(data).mean(0) if data else None


def _slope(samples: float, shape: tuple[int, ...]) -> float:
    """Of a ghost, rad a sample of the image, where echoes lie so many samples apart."""
    return 2 * np.pi * samples / shape[1]
