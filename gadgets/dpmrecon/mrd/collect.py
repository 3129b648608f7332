"""From acquisitions to slices: lines are collected per slice, whitened, freed of readout oversampling, and checked.

The lines may come from a file (`file.open_scan`) or a stream. Rows are phase-encoding lines, columns readout samples.
What a line is, is decided in `_Collector.add`, and for a slice as a whole in `record.py`; `making.py` makes the slices.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import ismrmrd
import numpy as np

from ..data import LostSlice, Slice, SliceKey
from ..errors import BadInputError, UnsupportedScanError
from ..memory import nearly_full_of
from .averages import have_phases, together
from .completeness import FEWEST_CALIBRATION_LINES, central_block, check_announced, missing_slices
from .diffusion import counted_for_images
from .epi import EpiLine
from .flags import (
    LAST_IN_SLICE,
    LAST_OF_ALL,
    NOISE,
    PHASE_CORRECTION,
    REVERSED,
    SURFACE_COIL,
    calibrates_alone,
    names_of,
)
from .header import (
    Header,
    Limits,
    calibration_is_interleaved,
    calibration_is_separate,
    check_supported,
    is_epi,
    line_limits,
    n_partitions,
    partition_limits,
    receiver_channels,
)
from .header_doubts import doubts
from .lines import Layout, LineHeaders, Lines, LostError, number_of
from .making import Maker
from .navigators import Navigators
from .noise_lines import NoiseLines
from .readouts import Readouts
from .receiving import Receiving, by_vendor
from .record import Record, same_place
from .scan_log import ScanLog
from .settling import Settled, Settler
from .stack import remark_on_stack
from .waiting import Waiting

CORRECTIONS = 3  # phase-correction lines that are looked at
ECHOES_APART = 0.1  # samples, of EPI that its header calls Cartesian


def slices(
    acquisitions: Iterable[ismrmrd.Acquisition],
    header: Header,
    line_headers: LineHeaders | None = None,
    *,
    combine_averages: bool = False,
    receiving: Receiving = Receiving(),  # noqa: B008
    log: ScanLog | None = None,
) -> Iterator[Slice | LostSlice]:
    """Collect lines into slices; each leaves when its line flagged ACQ_LAST_IN_SLICE came, or at the end. A volume
    leaves with such a line once it is complete, because some scanners end each partition with one.

    line_headers: gets that of the image line nearest each slice's centre, before it leaves. Averages are slices of
    their own unless `combine_averages`; then they are one slice that leaves with the last announced average: their
    mean, or all where each has a phase (`averages.py`). Memory holds the open slices, the noise lines and one separate
    calibration a slice number, which the other repetitions, averages and contrasts use if they bring none; and the
    slices that wait for one, or with interleaved calibration for the lines of others. Lines that are for calibration
    alone are image lines too, unless the header or a row that came as both says otherwise. receiving: how lines are
    taken; log: gets what became of them. At the end each announced slice of which nothing came is a LostSlice. Raises
    UnsupportedScanError and BadInputError for scans that cannot be used at all.
    """
    check_supported(header)
    check_announced(header, combine_averages=combine_averages)
    heads = {} if line_headers is None else line_headers
    apart = combine_averages and have_phases(header)
    mean = combine_averages and not apart
    collector = _Collector(header, heads, mean, receiving, ScanLog() if log is None else log)
    found = collector.slices(acquisitions)
    yield from together(found, header, heads) if apart else found


@dataclasses.dataclass(frozen=True)
class SettledSlice:
    """What the lines of a slice, or of a volume, are; without torch. levels: of its channels, see `Settler.levels`."""

    key: SliceKey
    found: Settled
    levels: np.ndarray


def settled(
    acquisitions: Iterable[ismrmrd.Acquisition],
    header: Header,
    line_headers: LineHeaders,
    receiving: Receiving,
    log: ScanLog,
    *,
    combine_averages: bool = False,
) -> Iterator[SettledSlice | LostSlice]:
    """As `slices`, up to where k-space would be made; averages that have a phase each come one by one."""
    check_supported(header)
    check_announced(header, combine_averages=combine_averages)
    mean = combine_averages and not have_phases(header)
    yield from _Collector(header, line_headers, mean, receiving, log, _Looker).slices(acquisitions)


class _Looker(Settler):
    """Stands in the place of the `Maker`."""

    def made(self, key: SliceKey, found: Settled) -> SettledSlice:
        return SettledSlice(key, found, self.levels(found.lines, found.limits))


class _Collector:
    def __init__(
        self,
        header: Header,
        line_headers: LineHeaders,
        combine_averages: bool,
        receiving: Receiving,
        log: ScanLog,
        maker: type[Settler] = Maker,
    ) -> None:
        self.header, self.line_headers, self.receiving, self.log = header, line_headers, receiving, log
        self.partitions = n_partitions(header)
        self.limits, self.partition_limits = line_limits(header), partition_limits(header)
        self.separate, self.interleaved = calibration_is_separate(header), calibration_is_interleaved(header)
        self.combine_averages = combine_averages
        limit = getattr(header.encoding[0].encodingLimits, "average", None)
        self.last_average = limit.maximum if limit is not None else None
        self.noise = NoiseLines()
        for line in receiving.noise:
            self._add_noise(line)
        self.readouts = Readouts(header, fixed_receiver=by_vendor(header)) if is_epi(header) else None
        self.navigators: dict[int, Navigators] = {}  # the last ones of each slice number
        self.corrections = Navigators()  # the first phase-correction lines of a scan that is no EPI
        self.maker: Any = maker(header, self.noise, receiving, log, self.readouts, averaged=combine_averages)
        self.open: dict[SliceKey, Record] = {}
        self.calibration: dict[int, tuple[SliceKey, Lines]] = {}
        self.pooled: dict[int, Lines] = {}  # interleaved calibration
        self.waiting = Waiting()  # for it, or for a calibration that comes later
        self.came: dict[SliceKey, tuple[float, ...] | None] = {}  # and where it lies
        self.channels: set[int] = set()  # numbers of channels of image lines
        self.alone: dict[str, int] = {}  # the slab of a 3D scan, the partition of a 2D one
        for remark in receiving.remarks:
            log.remark(remark)
        for remark in doubts(header):
            log.remark(remark)

    def slices(self, acquisitions: Iterable[ismrmrd.Acquisition]) -> Iterator[Any]:
        """Of all the lines: what the maker makes of each slice, or a LostSlice."""
        for line in acquisitions:
            key = self.add(line)
            if key is not None:
                yield from self.close(key)
        yield from self.rest()

    def add(self, line: ismrmrd.Acquisition) -> SliceKey | None:
        """Keep a line, or say why not; returns the slice's key when this was its last line."""
        flags = int(line.flags)
        if flags & NOISE:
            self.log.count("noise", flags)
            if not self.receiving.noise:
                self._add_noise(line)
            return None
        counted_for_images(line.idx, self.header)
        key = self._key(line.idx)
        if flags & PHASE_CORRECTION and self.readouts is not None:
            self._add_navigator(line, flags)
        elif flags & PHASE_CORRECTION:
            self.log.count("left out: phase correction", flags)
            self._add_correction(line)
        elif flags & self.receiving.ignored:
            self.log.count(f"left out: {names_of(flags & self.receiving.ignored)[0]}", flags)
        else:
            self._add_to(self.open.get(key) or self._opened(key), line, flags)
        record = self.open.get(key)
        # a block of calibration lines may end so too; its slice comes later
        if not flags & LAST_IN_SLICE or record is None or not record.has_image:
            return None
        if self.combine_averages and (self.last_average is None or line.idx.average < self.last_average):
            return None
        # the flag may end each partition
        if self.partitions > 1 and not self.maker.is_whole(record.numbers, last=bool(flags & LAST_OF_ALL)):
            return None
        return key

    def _opened(self, key: SliceKey) -> Record:
        """A new record. Raises BadInputError where memory is nearly full of open ones: the process would be ended."""
        if nearly_full_of(sum(record.nbytes for record in self.open.values())):
            raise BadInputError(
                f"memory is full of the lines of {len(self.open)} slices, none of which ended: flag the last line of "
                "each (ACQ_LAST_IN_SLICE), or give the scan as a file"
            )
        self.open[key] = Record()
        return self.open[key]

    def _key(self, counters: ismrmrd.EncodingCounters) -> SliceKey:
        average = 0 if self.combine_averages else counters.average
        return SliceKey(counters.slice, counters.contrast, counters.phase, counters.set, counters.repetition, average)

    def _add_noise(self, line: ismrmrd.Acquisition) -> None:
        if self.receiving.conjugate:
            line = ismrmrd.Acquisition(line.getHead(), line.data.conj())
        self.noise.add(line)

    def _add_navigator(self, line: ismrmrd.Acquisition, flags: int) -> None:
        """Keep one of EPI's: those before image lines are of one shot, whatever their labels."""
        self.log.count("navigator", flags)
        navigators = self.navigators.get(line.idx.slice)
        if navigators is None or navigators.used:
            navigators = Navigators() if navigators is None else navigators.followed()
            self.navigators[line.idx.slice] = navigators
        assert self.readouts is not None
        navigators.off_centre = self.readouts.off_centre(line.getHead())
        data = self._data(line, flags)
        if data.any() and np.isfinite(data).all():
            navigators.lines.append((bool(flags & REVERSED), data))

    def _add_correction(self, line: ismrmrd.Acquisition) -> None:
        """Of a scan that is no EPI by its header: the first ones tell whether echoes differ."""
        found = self.corrections.lines
        if len(found) >= CORRECTIONS:
            return
        found.append((False, line.data.copy()))
        if len(found) == CORRECTIONS and self.corrections.alternate(line.data.shape, ECHOES_APART):
            self.log.remark(
                "echoes of the phase-correction lines differ by turns, and these lines are left out: the image has "
                "ghosts if they were not corrected before; of EPI, give the header's trajectory (--set "
                "encoding.trajectory=epi) with a trajectoryDescription"
            )

    def _data(self, line: ismrmrd.Acquisition, flags: int) -> np.ndarray:
        """(n_coils, n_samples), conjugated and turned where that is due."""
        data = line.data.conj() if self.receiving.conjugate else line.data
        return np.ascontiguousarray(data[:, ::-1]) if flags & REVERSED else data

    def _add_to(self, record: Record, line: ismrmrd.Acquisition, flags: int) -> None:
        counters = line.idx
        only_calibration = calibrates_alone(flags)
        limits, partition_limits = self.limits, self.partition_limits
        if line.encoding_space_ref:
            limits, partition_limits = self._other_space(line.encoding_space_ref, only_calibration)
        if line.trajectory_dimensions and self.header.encoding[0].trajectory is None:
            raise UnsupportedScanError(
                "the lines carry a trajectory and the header names none; only Cartesian scans are reconstructed"
            )
        plane = counters.kspace_encode_step_2  # 1 where it is counted from 1
        if self.partitions == 1 and (plane > 1 or not self._is_alone("partition", plane)):
            raise BadInputError(
                f"a line of partition {plane} came and the header announces a 2D scan: correct its matrixSize.z and "
                "encodingLimits.kspace_encoding_step_2 (or --set their values)"
            )
        if self.partitions > 1 and not self._is_alone("slab", counters.slice):
            raise UnsupportedScanError(
                f"the scan is 3D with several slabs (lines of slabs {self.alone['slab']} and {counters.slice} came); "
                "one is reconstructed: convert each slab to a scan of its own"
            )
        row = _signed(counters.kspace_encode_step_1, limits) - limits.center
        partition = 0
        if self.partitions > 1:
            partition = _signed(plane, partition_limits) - partition_limits.center
        number = number_of(row + self.limits.center, partition + self.partition_limits.center)
        backwards = bool(flags & REVERSED)
        if not line.data.any():
            self.log.count("left out: zeros, which are no data", flags)
            record.zeros.add(number)
            return
        data = self._data(line, flags)
        self.log.count("calibration" if only_calibration else "image", flags)
        kind = "calibration" if only_calibration else ("doubtful" if flags & SURFACE_COIL else "image")
        self.channels.add(len(data))
        head = line.getHead()
        layout = Layout.of(line, backwards=backwards)
        distance = math.hypot(row, partition)
        if self.readouts is None or not is_epi(self.header, line.encoding_space_ref):
            record.add(kind, head, data, layout, number, distance, backwards)
            return
        navigators = self.navigators.get(counters.slice)
        if navigators is not None:
            navigators.used = True
        record.held.append(EpiLine(kind, head, data, layout, number, distance, backwards, navigators))

    def _is_alone(self, what: str, number: int) -> bool:
        """Whether no other number of what there may be one of came before."""
        return self.alone.setdefault(what, number) == number

    def _other_space(self, number: int, only_calibration: bool) -> tuple[Limits, Limits]:
        """Limits of lines and partitions of another encoding space, which a calibration of the image's geometry may
        use."""
        encodings = self.header.encoding
        if number >= len(encodings):
            raise BadInputError(
                f"a line refers to encoding space {number}, the header has {len(encodings)}; convert the scan again"
            )
        other, own = encodings[number].encodedSpace, encodings[0].encodedSpace
        # fewer lines of the same field of view lie where the image's do
        same_readout = self.readouts is not None or (
            other.fieldOfView_mm.x == own.fieldOfView_mm.x and other.matrixSize.x == own.matrixSize.x
        )
        same_view = (other.fieldOfView_mm.y, other.fieldOfView_mm.z) == (own.fieldOfView_mm.y, own.fieldOfView_mm.z)
        usable = only_calibration and same_view and same_readout
        if not usable or not self.separate:
            advice = " (--set encoding.parallelImaging.calibrationMode=separate, if they are)" if usable else ""
            raise UnsupportedScanError(
                f"lines of encoding space {number} came; only space 0, and separate calibration lines of the same "
                f"readout and field of view, are reconstructed{advice}"
            )
        return line_limits(self.header, number), partition_limits(self.header, number)

    def close(self, key: SliceKey) -> Iterator[Any]:
        """The slice of `key`; nothing where it waits, or its calibration alone came, which is kept."""
        record = self._settled(key)
        del self.open[key]
        receiver = self._receiver()
        if receiver is not None and record.is_of_another_receiver(receiver, self.log):
            return
        apart = record.calibration_apart(self.separate)  # before they become lines of the image
        image = record.image_lines(key, receiver, self.separate, self.log)
        if apart is not None:
            self.calibration[key.slice] = (key, apart)
        if image is None:
            if record.zeros:
                self.came.setdefault(key, None)
                yield LostSlice(key, "all samples of its lines are zero")
            return
        place, again = next(iter(record.places), None), key in self.came
        before = self.came.setdefault(key, place)
        if again and self.combine_averages:
            # a stream's header alone tells two averages from two slices
            announced = (self.last_average or 0) + 1
            yield LostSlice(key, f"more averages came than the header announces ({announced}), its image lacks them")
        elif again and place is not None and before is not None and not same_place(place, before):
            raise BadInputError(
                f"lines of slice {key.slice} lie at 2 positions or more: every slice needs a label (idx.slice) of its "
                "own, convert the scan again with them"
            )
        elif again:
            yield LostSlice(key, "its lines came twice, each time as a whole slice: label what is different about them")
        else:
            assert image.header is not None
            self.line_headers[key] = image.header
            calibration = self._calibration_of(key.slice)
            if self.interleaved and calibration is None:
                yield from self._pool(key, image)
            else:
                yield from self._made(key, image, calibration)
                if key.slice in self.calibration or key.slice in self.maker.embedded:
                    yield from self._late(key.slice)

    def _made(
        self,
        key: SliceKey,
        image: Lines,
        calibration: tuple[SliceKey, Lines] | None,
        *,
        late: bool = False,
        last: bool = False,
    ) -> Iterator[Any]:
        """What the maker makes of a slice; nothing where it waits for its calibration. late: that came after it;
        last: none comes any more."""
        other, lines = calibration or (key, None)
        try:
            found = self.maker.settled(key, image, lines, other if late else None)
            if found.block is None and not last:
                yield from self.waiting.add(key, image)
                return
            if self.partitions > 1 and found.lines is not image:
                image.sums.clear()  # memory holds the lines of a volume once
            item = self.maker.made(key, found)
        except LostError as lost:
            item = LostSlice(key, str(lost))
        yield item

    def _settled(self, key: SliceKey) -> Record:
        """An open record, whose lines of EPI have become Cartesian ones."""
        record = self.open[key]
        if self.readouts is not None:
            record.settle(self.readouts, self.log)
        return record

    def _receiver(self) -> int | None:
        """Channels of the receiver: as the header has them, where such lines came, else those of the noise."""
        announced, measured = receiver_channels(self.header), {len(numbers) for numbers, _, _ in self.noise.lines}
        if announced in measured | self.channels:
            return announced
        return measured.pop() if len(measured) == 1 else announced

    def _pool(self, key: SliceKey, image: Lines) -> Iterator[Any]:
        """With interleaved calibration every average or repetition brings other lines: together they calibrate."""
        pooled = self.pooled.setdefault(key.slice, dataclasses.replace(image, sums={}, counts={}, repeats=[]))
        if image.layout == pooled.layout:
            new = image.sums.keys() - pooled.sums.keys()
            pooled.sums.update({number: image.sums[number] for number in new})
            pooled.counts.update({number: image.counts[number] for number in new})
        yield from self.waiting.add(key, image)
        if set(range(self.limits.minimum, self.limits.maximum + 1)) <= pooled.sums.keys():
            yield from self._served(key.slice)

    def _served(self, number: int) -> Iterator[Any]:
        """The slices that waited for the lines of others to calibrate them."""
        pooled = self.pooled[number]
        for key, image in self.waiting.pop(number):
            own, all_of_them = (central_block(lines.sums, self.limits.center) for lines in (image, pooled))
            together = len(own) < FEWEST_CALIBRATION_LINES <= len(all_of_them)
            if together:
                self.log.remark("averages or repetitions with interleaved lines are calibrated by all of them together")
            for found in self._made(key, image, (key, pooled) if together else None, last=True):
                yield dataclasses.replace(found, pooled=together) if isinstance(found, Slice) else found

    def _late(self, number: int, *, last: bool = False) -> Iterator[Any]:
        """The slices that waited for a calibration, once another image of theirs brought one, or at the end."""
        calibration = self._calibration_of(number)
        for key, image in self.waiting.pop(number):
            yield from self._made(key, image, calibration, late=True, last=last)

    def rest(self) -> Iterator[Any]:
        """At the end of the stream: the slices still open, complete or not, those that wait, calibrations without an
        image, and what was announced and never came."""
        # first the records without an image: they may calibrate the others
        for key in sorted(self.open, key=lambda key: (self.open[key].has_image, key)):
            yield from self.close(key)
        for number in self.waiting:
            yield from self._served(number) if number in self.pooled else self._late(number, last=True)
        seen = {key.slice for key in self.came}
        for number, (key, lines) in self.calibration.items():
            if number not in seen and lines.header is not None:
                self.came[key], self.line_headers[key] = None, lines.header
                yield LostSlice(key, "only its calibration lines came")
        if not self.came:
            receiver, came = self._receiver(), max(self.channels, default=0)
            if receiver is not None and 0 < came < receiver:
                raise BadInputError(
                    f"all lines have {came} channels or fewer, and header or noise measurement have {receiver}: where "
                    "channels were combined, correct acquisitionSystemInformation.receiverChannels (or --set "
                    f"acquisitionSystemInformation.receiverChannels={came})"
                )
            raise BadInputError("no image lines came, only noise measurements, navigators or nothing; send raw k-space")
        if self.partitions == 1:
            remark = remark_on_stack(self.came, self.header.encoding[0].reconSpace.fieldOfView_mm.z)
            if remark is not None:
                self.log.remark(remark)
        yield from missing_slices(self.header, self.came, combine_averages=self.combine_averages)

    def _calibration_of(self, number: int) -> tuple[SliceKey, Lines] | None:
        """A calibration of its own of this slice number, and with which image it came."""
        if number in self.calibration:
            return self.calibration[number]
        found = ((key, self._settled(key).calibration_apart(self.separate)) for key in self.open if key.slice == number)
        return next(((key, lines) for key, lines in found if lines is not None), None)


def _signed(number: int, limits: Limits) -> int:
    """Of a line or partition: some count from the k-space centre on, and MRD's counters have no sign."""
    return number - 2**16 if limits.minimum < 0 and number >= 2**15 else number
