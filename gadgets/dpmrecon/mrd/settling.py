"""What the lines of a slice or a volume turn out to be: where they lie, whether all came, what calibrates them.

Without torch, so that `dpmrecon doctor` tells it at once; `making.py` makes k-space of it. What cannot be made of lines
ends in LostError, whose message is the reason.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..data import SliceKey
from ..errors import BadInputError
from .averages import may_be_weighted, tells_weightings
from .completeness import FEWEST_CALIBRATION_LINES, central_block, completeness, regular_acceleration, within
from .epi import FIRST_CALIBRATES
from .header import (
    Header,
    Limits,
    acceleration,
    encoded_grid,
    line_limits,
    n_partitions,
    partition_limits,
    tells_line_limits,
    whole_rows,
)
from .line_doubts import clipping, halved, in_the_middle
from .lines import EDGE_MARGIN, Layout, Lines, LostError, line_name, places_of
from .noise_lines import NoiseLines
from .readouts import Readouts
from .receiving import Receiving
from .record import (
    check_repeats,
    echo_centred,
    offsets,
    placed,
    placed_in_volume,
    renumbered,
    renumbered_in_volume,
    same_place,
)
from .scan_log import ScanLog
from .volumes import acceleration_by_chance, central_box, fills_its_lattice, on_matrix, volume_completeness

NO_NOISE = "no noise measurement came: the noise is estimated from k-space (--noise names a file with one)"
ALONE = 1  # lines of another length that are left out, as one at a scan's end, where the others are whole
# Samples on either side of the k-space centre, where every channel that sees the head is loud, and how many times the
# energy of noise a channel has there at most that sees none: 1.2 by chance
CENTRE, NOISE_ALONE = 4, 2.0
NARROW = 0.55  # of its field of view, than which a head may be narrower
LONGER = 1.5  # times the lines' distance in the image, what pixels along lines are whose oversampling is gone
FINER = 0.75  # of the lines' distance in the image, what pixels along lines of unknown oversampling are less than
# Of the noise, what samples hold at most that a converter put in place of those that an asymmetric echo lacks, where it
# removed the oversampling afterwards, and what the other end holds at least; share of a readout that lacks at least
QUIETER, AS_LOUD, LACKING = 0.5, 0.8, 1 / 16
MOST_LINES = 256  # that are looked at for it
COUNTERS = ("contrast", "phase", "set", "repetition", "average")  # that tell the images of a slice apart


@dataclass(frozen=True)
class Settled:
    """lines: those that are used, of the channels that are; acquired: (rows,) or (partitions, rows) bool, on the
    encoded matrix; limits: of partitions and of lines; acceleration, n_needed: R, and lines that it asks for; grid:
    samples of a full readout; calibration: of an acquisition of its own, or of another image of the slice, None
    where the image's own lines calibrate it; block: partitions (of a slice 0 alone) and rows of the calibration, None
    without one; remarks: see `Slice`."""

    lines: Lines
    acquired: np.ndarray
    limits: tuple[Limits, Limits]
    acceleration: int
    n_needed: int
    grid: int
    calibration: Lines | None
    block: tuple[slice, slice] | None
    remarks: tuple[str, ...]


class Settler:
    """Settles the slices of a scan. readouts: those of EPI; averaged: lines of one number are averages, which are
    added up."""

    def __init__(
        self,
        header: Header,
        noise: NoiseLines,
        receiving: Receiving,
        log: ScanLog,
        readouts: Readouts | None = None,
        *,
        averaged: bool,
    ) -> None:
        self.header, self.readouts, self.noise, self.receiving, self.log = header, readouts, noise, receiving, log
        self.rows, self.cols = encoded_grid(header)
        self.partitions = n_partitions(header)
        self.limits, self.partition_limits = line_limits(header), partition_limits(header)
        self.acceleration = acceleration(header)
        self.repeats = "averages" if averaged else "lines of one label"
        self.centre: int | None = None  # line of the k-space centre in the last image without diffusion weighting
        self.embedded: dict[int, tuple[SliceKey, Lines]] = {}  # calibration of the first image of each slice number

    def is_whole(self, numbers: set[int], *, last: bool) -> bool:
        """Whether a volume has the lines that it needs; last: its repetition ends here, else none may be left out."""
        shape = self.partitions, self.rows
        limits = within(self.partition_limits, shape[0]), within(self.limits, shape[1])
        acquired = self._acquired(numbers, limits)
        if last:
            return volume_completeness(acquired, limits, self.acceleration)[2] is None
        return fills_its_lattice(acquired, limits, self.acceleration)

    def settled(self, key: SliceKey, image: Lines, calibration: Lines | None, late: SliceKey | None = None) -> Settled:
        """Of the lines of a slice or volume, and of its calibration where that is an acquisition of its own; late: the
        image after it that brought this. Raises LostError, and BadInputError for what spoils the whole scan."""
        remarks: list[str] = []
        if self.partitions > 1:
            _check(image, "")
        lines = image.of_channels(self._alive(image, remarks))
        shape = self.partitions, self.rows
        if self.partitions > 1:
            lines, limits = placed_in_volume(lines, (self.partition_limits, self.limits), shape, remarks)
        else:
            weighted = may_be_weighted(self.header, key)
            unweighted = self.centre if weighted else None
            lines, own = placed(lines, self.limits, self.rows, remarks, whole_rows(self.header), unweighted)
            self.centre = self.centre if weighted else own.center
            limits = self.partition_limits, own
            _check(lines, "")
        acquired = self._acquired(lines.sums, limits)
        announced = self.acceleration
        factor, needed, gap = self._complete(lines.sums, acquired, limits, announced)
        if gap is not None and (inner := self._inside_zeros(lines, limits)) is not None:
            told = " and ".join(
                f"{name} outside {own.minimum} to {own.maximum}"
                for name, own, before in zip(("partitions", "lines"), inner, limits)
                if own != before
            )
            limits = inner
            factor, needed, gap = self._complete(lines.sums, acquired, limits, announced)
            remarks.append(f"{told} came as zeros, which are no data: the image has the detail of the others alone")
        if gap is not None and lines.zeros:  # lines of zeros were never acquired: the others tell R
            factor, needed, gap = self._complete(lines.sums, acquired, limits, None)
            remarks.append(f"R = {announced} is announced, and lines of zeros among the others tell R = {factor}")
        if gap is not None:
            gap += self._advice(lines, limits[1]) if self.partitions == 1 else self._advice_on_volume(acquired, limits)
            raise LostError(gap if lines.fault is None else f"{gap}; {lines.fault}")
        if lines.fault is not None:
            remarks.append(f"{lines.fault}: it is left out")
        check_repeats(lines, self._noise_energy(lines), self.repeats)
        grid = self._with_oversampling(lines, limits, self.readout_grid(lines.layout), remarks)
        if self.readouts is None:
            lines = echo_centred(lines, limits, grid, remarks)
            lines = self._without_filling(lines, grid, remarks)
        self.note_noise(lines)
        remarks += clipping(lines)
        remarks += self._blind(lines, limits)
        alike = self._of_one_phase(key, lines, limits)
        remarks += halved(alike, limits)
        block = None
        if calibration is not None:
            calibration = self._checked(calibration, lines)
            if self.partitions > 1:
                calibration = renumbered_in_volume(calibration, limits, remarks)
            else:
                calibration = renumbered(calibration, limits[1], remarks)
            remarks += halved(calibration, limits, " of its calibration")
            block = self._block(self._acquired(calibration.sums, limits))
            if block is not None and late is not None:
                remarks += _borrowed(key, lines, late, calibration)
        if block is None:
            calibration, block = None, self._block(self._acquired(alike.sums, limits))
            if block is None and alike is not lines and not tells_weightings(self.header):
                block = self._of_the_first(key, acquired, remarks)
            if block is not None and (factor > 1 or lines.n_shots > 1):
                self._keep_embedded(key, lines, limits, block)
            elif block is None:
                calibration, block = self._embedded(key, lines, limits, remarks)
        acquired = acquired if self.partitions > 1 else acquired[0]
        return Settled(lines, acquired, limits, factor, needed, grid, calibration, block, tuple(remarks))

    def _of_one_phase(self, key: SliceKey, lines: Lines, limits: tuple[Limits, Limits]) -> Lines:
        """Of weighted shots, which have a phase each, the lines of the one that has the k-space centre; else all."""
        if lines.n_shots < 2 or not may_be_weighted(self.header, key):
            return lines
        nearest = min(lines.shots, key=lambda number: abs(number - limits[1].center))
        return lines.without({number for number, shots in lines.shots.items() if shots != lines.shots[nearest]})

    def _of_the_first(self, key: SliceKey, acquired: np.ndarray, remarks: list[str]) -> tuple[slice, slice] | None:
        """The block of all shots, of the first image of its slice alone."""
        block = None if key.slice in self.embedded else self._block(acquired)
        if block is not None:
            remarks.append(FIRST_CALIBRATES)
        return block

    def _keep_embedded(
        self, key: SliceKey, lines: Lines, limits: tuple[Limits, Limits], block: tuple[slice, slice]
    ) -> None:
        """Keep the calibration lines of the first image of a slice number: later ones may bring none."""
        if key.slice not in self.embedded:
            places = places_of(lines.sums) + offsets(limits, (self.partitions, self.rows))
            first, end = (np.array([getattr(part, name) for part in block]) for name in ("start", "stop"))
            outside = ~((places >= first) & (places < end)).all(1)
            self.embedded[key.slice] = key, lines.without(set(np.array(list(lines.sums))[outside].tolist()))

    def _embedded(
        self, key: SliceKey, lines: Lines, limits: tuple[Limits, Limits], remarks: list[str]
    ) -> tuple[Lines | None, tuple[slice, slice] | None]:
        """The calibration lines of another image of the slice, and their block; None where there are none."""
        if key.slice not in self.embedded:
            return None, None
        other, kept = self.embedded[key.slice]
        calibration = self._checked(kept, lines)
        block = self._block(self._acquired(calibration.sums, limits))
        if block is None:
            return None, None
        remarks += _borrowed(key, lines, other, calibration)
        return calibration, block

    def _inside_zeros(self, lines: Lines, limits: tuple[Limits, Limits]) -> tuple[Limits, Limits] | None:
        """The limits without partitions and lines of zeros before and after the others, with which a slice or volume is
        complete: the matrix was filled up to a larger one. None where it was not."""
        places, zeros = places_of(lines.sums), places_of(lines.zeros)
        first, last = places.min(0), places.max(0)
        before, behind = (zeros < first).any(0), (zeros > last).any(0)
        inner = [
            Limits(
                max(int(first[axis]), own.minimum) if before[axis] else own.minimum,
                min(int(last[axis]), own.maximum) if behind[axis] else own.maximum,
                own.center,
            )
            for axis, own in enumerate(limits)
        ]
        narrowed = [own for own, outer in zip(inner, limits) if own != outer]
        if not narrowed or not all(own.minimum < own.center < own.maximum for own in narrowed):
            return None
        every = {*lines.sums, *lines.zeros}
        if self._complete(every, self._acquired(every, limits), limits, self.acceleration)[2] is not None:
            return None
        return inner[0], inner[1]

    def _advice(self, lines: Lines, limits: Limits) -> str:
        """What is said of an incomplete slice with which nothing is wrong but the header: another R, or limits that
        partial Fourier has. Of limits that are told the last may be missing because the scan broke off."""
        numbers = np.array(sorted(lines.sums))
        factor = regular_acceleration(numbers, limits)
        if factor > 1 and completeness(numbers, limits, factor)[2] is None:
            path = "encoding.parallelImaging.accelerationFactor.kspace_encoding_step_1"
            return f"; its lines come at R = {factor}: if that is right, give it (--set {path}={factor})"
        told = tells_line_limits(self.header)
        for name, value in (("minimum", int(numbers[0])), *([] if told else [("maximum", int(numbers[-1]))])):
            own = replace(limits, **{name: value})
            if own.minimum < own.center < own.maximum and completeness(numbers, own, self.acceleration)[2] is None:
                values = {**asdict(own), "center": self.limits.center}.items()
                changes = ";".join(f"encoding.encodingLimits.kspace_encoding_step_1.{key}={n}" for key, n in values)
                has = "limits of all lines" if told else "no limits"
                return f"; the header has {has}: if the scan is of partial Fourier, give its own (--set '{changes}')"
        return ""

    def _advice_on_volume(self, acquired: np.ndarray, limits: tuple[Limits, Limits]) -> str:
        """The same of a volume: another R, by the lattice of its lines or, in compressed sensing, by their number."""
        by_chance = [acceleration_by_chance(acquired, limits)] if self.acceleration in (None, 1) else []
        for told in (None, *by_chance):
            factor, _, gap = volume_completeness(acquired, limits, told)
            if factor > 1 and gap is None:
                path = "encoding.parallelImaging.accelerationFactor.kspace_encoding_step"
                what = "its lines come at" if told is None else "left out by chance, as in compressed sensing, they are"
                return f"; {what} R = {factor}: if that is right, give it (--set '{path}_1={factor};{path}_2=1')"
        return ""

    def _acquired(self, numbers: Iterable[int], limits: tuple[Limits, Limits]) -> np.ndarray:
        """(partitions, rows) bool: where lines of these numbers lie on the encoded matrix."""
        shape = self.partitions, self.rows
        return on_matrix(places_of(numbers) + offsets(limits, shape), shape)

    def levels(self, lines: Lines, limits: tuple[Limits, Limits]) -> np.ndarray:
        """(n_coils,): energy of a sample in the centre of k-space, over that of the noise where it is measured; empty
        where no line is there."""
        assert lines.header is not None
        near = lines.around(limits, CENTRE)
        columns = slice(max(0, lines.layout.center - CENTRE), lines.layout.center + CENTRE + 1)
        if not near:
            return np.zeros(0)
        found = [np.square(np.abs(lines.sums[n][:, columns] / lines.counts[n])).mean(1) for n in near]
        return np.mean(found, 0) / self.noise.powers(lines.numbers, lines.header.sample_time_us)

    def _blind(self, lines: Lines, limits: tuple[Limits, Limits]) -> list[str]:
        """What is said of channels that hold noise alone."""
        if not self.noise.fitting(lines.numbers):
            return []
        blind = np.flatnonzero(self.levels(lines, limits) < NOISE_ALONE)
        if not len(blind):
            return []
        if len(blind) == len(lines.numbers):
            return ["every channel holds noise alone: see whether the coil was connected and the pulses were sent"]
        told = ", ".join(str(lines.numbers[place]) for place in blind)
        return [f"channel {told} holds noise alone: have the coil looked at, or leave it out (--coils)"]

    def _complete(
        self, numbers: Iterable[int], acquired: np.ndarray, limits: tuple[Limits, Limits], announced: int | None
    ) -> tuple[int, int, str | None]:
        """numbers: of the lines, which `acquired` tells on the matrix."""
        if self.partitions > 1:
            return volume_completeness(acquired, limits, announced)
        return completeness(np.array(sorted(numbers)), limits[1], announced)

    def _block(self, acquired: np.ndarray) -> tuple[slice, slice] | None:
        """Partitions and rows of the fully sampled centre; None where it is too small."""
        if self.partitions > 1:
            return central_box(acquired)
        block = central_block(np.flatnonzero(acquired[0]).tolist(), self.rows // 2)
        return (slice(0, 1), slice(block.start, block.stop)) if len(block) >= FEWEST_CALIBRATION_LINES else None

    def note_noise(self, lines: Lines) -> None:
        """Say so where no noise measurement fits the lines."""
        if not self.noise.lines:
            self.log.remark(NO_NOISE)
        elif not self.noise.fitting(lines.numbers):
            others = sorted({len(numbers) for numbers, _, _ in self.noise.lines})
            self.log.remark(
                f"the noise measurement has {' and '.join(map(str, others))} channels and lacks some of the image's "
                f"{len(lines.numbers)}: the noise is estimated from k-space"
            )

    def _alive(self, lines: Lines, remarks: list[str]) -> list[int]:
        """Places of the channels that are used: those that are asked for, and that carry something."""
        n_coils = len(lines.numbers)
        asked = self.receiving.coils
        if asked is not None and not set(asked) <= set(range(n_coils)):
            raise BadInputError(
                f"coils up to {max(asked)} are asked for and the scan has {n_coils}: give numbers from 0 to "
                f"{n_coils - 1}"
            )
        silent = [place for place in range(n_coils) if not any(data[place].any() for data in lines.sums.values())]
        dead = sorted({*silent, *self.noise.dead(lines.numbers)} if len(silent) < n_coils else set())
        if dead and len(dead) < n_coils:
            remarks.append(f"channel {', '.join(map(str, dead))} of {n_coils} is dead and left out")
        kept = [place for place in (range(n_coils) if asked is None else asked) if place not in dead]
        if asked is not None and not kept and len(dead) < n_coils:
            raise LostError(f"the coils that are asked for ({', '.join(map(str, asked))}) are dead")
        return kept or list(range(n_coils))

    def readout_grid(self, layout: Layout) -> int:
        """Samples of a full readout, which tell whether it is oversampled: the smallest grid that they fit.

        Headers are wrong about it in both directions, so the last candidate is twice what the header says; lines that
        reach neither end of it may have any other oversampling.
        """
        encoded = self.header.encoding[0].encodedSpace.matrixSize.x
        for grid in (self.cols, encoded, 2 * self.cols):
            if layout.fits(grid) and (grid in (self.cols, encoded) or layout.reaches_an_end(grid)):
                return grid
        raise BadInputError(
            f"lines have {layout}, which fits neither the encoded matrix of {encoded} columns nor {self.cols} without "
            "oversampling; correct the matrix size or center_sample"
        )

    def _with_oversampling(self, lines: Lines, limits: tuple[Limits, Limits], grid: int, remarks: list[str]) -> int:
        """`grid`, or that of the header where lines that would fit without oversampling have it all the same.

        Some converters announce the images' matrix, which is interpolated, times the oversampling. Lines then have no
        more samples than images have columns. So have those whose oversampling is gone: but their head is wider. Of
        oversampling that the header does not tell at all, it is said alone.
        """
        encoded, held = self.header.encoding[0].encodedSpace.matrixSize.x, lines.layout.end - lines.layout.first
        self._check_view(lines, limits, grid)
        if self.readouts is not None or grid != self.cols or not lines.layout.is_symmetric:
            return grid
        if self.cols == encoded:
            view = self.header.encoding[0].encodedSpace.fieldOfView_mm
            finer = view.x / encoded < FINER * view.y / self.rows
            if finer and held == grid and in_the_middle(lines, limits, 0.5):
                remarks.append(
                    f"the head fills no more than half of the lines, and the header tells of no oversampling: if the "
                    f"image is squeezed, they have it, correct encodedSpace.fieldOfView_mm.x (or --set "
                    f"encoding.encodedSpace.fieldOfView_mm.x={2 * view.x:g})"
                )
            return grid
        if held < 1 or not in_the_middle(lines, limits, grid / encoded):
            return grid
        if held < grid:
            return encoded
        if grid <= NARROW * encoded:
            remarks.append(
                f"lines of {held} samples are taken as freed of their oversampling, and the head fills no more than "
                f"{grid / encoded:.0%} of them: if the image is squeezed, they have it, correct "
                f"encodedSpace.matrixSize.x (or --set encoding.encodedSpace.matrixSize.x={held})"
            )
        return grid

    def _check_view(self, lines: Lines, limits: tuple[Limits, Limits], grid: int) -> None:
        """Raises BadInputError where the header has the field of view of an oversampling that is gone: its pixels along
        the lines are far longer than the images', which have as many, and the head fills what would be cut off."""
        encoded, recon = self.header.encoding[0].encodedSpace, self.header.encoding[0].reconSpace
        held, size, view = lines.layout.end - lines.layout.first, encoded.matrixSize.x, encoded.fieldOfView_mm
        if self.readouts is not None or not held == grid == size == recon.matrixSize.x != self.cols:
            return
        longer = view.x / size > LONGER * view.y / self.rows
        if longer and not in_the_middle(lines, limits, self.cols / size):
            asked = recon.fieldOfView_mm.x
            raise BadInputError(
                f"the header gives lines of {size} samples {view.x:g} mm and their images, of as many columns, "
                f"{asked:g} mm, and the head fills more of them than that: if they are freed of their oversampling, "
                f"correct encodedSpace.fieldOfView_mm.x (--set encoding.encodedSpace.fieldOfView_mm.x={asked:g})"
            )

    def _without_filling(self, lines: Lines, grid: int, remarks: list[str]) -> Lines:
        """The lines without samples at one end that hold less than noise: of an asymmetric echo that was filled up with
        zeros before its oversampling was removed, which leaves something of the others there."""
        layout = lines.layout
        held = layout.end - layout.first
        if not self.noise.fitting(lines.numbers) or not held == grid == self.cols:
            return lines
        assert lines.header is not None
        some = list(lines.sums)[:: max(1, len(lines.sums) // MOST_LINES)]
        energies = [np.square(np.abs(lines.sums[n][:, layout.first : layout.end])) / lines.counts[n] for n in some]
        powers = self.noise.powers(lines.numbers, lines.header.sample_time_us)
        levels = (np.mean(energies, 0) / powers[:, None]).mean(0)
        fewest = max(1, round(LACKING * held))
        for name, found in (("first", levels), ("last", levels[::-1])):
            lacking = int(np.argmax(found >= QUIETER))
            if fewest <= lacking < held // 2 and found[-fewest:].mean() >= AS_LOUD:
                remarks.append(
                    f"the {name} {lacking} samples of its lines hold less than the noise: they are taken as filled up "
                    "with zeros before the oversampling was removed, as of an asymmetric echo, and are no data"
                )
                lacking += EDGE_MARGIN
                if name == "first":
                    layout = replace(layout, first=layout.first + lacking)
                else:
                    layout = replace(layout, end=layout.end - lacking)
                return replace(lines, layout=layout, sums=dict(lines.sums))
        return lines

    def _noise_energy(self, lines: Lines) -> float | None:
        """Expected |.|^2 of the noise of one line; None where it is not known."""
        assert lines.header is not None
        energy = self.noise.energy(lines.numbers, lines.header.sample_time_us)
        return None if energy is None else energy * lines.layout.n_samples

    def _checked(self, calibration: Lines, lines: Lines) -> Lines:
        """A separate calibration, of the image lines' channels alone."""
        if not set(lines.numbers) <= set(calibration.numbers):
            raise LostError(
                f"its calibration has {calibration.layout.n_coils} channels, its image lines have "
                f"{lines.layout.n_coils}"
            )
        calibration = calibration.of_channels([calibration.numbers.index(number) for number in lines.numbers])
        check_repeats(calibration, self._noise_energy(calibration), "calibration lines of one label")
        _check(calibration, "calibration ")
        return calibration


def _borrowed(key: SliceKey, lines: Lines, other: SliceKey, calibration: Lines) -> list[str]:
    """What is said of the calibration lines of another image of the slice; nothing where they are its own."""
    differing = [name for name in COUNTERS if getattr(key, name) != getattr(other, name)]
    if not differing:
        return []
    told = ", ".join(f"{name} {getattr(other, name)}" for name in differing)
    remarks = [f"it has no calibration lines of its own: those of {told} of its slice calibrate it"]
    assert calibration.header is not None and lines.header is not None
    if not same_place(calibration.header.place, lines.header.place):
        remarks.append("they lie elsewhere than it: see whether the head or the slice moved in between")
    return remarks


def _check(lines: Lines, kind: str) -> None:
    """Lines that do not fit together, or hold no numbers, lose the slice."""
    if lines.lost is not None:
        raise LostError(f"its {kind}lines {lines.lost}")
    if lines.differing > (0 if kind else ALONE):
        raise LostError(f"its {kind}lines differ: {lines.fault}")
    if not any(map(np.any, lines.sums.values())):
        raise LostError(f"all samples of its {kind}lines are zero")
    for number, data in lines.sums.items():
        if not np.isfinite(data).all():
            raise LostError(f"{kind}{line_name(number)} holds NaN or infinite values")
