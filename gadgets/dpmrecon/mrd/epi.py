"""EPI lines made Cartesian, without the ghost that their navigators tell, and their shots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np

from .lines import Layout, Lines, LostError
from .navigators import LARGE_GHOST, Navigators
from .readouts import Readout, Readouts
from .scan_log import ScanLog

if TYPE_CHECKING:
    import torch

    from ..physics.epi import Ghost

# Columns of k-space between echoes of both directions: gradient delays leave less
LATE_ECHO = 3.0
# Rows from the centre of k-space on which lines are like their navigators
NEAR = 1
FIRST_CALIBRATES = (
    "its shots calibrate its slice together, as those without diffusion weighting can: the header does not tell which "
    "images are weighted, and it came first"
)
UNCALIBRATED = (
    "its shots are diffusion-weighted and have a phase each, so that they calibrate nothing together: calibration "
    "lines, or an image of its slice without weighting, are needed"
)


@dataclass
class EpiLine:
    """A line not yet Cartesian, turned where it was read backwards."""

    kind: str
    head: ismrmrd.AcquisitionHeader
    data: np.ndarray
    layout: Layout
    number: int
    distance: float
    backwards: bool
    navigators: Navigators | None


@dataclass
class Gridded:
    """A line on the Cartesian grid and without ghost. shot: counted in a train; ghost: its shot's, where it has any;
    lost: why no image can be made of it."""

    line: EpiLine
    data: np.ndarray
    layout: Layout
    shot: int = 0
    ghost: Ghost | None = None
    lost: str | None = None


def cartesian(lines: list[EpiLine], readouts: Readouts, log: ScanLog) -> Iterator[Gridded]:
    """The lines of a slice.

    Calibration lines of one direction alone are a gradient echo: unchanged. Lines that were turned and lost the flag
    REVERSE, as some readers of Siemens data leave them, get their directions back.
    """
    import torch

    unknown = _find_directions(lines, log)
    trains = {(line.kind, line.head.encoding_space_ref) for line in lines if line.backwards}
    # some scanners count directions there, from either on, others shots, which have lines of both
    segments = {(line.kind, line.head.encoding_space_ref, line.head.idx.segment, line.backwards) for line in lines}
    counts_shots = len({segment[:-1] for segment in segments}) < len(segments)
    if not counts_shots and any((*train,) in trains and number % 2 != back for *train, number, back in segments):
        log.remark(
            "segments count lines that were read forwards as 1, reversed ones as 0, where most scanners do the "
            "opposite: if the flag REVERSE is on the wrong lines, images are mirrored along the readout"
        )
    contrary = _contrary(lines)
    for line, number in zip(lines, _shots(lines, counts_shots=counts_shots)):
        head = line.head
        train = (line.kind, head.encoding_space_ref)
        if line.kind == "calibration" and train not in trains:
            yield Gridded(line, line.data, line.layout, number)
            continue
        readout = readouts.of(head.encoding_space_ref)
        held = line.layout.end - line.layout.first
        if held != readout.n_samples or line.data.shape[1] != held:
            told = f"hold {held} samples where the header's trajectoryDescription has {readout.n_samples}"
            yield Gridded(line, line.data, line.layout, number, lost=told)
            continue
        off_centre = readouts.off_centre(head)
        data = readout.gridded(torch.from_numpy(line.data), backwards=line.backwards, off_centre=off_centre)
        n_coils, n_samples = data.shape
        layout = Layout(n_coils, n_samples, n_samples // 2, 0, n_samples)
        shot = (*train, head.idx.contrast, head.idx.repetition, head.idx.average, counts_shots and head.idx.segment)
        ghost = _ghost(line, readout, shot, log)
        lost = None
        if train in contrary:
            lost = (
                "fit their navigators only when they are mirrored: the flag REVERSE is wrong on either, and nothing "
                "tells left from right, convert the scan again with the right flags"
            )
        elif train in unknown:
            lost = (
                "bear no flag REVERSE and have navigators of two directions, and nothing tells which lines are "
                "reversed: convert the scan again with the flag"
            )
        elif ghost is not None:
            data = ghost.removed(data, backwards=line.backwards) * readout.covered
        elif train in trains:
            lost = (
                "are read in both directions and came without navigators of both (flag PHASECORR) that stand out "
                "of the noise: their ghost cannot be corrected, acquire the scan with them"
            )
        yield Gridded(line, data.numpy(), layout, number, ghost, lost)


def _find_directions(lines: list[EpiLine], log: ScanLog) -> set[tuple[str, int]]:
    """Lets lines without the flag REVERSE, and their navigators, be reversed by turns where the navigators differ as
    those of two directions do. Returns the trains of which none tells where to begin.

    Which of the two directions is called reversed makes no difference but half a sample.
    """
    trains: dict[tuple[str, int], dict[int, list[EpiLine]]] = {}
    for line, shot in zip(lines, _shots(lines, counts_shots=False)):
        trains.setdefault((line.kind, line.head.encoding_space_ref), {}).setdefault(shot, []).append(line)
    unknown = set()
    for train, shots in trains.items():
        if any(line.backwards for own in shots.values() for line in own):
            continue
        shot, place = min(
            ((shot, place) for shot, own in shots.items() for place in range(len(own))),
            key=lambda where: shots[where[0]][where[1]].distance,
        )
        nearest = shots[shot][place]
        if nearest.navigators is None or not nearest.navigators.alternate(nearest.data.shape):
            if train[0] != "calibration":
                log.remark(
                    "no line of EPI bears the flag REVERSE: all are taken as read in one direction; if they were not, "
                    "the image has a ghost, convert the scan again with the flag"
                )
            continue
        second = nearest.navigators.is_like_the_second(nearest.data) if nearest.distance <= NEAR else None
        if second is None:
            unknown.add(train)
            continue
        log.remark(
            "no line of EPI bears the flag REVERSE and its navigators differ as those of two directions do: lines are "
            "taken as turned by the converter, and as reversed by turns"
        )
        for own in shots.values():
            for number, line in enumerate(own):
                line.backwards = (number - place + second) % 2 == 1
        for line in (line for own in shots.values() for line in own):
            if line.navigators is not None:
                line.navigators.take_turns()
    return unknown


def _contrary(lines: list[EpiLine]) -> set[tuple[str, int]]:
    """The trains, kind and encoding space, whose line nearest the centre of k-space is its navigators' mirror image."""
    import torch

    from ..physics.epi import is_mirrored

    nearest: dict[tuple[str, int], tuple[EpiLine, torch.Tensor]] = {}
    for line in sorted(lines, key=lambda line: line.distance):
        train = (line.kind, line.head.encoding_space_ref)
        if line.navigators is None or line.distance > NEAR or train in nearest:
            continue
        navigator = line.navigators.mean(line.data.shape, backwards=line.backwards)
        if navigator is not None:
            nearest[train] = line, navigator
    return {
        train for train, (line, navigator) in nearest.items() if is_mirrored(torch.from_numpy(line.data), navigator)
    }


def _shots(lines: list[EpiLine], *, counts_shots: bool) -> Iterator[int]:
    """The shot of each line, counted in its train."""
    trains: dict[tuple, ShotCounter] = {}
    for line in lines:
        counter = trains.setdefault((line.kind, line.head.encoding_space_ref), ShotCounter())
        yield counter.of(line.number, (id(line.navigators), counts_shots and line.head.idx.segment))


class ShotCounter:
    """Tells the shot of lines in the order of time: another begins where their marks change, or their numbers turn
    back."""

    def __init__(self) -> None:
        self.shot = 0
        self._before: tuple[int, object] | None = None
        self._way = 0

    def of(self, number: int, mark: object = None) -> int:
        """Of a line of this number and mark, such as its navigators and idx.segment."""
        if self._before is not None:
            way = int(np.sign(number - self._before[0]))
            if mark != self._before[1] or self._way * way < 0:
                self.shot, self._way = self.shot + 1, 0
            else:
                self._way = way
        self._before = number, mark
        return self.shot


def weighted_shots(shots: dict[int, set[int]], rows: int) -> torch.Tensor | None:
    """(rows,) int64, the shot of each row, -1 where none is; None of one shot. shots: in which each row came.

    Raises LostError where they cannot be reconstructed together.
    """
    numbers = set().union(*shots.values())
    if len(numbers) < 2:
        return None
    told = f"it is diffusion-weighted in {len(numbers)} shots, which have a phase each by the head's motion, and "
    if any(len(of_row) > 1 for of_row in shots.values()):
        raise LostError(told + "some of its lines came in several: label shots of the same lines as averages")
    import torch

    found = torch.full((rows,), -1)
    for row, (shot,) in shots.items():
        found[row] = shot
    for shot in numbers:
        own = torch.nonzero(found == shot).flatten()
        if not own[0] < rows // 2 <= own[-1]:
            raise LostError(told + "one does not reach the centre of k-space, which tells the phase: interleave them")
    return found


def ghost_remarks(lines: Lines, what: str) -> list[str]:
    """What is said where the navigators of some shots contradict a phase that is linear along the readout."""
    left = max((ghost.after for ghost in lines.ghosts), default=0.0)
    if left <= LARGE_GHOST:
        return []
    return [f"its {what} keep a ghost of {left:.0%} of the signal after correction, by their navigators"]


def _ghost(line: EpiLine, readout: Readout, shot: tuple, log: ScanLog) -> Ghost | None:
    """Of the shot's navigators, else of the last ones of its slice."""
    navigators = line.navigators
    ghost = None if navigators is None else navigators.ghost(readout, line.data.shape)
    while ghost is None and navigators is not None and navigators.before is not None:
        navigators = navigators.before
        ghost = navigators.ghost(readout, line.data.shape)
    if ghost is None or navigators is None:
        return None
    navigators.before = None  # none before these is asked for
    if navigators.shot is None:
        navigators.shot = shot
        apart = abs(ghost.slope) * readout.cols / (2 * np.pi)
        if readout.matrices is not None and apart > LATE_ECHO:
            log.remark(
                f"echoes of the two directions of EPI lie {apart:.1f} columns of k-space apart: see whether the times "
                "of the header's trajectoryDescription (acqDelayTime) are right, they decide how ramps are regridded"
            )
    elif navigators.shot != shot:
        log.remark("shots without navigators of their own have their ghost corrected by the last ones of their slice")
    return ghost
