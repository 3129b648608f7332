"""EPI lines: what their header describes, each shot's navigators, and lines made Cartesian."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np

from ..errors import BadInputError, UnsupportedScanError
from .header import Header, encoded_grid, is_epi
from .lines import Layout, Lines, LostError
from .scan_log import ScanLog

if TYPE_CHECKING:
    import torch

    from ..physics.epi import Ghost, Trapezoid

IDENTIFIER = "ConventionalEPI"
# Amplitude of the ghost that is left, over the signal's, that is told
LARGE_GHOST = 0.02
# Samples a little too far apart leave the head alone
FARTHEST = 1.02
# Columns of k-space between echoes of both directions: gradient delays leave less
LATE_ECHO = 3.0
# Rows from the centre of k-space on which lines are like their navigators
NEAR = 1
# Samples between echoes of both directions, below which they tell no direction, and of this distance, what the echo of
# a line lies off one of them at most
TOGETHER, UNLIKE = 0.03, 0.25
# A readout may end this many dwell times after its gradient, by rounding
LATE = 1.0


@dataclass(frozen=True)
class Readout:
    """How the readouts of an encoding space become Cartesian ones, forward ones and reversed ones that are turned.

    matrices: (2, cols, n_samples), None where samples are as far apart as those of Cartesian readouts, which `offsets`
    then puts in their place: (2, n_samples) complex, phases of the line's image; oversampling: of a ramp-sampled
    readout; beside: (2, n_samples), cycles per field of view by which samples on the ramps lie beside those of a flat
    gradient.
    """

    n_samples: int
    cols: int
    matrices: torch.Tensor | None
    offsets: torch.Tensor | None = None
    oversampling: float = 1.0
    beside: torch.Tensor | None = None

    @classmethod
    def of(cls, header: Header, space: int) -> Readout:
        """Raises UnsupportedScanError for descriptions that are none of a trapezoid, BadInputError for wrong ones."""
        import torch

        from ..physics.epi import beside_flat, regridding

        trapezoid, cols = _described(header, space), encoded_grid(header)[1]
        cycles, encoded = _cycles(header, space), header.encoding[space].encodedSpace.matrixSize.x
        positions, n = trapezoid.positions(cycles), trapezoid.n_samples
        if trapezoid.is_uniform and n in (cols, encoded, 2 * cols, 2 * encoded):
            place = (torch.arange(n) - n // 2) / cycles
            angle = torch.stack([2 * torch.pi * float(places[n // 2]) * place for places in positions])
            return cls(n, cols, None, torch.polar(torch.ones_like(angle), angle))
        apart = float(np.diff(positions[0]).max())
        if apart > FARTHEST:
            raise BadInputError(
                f"the header's trajectoryDescription puts the readout's samples {apart:.2f} times as far apart as the "
                "images' field of view allows: correct its times or numSamples (or --set their values)"
            )
        matrices, oversampling = regridding(positions, cols)
        beside = torch.from_numpy(np.stack([beside_flat(places) for places in positions])).float()
        return cls(n, cols, torch.from_numpy(matrices), oversampling=oversampling, beside=beside)

    @property
    def covered(self) -> torch.Tensor | bool:
        """(cols,) bool: columns that the readout reaches."""
        return True if self.matrices is None else self.matrices[0].any(1)

    @property
    def noise_grid(self) -> int:
        """Samples that the receiver takes of the field of view that it sees, on `cols` of the images'."""
        return round(self.oversampling * self.cols)

    def gridded(self, line: torch.Tensor, *, backwards: bool, off_centre: float = 0.0) -> torch.Tensor:
        """(n_coils, n_samples), turned where it came backwards, to (n_coils, cols) or Cartesian n_samples.

        off_centre: fields of view from the scanner's centre, where the receiver's frequency was that of the flat top.
        """
        import torch

        from ..physics.fourier import to_image, to_kspace

        if self.matrices is not None:
            if off_centre and self.beside is not None:
                angle = 2 * torch.pi * off_centre * self.beside[int(backwards)]
                line = line * torch.polar(torch.ones_like(angle), angle)
            matrix = self.matrices[int(backwards)].T
            return torch.complex(line.real @ matrix, line.imag @ matrix)
        assert self.offsets is not None
        return to_kspace(to_image(line, axes=(-1,)) * self.offsets[int(backwards)], axes=(-1,))


def _cycles(header: Header, space: int) -> float:
    """Of a whole readout, in the images' field of view: the width of its k-space."""
    if space == 0:
        return encoded_grid(header)[1]
    other = header.encoding[space].encodedSpace
    return other.matrixSize.x / other.fieldOfView_mm.x * _view_mm(header)


def _view_mm(header: Header) -> float:
    """The images' field of view along the readout, of `cols` columns."""
    own = header.encoding[0].encodedSpace
    return encoded_grid(header)[1] / own.matrixSize.x * own.fieldOfView_mm.x


def _described(header: Header, space: int) -> Trapezoid:
    """The readout that a header describes for an encoding space."""
    from ..physics.epi import Trapezoid

    description = header.encoding[space].trajectoryDescription
    if description is None:
        raise UnsupportedScanError(
            "the scan is EPI and its header has no trajectoryDescription, which tells how its readout is sampled: "
            f"convert the scan again with one ({IDENTIFIER})"
        )
    if description.identifier != IDENTIFIER:
        raise UnsupportedScanError(
            f"the scan is EPI with a trajectoryDescription '{description.identifier}': {IDENTIFIER} is understood"
        )
    values = {item.name: item.value for item in [*description.userParameterLong, *description.userParameterDouble]}

    def number(name: str, default: float | None = None) -> float:
        value = values.get(name, default)
        try:  # 128.0 of a whole number is kept as text
            found = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            found = -1.0
        if not 0 <= found < 1e9:
            raise BadInputError(
                f"the header's trajectoryDescription gives {name} as {value}: EPI needs a number of microseconds "
                "(numSamples: of samples), convert the scan again with it"
            )
        return found

    n_samples, flat_top = int(number("numSamples")), number("flatTopTime")
    ramps = number("rampUpTime", 0.0), number("rampDownTime", 0.0)
    if n_samples < 2 or flat_top + sum(ramps) <= 0:
        raise BadInputError(
            f"the header's trajectoryDescription gives a readout of {n_samples} samples and "
            f"{flat_top + sum(ramps):g} microseconds: correct it (or --set its values)"
        )
    total = ramps[0] + flat_top + ramps[1]
    dwell = number("dwellTime") if any(ramps) else number("dwellTime", flat_top / n_samples)
    delay = number("acqDelayTime", max(0.0, 0.5 * (total - dwell * n_samples)))
    if dwell <= 0 or delay + dwell * n_samples > total + LATE * dwell:
        raise BadInputError(
            f"the header's trajectoryDescription has {n_samples} samples of {dwell:g} microseconds that begin "
            f"{delay:g} after a readout gradient of {total:g}: they do not fit into it, correct its times (or --set "
            "their values)"
        )
    return Trapezoid(ramps[0], flat_top, ramps[1], delay, dwell, n_samples)


class Readouts:
    """The readouts of a scan's encoding spaces. fixed_receiver: its frequency is that of the flat top during a whole
    line. So ramps keep a phase where the field of view is off the scanner's centre."""

    def __init__(self, header: Header, *, fixed_receiver: bool = False) -> None:
        self.header, self.found, self.fixed_receiver = header, {0: Readout.of(header, 0)}, fixed_receiver

    def off_centre(self, head: ismrmrd.AcquisitionHeader) -> float:
        """Fields of view from the scanner's centre along the readout; 0 where the receiver follows the gradient."""
        if not self.fixed_receiver:
            return 0.0
        return float(np.dot(head.position[:], head.read_dir[:])) / _view_mm(self.header)

    def of(self, space: int) -> Readout:
        """Raises as Readout.of."""
        if space not in self.found:
            self.found[space] = Readout.of(self.header, space)
        return self.found[space]

    def grid(self, layout: Layout, space: int) -> int:
        """Samples of another space's line that the images' `cols` are of."""
        cols, encoded = encoded_grid(self.header)[1], self.header.encoding[space].encodedSpace.matrixSize.x
        if is_epi(self.header, space) and self.of(space).matrices is not None:
            return cols
        samples = encoded if layout.fits(encoded) else 2 * encoded
        return round(cols * samples / _cycles(self.header, space))


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
