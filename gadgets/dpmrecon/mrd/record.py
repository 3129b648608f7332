"""The lines of one slice while they come, and what they turn out to be once all are there."""

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace

import ismrmrd
import numpy as np

from ..data import SliceKey
from ..errors import BadInputError, UnsupportedScanError
from .completeness import AGREES, NEAR, energy_peak, nearby_centre, within
from .epi import EpiLine, cartesian
from .header import Limits
from .lines import AROUND, Layout, Lines, LostError, line_name, number_of, places_of
from .readouts import Readouts
from .scan_log import ScanLog

SAME_PLACE_MM = 0.1  # rounding of positions in headers
SAME_DIRECTION = 1e-3
SLICE_STEP_MM = 1.0  # slices lie farther apart, in the mean
# Share of their energy by which repeated lines may differ
DRIFT = 0.05
NOISE_MARGIN = 1.5  # times the expected energy of the noise
TOLD = {"line": "idx.user[5]", "partition": "idx.user[6]"}  # where lines tell the k-space centre's number
AXES = ("partition", "line")  # of a volume's places
KINDS = ("image", "doubtful", "calibration")


@dataclass
class Record:
    """A slice that is being filled. groups: lines by kind (KINDS) and layout.

    doubtful: lines of a flag that excludes a line only where others of the slice do not bear it; zeros: numbers of
    lines that came and hold nothing; places: (position, read direction, phase direction), with the numbers of the
    lines there; backwards: whether lines were read in reversed order; held: lines of EPI, until `settle`.
    """

    groups: dict[tuple[str, Layout], Lines] = field(default_factory=dict)
    zeros: set[int] = field(default_factory=set)
    held: list[EpiLine] = field(default_factory=list)
    places: dict[tuple[float, ...], set[int]] = field(default_factory=dict)
    backwards: set[bool] = field(default_factory=set)

    @property
    def has_image(self) -> bool:
        """Whether lines other than calibration came."""
        kinds = {kind for kind, _ in self.groups} | {line.kind for line in self.held}
        return bool(self.zeros) or bool(kinds - {"calibration"})

    @property
    def numbers(self) -> set[int]:
        """Of all lines that came."""
        return set().union(*(lines.sums for lines in self.groups.values()))

    @property
    def nbytes(self) -> int:
        """That the samples take, about: all lines of EPI are as long."""
        held = len(self.held) * self.held[0].data.nbytes if self.held else 0
        return held + sum(lines.nbytes for lines in self.groups.values())

    def add(
        self,
        kind: str,
        head: ismrmrd.AcquisitionHeader,
        data: np.ndarray,
        layout: Layout,
        number: int,
        distance: float,
        backwards: bool,
    ) -> bool:
        """Keep one line, or say that it is a copy. backwards: its samples came in reversed order."""
        new = self.groups.setdefault((kind, layout), Lines(layout)).add(head, data, number, distance)
        if kind != "calibration":
            place = (*head.position[:], *head.read_dir[:], *head.phase_dir[:])
            self.places.setdefault(place, set()).add(number)
            self.backwards.add(backwards)
        return new

    def settle(self, readouts: Readouts, log: ScanLog) -> None:
        """Add the lines of EPI that are held, as Cartesian ones without ghost."""
        held, self.held = self.held, []
        for found in cartesian(held, readouts, log):
            line = found.line
            new = self.add(line.kind, line.head, found.data, found.layout, line.number, line.distance, False)
            lines = self.groups[line.kind, found.layout]
            lines.lost = lines.lost or found.lost
            if new:
                lines.shots.setdefault(line.number, set()).add(found.shot)
            if found.ghost is not None and found.ghost not in lines.ghosts:
                lines.ghosts.append(found.ghost)

    def calibration_apart(self, announced: bool) -> Lines | None:
        """The calibration lines where they are an acquisition of their own, else None. Headers fail to say so, but a
        row that came once as calibration and once as image tells it: averaging both would mix two acquisitions. Where
        the image's lines fill their gaps, they are the image's own, whatever is announced."""
        lines = self._largest("calibration", None)
        image = self._largest("image", None) or self._largest("doubtful", None)
        if lines is None or image is None:
            return lines if announced else None
        if image.sums.keys() & lines.sums.keys():
            return lines
        return lines if announced and not _fills_gaps(image, lines) else None

    def channels(self, receiver: int | None) -> int | None:
        """How many channels the image's lines have: the header's number where such lines came, else the most frequent
        one; None without lines."""
        counts: Counter[int] = Counter()
        for (kind, layout), lines in self.groups.items():
            if kind != "calibration":
                counts[layout.n_coils] += sum(lines.counts.values())
        if not counts:
            return None
        return receiver if receiver in counts else counts.most_common(1)[0][0]

    def is_of_another_receiver(self, receiver: int, log: ScanLog) -> bool:
        """Whether all lines are those of a body coil, say, with fewer channels: they are no image of this scan."""
        others = {layout.n_coils for _, layout in self.groups}
        if not others or max(others) >= receiver:
            return False
        count = sum(sum(lines.counts.values()) for lines in self.groups.values())
        log.remark(f"{count} lines of {max(others)} channels are left out: the scan's have {receiver}")
        return True

    def _largest(self, kind: str, n_coils: int | None) -> Lines | None:
        """Most of the lines; those of another layout, and as many channels, are its fault."""
        found = [(layout, lines) for (own, layout), lines in self.groups.items() if own == kind]
        found = [(layout, lines) for layout, lines in found if n_coils in (None, layout.n_coils)]
        if not found:
            return None
        usual, most = max(found, key=lambda one: len(one[1].sums))
        odd = [(layout, lines.sums) for layout, lines in found if lines is not most and layout.n_coils == usual.n_coils]
        if odd:
            layout, numbers = odd[0]
            most.differing = sum(len(sums) for _, sums in odd)
            most.fault = f"{line_name(next(iter(numbers)))} has {layout}, the others have {usual}"
        return most

    def image_lines(self, key: SliceKey, receiver: int | None, separate: bool, log: ScanLog) -> Lines | None:
        """The lines of the image, with calibration lines that belong to them; None where none came.

        What is left out is said in `log`. Raises BadInputError for lines that are several slices, and
        UnsupportedScanError for reversed lines among others.
        """
        n_coils = self.channels(receiver)
        if n_coils is None:
            return None if self.calibration_apart(separate) else self._largest("calibration", None)
        self._check_places(key, log)
        if len(self.backwards) > 1:
            raise UnsupportedScanError(
                f"slice {key.slice} has reversed lines among others, as EPI has, and the header's trajectory is not "
                "'epi': convert the scan again with it, and with a trajectoryDescription"
            )
        if True in self.backwards:
            log.remark("lines that were read backwards are turned (the flag REVERSE)")
        others = sorted({layout.n_coils for _, layout in self.groups} - {n_coils})
        if others:
            count = sum(
                sum(lines.counts.values()) for (_, layout), lines in self.groups.items() if layout.n_coils != n_coils
            )
            log.remark(
                f"{count} lines of {' and '.join(map(str, others))} channels are left out: the image's have {n_coils}"
            )
        image, doubtful = self._largest("image", n_coils), self._largest("doubtful", n_coils)
        if image is None:
            image = doubtful
        elif doubtful is not None:
            log.remark(f"{len(doubtful.sums)} lines flagged SURFACECOILCORRECTIONSCAN_DATA are left out")
        calibration = self._largest("calibration", n_coils)
        _check_calibration_place(image, calibration, log)
        if image is not None and calibration is not None and self.calibration_apart(separate) is None:
            if separate:
                log.remark(
                    "the header says that the calibration is separate, and the image's lines fill its gaps: it is "
                    "taken as embedded"
                )
            image.merge(calibration)
        if image is not None:
            image.zeros = self.zeros
            if image.copied:
                log.remark("lines came more than once, bit by bit: they are copies, no averages, and count once")
        return image

    def _check_places(self, key: SliceKey, log: ScanLog) -> None:
        """Lines of one slice lie at one place, or at several where the scanner follows the head, which is said."""
        places = distinct(list(self.places))
        if len(places) < 2:
            return
        numbers = [set().union(*(self.places[p] for p in self.places if same_place(p, place))) for place in places]
        if any(one & other for index, one in enumerate(numbers) for other in numbers[:index]):
            raise BadInputError(
                f"lines of slice {key.slice} lie at {len(places)} positions: every slice needs a label (idx.slice) of "
                "its own, convert the scan again with them"
            )
        if _are_slices(places, numbers):
            raise BadInputError(
                f"the {len(places)} partitions lie at a position each, as slices do: 2D slices are counted by "
                "idx.slice and have matrixSize.z 1, convert the scan again so"
            )
        log.remark(
            "lines of one slice lie at several positions: see whether the scanner followed the head, or slices share a "
            "label (idx.slice)"
        )


def _fills_gaps(image: Lines, calibration: Lines) -> bool:
    """Whether the calibration is a block of adjacent lines, and partitions, with those of the image alone."""
    places = places_of(calibration.sums)
    block = itertools.product(*(range(first, last + 1) for first, last in zip(places.min(0), places.max(0))))
    gaps = set(block) - set(map(tuple, places.tolist()))
    return bool(gaps) and gaps <= set(map(tuple, places_of(image.sums).tolist()))


def _are_slices(places: list[tuple[float, ...]], numbers: list[set[int]]) -> bool:
    """Whether partitions, of whose lines there are the `numbers` at each place, are as far apart as slices: no head
    moves on so."""
    partitions = [set(places_of(own)[:, 0].tolist()) for own in numbers]
    if any(len(own) != 1 for own in partitions) or len(set.union(*partitions)) < len(places):
        return False
    normal = np.cross(places[0][3:6], places[0][6:9])
    return bool(np.ptp([normal @ place[:3] for place in places]) >= SLICE_STEP_MM * (len(places) - 1))


def _check_calibration_place(image: Lines | None, calibration: Lines | None, log: ScanLog) -> None:
    """A slice lies where its own lines do; a calibration from elsewhere is said."""
    headers = [lines.header for lines in (image, calibration) if lines is not None and lines.header is not None]
    if len(headers) == 2 and not same_place(headers[0].place, headers[1].place):
        log.remark(
            "calibration lines say that they lie elsewhere than their slice: the slice's own lines tell its place; "
            "see whether the calibration is that of the slice"
        )


def same_place(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two (position, read direction, phase direction) are one, to rounding."""
    apart = np.abs(np.subtract(one, other))
    return bool(apart[:3].max() <= SAME_PLACE_MM and apart[3:].max() <= SAME_DIRECTION)


def distinct(places: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Those that differ by more than rounding."""
    found: list[tuple[float, ...]] = []
    for place in places:
        if not any(same_place(place, other) for other in found):
            found.append(place)
    return found


def placed(
    lines: Lines,
    limits: Limits,
    rows: int,
    remarks: list[str],
    whole: int | None = None,
    unweighted: int | None = None,
) -> tuple[Lines, Limits]:
    """The lines that lie in the matrix of `rows` lines, and the limits there. The k-space centre is put right where the
    lines' energies contradict the header; whole: lines that the images' matrix has in the same field of view;
    unweighted: the centre of an image without diffusion weighting, which a weighted one has too: a head that moves
    meanwhile shifts its peak."""
    whole = rows if whole is None else whole
    if unweighted is None:
        own = _centred(lines.energies(), limits, lines.told_centre[0], "line", remarks, rows, whole)
    else:
        own = replace(limits, center=unweighted)
        if own != limits:
            remarks.append(
                f"the header's centre line {limits.center} is not the k-space centre: line {unweighted} is taken, by "
                "the image without diffusion weighting"
            )
    inside = within(own, rows)
    outside = {
        number for number in lines.sums if not inside.center - rows // 2 <= number < inside.center - rows // 2 + rows
    }
    if outside:
        left_out = f"{len(outside)} lines outside the encoded matrix of {rows} lines are left out"
        cut = inside.center != limits.center and max(lines.sums) - min(lines.sums) < rows
        remarks.append(left_out + (_larger_matrix(lines, inside.center, whole) if cut else ""))
        lines = lines.without(outside)
    return lines, inside


def _larger_matrix(lines: Lines, center: int, whole: int) -> str:
    """What is said of a matrix that has as many lines as came of a partial Fourier scan, as GE's headers have it."""
    first, end = min(lines.sums), max(lines.sums) + 1
    rows = 2 * max(center - first, end - center)
    if abs(rows - whole) <= 2 * NEAR:  # lines are whole on one side, which tells the centre to a line
        rows, ends = whole, (end - (whole - whole // 2), first + whole // 2)
        center = min(ends, key=lambda one: abs(one - center))
    path = "encoding.encodingLimits.kspace_encoding_step_1.center"
    return (
        ": the matrix is that of the lines that came alone, as of partial Fourier or fractional NEX "
        f"(--set 'encoding.encodedSpace.matrixSize.y={rows};{path}={center}' keeps them)"
    )


def echo_centred(lines: Lines, limits: tuple[Limits, Limits], grid: int, remarks: list[str]) -> Lines:
    """The lines with the echo's centre put right on a readout of `grid` samples, where the energies of those around the
    k-space centre contradict center_sample: some converters write the middle of the samples that came.

    limits: of partitions and of lines. Of a full readout it is said alone: its samples have one place."""
    layout = lines.layout
    first, end = layout.first, layout.end
    near = [lines.sums[number][:, first:end] for number in lines.around(limits, AROUND)]
    if not near or end <= first:
        return lines
    energies = dict(enumerate(np.sum([np.square(np.abs(data)).sum(0) for data in near], 0).tolist(), first))
    peak = energy_peak(energies, Limits(first, end - 1, layout.center))
    if peak is None:
        return lines
    # most echoes are whole on one side, which tells the centre to a sample
    ends = end - (grid - grid // 2), first + grid // 2
    moved = replace(layout, center=next((center for center in ends if abs(center - peak) <= NEAR), peak))
    if end - first == grid or not moved.fits(grid):
        remarks.append(
            f"the echo's peak is sample {peak} of {layout.n_samples} and center_sample is {layout.center}: if the echo "
            "is asymmetric, encodedSpace.matrixSize.x is not that of a full readout, correct both"
        )
        return lines
    remarks.append(
        f"the header's center_sample {layout.center} is not the k-space centre: sample {moved.center} is taken, by the "
        "energy's peak"
    )
    return replace(lines, layout=moved, sums=dict(lines.sums))


def placed_in_volume(
    lines: Lines, limits: tuple[Limits, Limits], shape: tuple[int, int], remarks: list[str]
) -> tuple[Lines, tuple[Limits, Limits]]:
    """The same of a volume whose matrix has the `shape` (partitions, rows): limits of partitions and of lines."""
    found, told = [], lines.told_centre[::-1]
    for energies, limit, centre, name, size in zip(_largest_by_number(lines), limits, told, AXES, shape):
        found.append(within(_centred(energies, limit, centre, name, remarks, size), size))
    index = places_of(lines.sums) + offsets((found[0], found[1]), shape)
    outside = ((index < 0) | (index >= shape)).any(1)
    if outside.any():
        remarks.append(
            f"{outside.sum()} lines outside the encoded matrix of {shape[0]} partitions of {shape[1]} lines are left "
            "out"
        )
        lines = lines.without(set(np.array(list(lines.sums))[outside].tolist()))
    return lines, (found[0], found[1])


def _largest_by_number(lines: Lines) -> list[dict[int, float]]:
    """The largest energy of a line in each partition, and in each line of all partitions."""
    energies, found = np.array(list(lines.energies().values())), []
    for numbers in places_of(lines.sums).T:
        first = numbers.min()
        largest = np.full(np.ptp(numbers) + 1, -1.0)
        np.maximum.at(largest, numbers - first, energies)
        found.append({int(first + index): float(largest[index]) for index in np.flatnonzero(largest >= 0)})
    return found


def renumbered_in_volume(calibration: Lines, limits: tuple[Limits, Limits], remarks: list[str]) -> Lines:
    """As `renumbered`, of a volume: limits of its partitions and lines. The middle of the block is its centre where the
    peak lies beside it: the head's phase moves that by one."""
    told, shift = [], 0
    centres = calibration.told_centre[::-1]
    for energies, limit, centre, name in zip(_largest_by_number(calibration), limits, centres, AXES):
        own = _centred(energies, limit, centre, name, []).center
        middle = min(energies) + (max(energies) + 1 - min(energies)) // 2
        if own != limit.center and abs(middle - own) <= AGREES:
            own = middle
        if own != limit.center:
            told.append(f"{name} {own} is taken for {limit.center}")
            shift += (limit.center - own) * number_of(int(name == "line"), int(name == "partition"))
    if not told:
        return calibration
    remarks.append(
        f"calibration lines are counted otherwise than the image's: their {' and their '.join(told)}, by the energy's "
        "peak"
    )
    return _shifted(calibration, shift)


def _shifted(lines: Lines, shift: int) -> Lines:
    """The lines under numbers that are `shift` larger."""
    return replace(
        lines,
        sums={number + shift: data for number, data in lines.sums.items()},
        counts={number + shift: count for number, count in lines.counts.items()},
    )


def renumbered(calibration: Lines, limits: Limits, remarks: list[str]) -> Lines:
    """A slice's calibration of an acquisition of its own, counted as the image's lines are.

    The energy's peak tells where it is not, as where it is counted from 0 on. limits: of the image's lines."""
    told: list[str] = []
    own = _centred(calibration.energies(), limits, calibration.told_centre[0], "line", told)
    if not told:
        return calibration
    remarks.append(
        f"calibration lines are counted otherwise than the image's: their line {own.center} is taken for its "
        f"{limits.center}, by the energy's peak"
    )
    return _shifted(calibration, limits.center - own.center)


def offsets(limits: tuple[Limits, Limits], shape: tuple[int, int]) -> np.ndarray:
    """What is added to (partition, line) for the place in the matrix of a volume, whose centre is at n//2."""
    return np.array([size // 2 - limit.center for size, limit in zip(shape, limits)])


def _centred(
    energies: dict[int, float],
    limits: Limits,
    told: int | None,
    name: str,
    remarks: list[str],
    size: int | None = None,
    whole: int = 0,
) -> Limits:
    """The limits with the k-space centre put right where the energies contradict it; told: centre as the lines say;
    name: of what is counted; size, whole: of the matrix and of the images', which tell a centre nearby."""
    center = energy_peak(energies, limits)
    if center is not None and told is not None and abs(told - center) <= AGREES:
        center = told
    elif center is None and size is not None:
        center = nearby_centre(energies, limits, told, size, whole)
    if center is None:
        return limits
    source = f"{TOLD[name]} and the energy's peak" if center == told else "the energy's peak"
    remarks.append(
        f"the header's centre {name} {limits.center} is not the k-space centre: {name} {center} is taken, by {source}"
    )
    return Limits(limits.minimum, limits.maximum, center)


def check_repeats(lines: Lines, noise: float | None, what: str) -> None:
    """Lines of one number are averages, to noise and a little drift: others are not added up.

    noise: expected |.|^2 of the noise of one line; None takes that of the quietest line; what: the lines are. Raises
    LostError.
    """
    if not lines.repeats:
        return
    noise = lines.quietest() if noise is None else noise
    for repeat in lines.repeats:
        difference, energy = float(repeat.difference.sum()), float(repeat.energy.sum())
        if difference > NOISE_MARGIN * noise * (1 + 1 / repeat.count) + DRIFT * max(0.0, energy - noise):
            advice = "reconstruct them apart" if what == "averages" else "label what is different about them"
            raise LostError(
                f"its {what} differ by more than noise ({line_name(repeat.number)}): they are not added up, {advice}"
            )
