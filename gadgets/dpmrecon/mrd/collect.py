"""From acquisitions to slices: lines are collected per slice, whitened, freed of readout oversampling, and checked.

The lines may come from a file (`file.open_scan`) or a stream. Rows are phase-encoding lines, columns readout samples.
What a line is, is decided in `_Collector.add`, and for a slice as a whole in `record.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import ismrmrd
import numpy as np
import torch

from ..data import ESTIMATED, MEASURED, LostSlice, Slice, SliceKey, Volume
from ..errors import BadInputError, UnsupportedScanError
from ..physics.noise import estimated_sigma, estimated_volume_sigma
from .completeness import FEWEST_CALIBRATION_LINES, central_block, check_announced, completeness, missing_keys, within
from .flags import CALIBRATION, LAST_IN_SLICE, NOISE, PHASE_CORRECTION, REVERSED, SURFACE_COIL, names_of
from .header import (
    Header,
    Limits,
    acceleration,
    calibration_is_interleaved,
    calibration_is_separate,
    check_supported,
    coarser,
    encoded_grid,
    line_limits,
    n_partitions,
    partition_limits,
    receiver_channels,
    voxel_mm,
)
from .lines import Layout, LineHeaders, Lines, LostError, line_name, number_of, places_of
from .noise_lines import NoiseLines, whitened
from .receiving import Receiving
from .record import Record, check_repeats, offsets, placed, placed_in_volume, same_place
from .scan_log import ScanLog
from .volumes import central_box, on_matrix, volume_completeness

# A noise measurement that is louder than the quietest part of k-space by more than this is not this scan's
TOO_LOUD = 1.5
NO_NOISE = (
    "no noise measurement came: the noise is estimated from k-space, without whitening (--noise names a file with one)"
)


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

    line_headers: gets that of the image line nearest the k-space centre of each slice, before the slice leaves.
    Averages are slices of their own unless `combine_averages`; then their mean is one slice that leaves with the last
    announced average. Memory holds the open slices, the noise lines and one separate calibration a slice number, which
    later repetitions, averages and contrasts use if they bring none; with interleaved calibration, the slices that wait
    for the lines of others. Lines that are for calibration alone are image lines too, unless the header or a row that
    came as both says otherwise. receiving: how lines are taken; log: gets what became of them. At the end each slice
    that the header announces and of which nothing came is a LostSlice.
    Raises UnsupportedScanError and BadInputError, in one sentence, for scans that cannot be used at all.
    """
    check_supported(header)
    check_announced(header, combine_averages=combine_averages)
    heads = {} if line_headers is None else line_headers
    collector = _Collector(header, heads, combine_averages, receiving, ScanLog() if log is None else log)
    for line in acquisitions:
        key = collector.add(line)
        if key is not None:
            yield from collector.close(key)
    yield from collector.rest()


class _Collector:
    def __init__(
        self, header: Header, line_headers: LineHeaders, combine_averages: bool, receiving: Receiving, log: ScanLog
    ) -> None:
        self.header, self.line_headers, self.receiving, self.log = header, line_headers, receiving, log
        self.rows, self.cols = encoded_grid(header)
        self.partitions = n_partitions(header)
        self.limits, self.partition_limits = line_limits(header), partition_limits(header)
        self.announced_acceleration = acceleration(header)
        self.separate, self.interleaved = calibration_is_separate(header), calibration_is_interleaved(header)
        self.combine_averages = combine_averages
        limit = getattr(header.encoding[0].encodingLimits, "average", None)
        self.last_average = limit.maximum if limit is not None else None
        self.noise = NoiseLines()
        for line in receiving.noise:
            self._add_noise(line)
        self.open: dict[SliceKey, Record] = {}
        self.calibration: dict[int, tuple[SliceKey, Lines]] = {}
        self.pooled: dict[int, Lines] = {}  # interleaved calibration
        self.waiting: dict[int, list[tuple[SliceKey, Lines]]] = {}  # for it
        self.came: dict[SliceKey, tuple[float, ...] | None] = {}  # and where it lies
        self.channels: set[int] = set()  # numbers of channels of image lines
        self.noise_is_checked = False
        for axis, has, asked in coarser(header):
            log.remark(
                f"the header asks for images of {asked} pixels along {axis} where {has} are encoded in their "
                "field of view: they have less resolution than the data"
            )

    def add(self, line: ismrmrd.Acquisition) -> SliceKey | None:
        """Keep a line, or say why not; returns the slice's key when this was its last line."""
        flags = int(line.flags)
        if flags & NOISE:
            self.log.count("noise", flags)
            if not self.receiving.noise:
                self._add_noise(line)
            return None
        key = self._key(line.idx)
        if flags & PHASE_CORRECTION:
            self.log.count("left out: phase correction", flags)
        elif flags & self.receiving.ignored:
            self.log.count(f"left out: {names_of(flags & self.receiving.ignored)[0]}", flags)
        else:
            self._add_to(self.open.setdefault(key, Record()), line, flags)
        record = self.open.get(key)
        # a block of calibration lines may end with that flag too: its slice is still to come
        if not flags & LAST_IN_SLICE or record is None or not record.has_image:
            return None
        if self.combine_averages and (self.last_average is None or line.idx.average < self.last_average):
            return None
        if self.partitions > 1 and not self._is_whole(record):
            return None
        return key

    def _is_whole(self, record: Record) -> bool:
        """Whether a volume has what it needs: the flag of the last line may end each of its partitions."""
        shape = self.partitions, self.rows
        limits = within(self.partition_limits, shape[0]), within(self.limits, shape[1])
        numbers = set().union(*(lines.sums for lines in record.groups.values()))
        acquired = on_matrix(places_of(numbers) + offsets(limits, shape), shape)
        return volume_completeness(acquired, limits, self.announced_acceleration)[2] is None

    def _key(self, counters: ismrmrd.EncodingCounters) -> SliceKey:
        average = 0 if self.combine_averages else counters.average
        return SliceKey(counters.slice, counters.contrast, counters.phase, counters.set, counters.repetition, average)

    def _add_noise(self, line: ismrmrd.Acquisition) -> None:
        if self.receiving.conjugate:
            line = ismrmrd.Acquisition(line.getHead(), line.data.conj())
        self.noise.add(line)

    def _add_to(self, record: Record, line: ismrmrd.Acquisition, flags: int) -> None:
        counters = line.idx
        only_calibration = bool(flags & CALIBRATION)
        limits, partition_limits = self.limits, self.partition_limits
        if line.encoding_space_ref:
            limits, partition_limits = self._other_space(line.encoding_space_ref, only_calibration and self.separate)
        if line.trajectory_dimensions and self.header.encoding[0].trajectory is None:
            raise UnsupportedScanError(
                "the lines carry a trajectory and the header names none; only Cartesian scans are reconstructed"
            )
        if self.partitions == 1 and counters.kspace_encode_step_2:
            raise BadInputError(
                f"a line of partition {counters.kspace_encode_step_2} came and the header announces a 2D scan: correct "
                "its matrixSize.z and encodingLimits.kspace_encoding_step_2 (or --set their values)"
            )
        if self.partitions > 1 and counters.slice:
            raise UnsupportedScanError(
                f"the scan is 3D with several slabs (a line of slab {counters.slice} came); one is reconstructed: "
                "convert each slab to a scan of its own"
            )
        row = counters.kspace_encode_step_1 - limits.center
        partition = counters.kspace_encode_step_2 - partition_limits.center
        number = number_of(row + self.limits.center, partition + self.partition_limits.center)
        data, backwards = line.data, bool(flags & REVERSED)
        if not data.any():
            self.log.count("left out: zeros, which are no data", flags)
            record.zeros.add(number)
            return
        if self.receiving.conjugate:
            data = data.conj()
        if backwards:
            data = np.ascontiguousarray(data[:, ::-1])
        self.log.count("calibration" if only_calibration else "image", flags)
        kind = "calibration" if only_calibration else ("doubtful" if flags & SURFACE_COIL else "image")
        self.channels.add(len(data))
        head = line.getHead()
        layout = Layout.of(line, backwards=backwards)
        record.add(kind, head, data, layout, number, math.hypot(row, partition), backwards)

    def _other_space(self, number: int, separate: bool) -> tuple[Limits, Limits]:
        """Limits of lines and partitions of another encoding space, which a calibration of the image's geometry may
        use."""
        encodings = self.header.encoding
        if number >= len(encodings):
            raise BadInputError(
                f"a line refers to encoding space {number}, the header has {len(encodings)}; convert the scan again"
            )
        if not separate or encodings[number].encodedSpace != encodings[0].encodedSpace:
            raise UnsupportedScanError(
                f"lines of encoding space {number} came; only space 0, and separate calibration lines of the same "
                "matrix and field of view, are reconstructed"
            )
        return line_limits(self.header, number), partition_limits(self.header, number)

    def close(self, key: SliceKey) -> Iterator[Slice | LostSlice]:
        """The slice of `key`; nothing where only its calibration came, which is kept for others, or where it waits."""
        record, receiver = self.open.pop(key), self._receiver()
        if receiver is not None and record.is_of_another_receiver(receiver, self.log):
            return
        image = record.image_lines(key, receiver, self.separate, self.log)
        apart = record.calibration_apart(self.separate)
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
            # a stream tells its averages by its header alone: two images of one slice would look like two slices
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
                yield self._finished(key, image, calibration)

    def _receiver(self) -> int | None:
        """Channels of the receiver: as the header has them, where such lines came, else those of the noise."""
        announced, measured = receiver_channels(self.header), {len(numbers) for numbers, _, _ in self.noise.lines}
        if announced in measured | self.channels:
            return announced
        return measured.pop() if len(measured) == 1 else announced

    def _pool(self, key: SliceKey, image: Lines) -> Iterator[Slice | LostSlice]:
        """With interleaved calibration every average or repetition brings other lines: together they calibrate."""
        pooled = self.pooled.setdefault(key.slice, dataclasses.replace(image, sums={}, counts={}, repeats=[]))
        if image.layout == pooled.layout:
            new = image.sums.keys() - pooled.sums.keys()
            pooled.sums.update({number: image.sums[number] for number in new})
            pooled.counts.update({number: image.counts[number] for number in new})
        self.waiting.setdefault(key.slice, []).append((key, image))
        if set(range(self.limits.minimum, self.limits.maximum + 1)) <= pooled.sums.keys():
            yield from self._served(key.slice)

    def _served(self, number: int) -> Iterator[Slice | LostSlice]:
        """The slices that waited for the lines of others to calibrate them."""
        pooled = self.pooled[number]
        for key, image in self.waiting.pop(number, []):
            own, all_of_them = (central_block(lines.sums, self.limits.center) for lines in (image, pooled))
            together = len(own) < FEWEST_CALIBRATION_LINES <= len(all_of_them)
            if together:
                self.log.remark("averages or repetitions with interleaved lines are calibrated by all of them together")
            found = self._finished(key, image, pooled if together else None)
            yield dataclasses.replace(found, pooled=together) if isinstance(found, Slice) else found

    def rest(self) -> Iterator[Slice | LostSlice]:
        """At the end of the stream: the slices still open, complete or not, those that wait, calibrations without an
        image, and what was announced and never came."""
        # first the records without an image: they may calibrate the others
        for key in sorted(self.open, key=lambda key: (self.open[key].has_image, key)):
            yield from self.close(key)
        for number in list(self.waiting):
            yield from self._served(number)
        seen = {key.slice for key in self.came}
        for number, (key, lines) in self.calibration.items():
            if number not in seen and lines.header is not None:
                self.came[key], self.line_headers[key] = None, lines.header
                yield LostSlice(key, "only its calibration lines came")
        if not self.came:
            raise BadInputError("no image lines came, only noise measurements, navigators or nothing; send raw k-space")
        for key in missing_keys(self.header, self.came, combine_averages=self.combine_averages):
            yield LostSlice(key, "it is announced and none of its lines came")

    def _calibration_of(self, number: int) -> Lines | None:
        if number in self.calibration:
            return self.calibration[number][1]
        found = (self.open[key].calibration_apart(self.separate) for key in self.open if key.slice == number)
        return next((lines for lines in found if lines is not None), None)

    def _finished(self, key: SliceKey, image: Lines, calibration: Lines | None) -> Slice | LostSlice:
        try:
            return (self._volume if self.partitions > 1 else self._slice)(key, image, calibration)
        except LostError as lost:
            return LostSlice(key, str(lost))

    def _slice(self, key: SliceKey, lines: Lines, calibration: Lines | None) -> Slice:
        remarks: list[str] = []
        lines = lines.of_channels(self._alive(lines, remarks))
        lines, limits = placed(lines, self.limits, self.rows, remarks)
        _check(lines, "")
        numbers, announced = np.array(sorted(lines.sums)), self.announced_acceleration
        factor, needed, gap = completeness(numbers, limits, announced)
        if gap is not None and lines.zeros:  # lines of zeros were never acquired: the others tell R
            factor, needed, gap = completeness(numbers, limits, None)
            remarks.append(f"R = {announced} is announced, and lines of zeros among the others tell R = {factor}")
        if gap is not None:
            raise LostError(gap)
        assert lines.layout is not None and lines.header is not None
        dwell = lines.header.sample_time_us
        check_repeats(lines, self._noise_energy(lines), "averages" if self.combine_averages else "lines of one label")
        grid = self._readout_grid(lines.layout)
        data, columns = lines.mean(grid, self.cols)
        rows = torch.tensor(list(lines.sums)) + (self.rows // 2 - limits.center)
        whitener, sigma_n = self._noise(lines, dwell, grid)
        kspace = data.new_zeros((data.shape[1], self.rows, self.cols))
        kspace[:, rows] = whitened(data, whitener)
        mask = torch.zeros(self.rows, self.cols)
        mask[rows] = columns.float()
        if whitener is None:
            sigma_n = estimated_sigma(kspace, mask)
        else:
            # the variance of a mean of n lines is 1/n of one line's
            sigma_n *= math.sqrt(np.mean([1 / count for count in lines.counts.values()]))
            self._check_noise(sigma_n, estimated_sigma, kspace, mask)
        return Slice(
            key=key,
            kspace=kspace,
            mask=mask,
            calibration=self._calibration_block(lines, limits, kspace, calibration, grid, whitener),
            sigma_n=sigma_n,
            noise_source=ESTIMATED if whitener is None else MEASURED,
            acceleration=float(factor),
            n_lines_got=len(lines.sums),
            n_lines_needed=needed,
            seed_key=key.seed_key,
            remarks=tuple(remarks),
        )

    def _volume(self, key: SliceKey, image: Lines, calibration: Lines | None) -> Volume:
        """As `_slice`; takes the lines out of `image`, so that memory holds them or their k-space."""
        remarks: list[str] = []
        shape = self.partitions, self.rows
        _check(image, "")
        lines = image.of_channels(self._alive(image, remarks))
        lines, limits = placed_in_volume(lines, (self.partition_limits, self.limits), shape, remarks)
        if lines is not image:
            image.sums.clear()
        places = places_of(lines.sums) + offsets(limits, shape)
        acquired, announced = on_matrix(places, shape), self.announced_acceleration
        factor, needed, gap = volume_completeness(acquired, limits, announced)
        if gap is not None and lines.zeros:
            factor, needed, gap = volume_completeness(acquired, limits, None)
            remarks.append(f"R = {announced} is announced, and lines of zeros among the others tell R = {factor}")
        if gap is not None:
            raise LostError(gap)
        assert lines.layout is not None and lines.header is not None
        check_repeats(lines, self._noise_energy(lines), "averages" if self.combine_averages else "lines of one label")
        grid = self._readout_grid(lines.layout)
        whitener, sigma_n = self._noise(lines, lines.header.sample_time_us, grid)
        # pages of memory come as they are written
        kspace = torch.from_numpy(np.zeros((len(lines.numbers), *shape, self.cols), np.complex64))
        columns = lines.echo(grid).columns(grid, self.cols)
        for numbers, data in lines.emptied(grid, self.cols):
            partitions, rows = torch.from_numpy(places_of(numbers) + offsets(limits, shape)).T
            kspace[:, partitions, rows] = whitened(data, whitener)
        mask = torch.from_numpy(acquired)[..., None] * columns.float()
        if whitener is None:
            sigma_n = estimated_volume_sigma(kspace, mask)
        else:
            sigma_n *= math.sqrt(np.mean([1 / count for count in lines.counts.values()]))
            self._check_noise(sigma_n, estimated_volume_sigma, kspace, mask)
        return Volume(
            key=key,
            kspace=kspace,
            mask=mask,
            calibration=self._calibration_of_volume(lines, limits, acquired, kspace, calibration, grid, whitener),
            sigma_n=sigma_n,
            noise_source=ESTIMATED if whitener is None else MEASURED,
            acceleration=float(factor),
            n_lines_got=int(acquired.sum()),
            n_lines_needed=needed,
            seed_key=key.seed_key,
            remarks=tuple(remarks),
            voxel_mm=voxel_mm(self.header),
        )

    def _alive(self, lines: Lines, remarks: list[str]) -> list[int]:
        """Places of the channels that are used: those that are asked for, and that carry something."""
        n_coils = len(lines.numbers)
        asked = self.receiving.coils
        if asked is not None and not set(asked) <= set(range(n_coils)):
            told = ", ".join(map(str, asked))
            raise BadInputError(
                f"coils {told} are asked for and the scan has {n_coils}: give numbers from 0 to {n_coils - 1}"
            )
        silent = [place for place in range(n_coils) if not any(data[place].any() for data in lines.sums.values())]
        dead = sorted({*silent, *self.noise.dead(lines.numbers)} if len(silent) < n_coils else set())
        if dead and len(dead) < n_coils:
            remarks.append(f"channel {', '.join(map(str, dead))} of {n_coils} is dead and left out")
        kept = [place for place in (range(n_coils) if asked is None else asked) if place not in dead]
        if asked is not None and not kept and len(dead) < n_coils:
            raise LostError(f"the coils that are asked for ({', '.join(map(str, asked))}) are dead")
        return kept or list(range(n_coils))

    def _readout_grid(self, layout: Layout) -> int:
        """Samples of a full readout, which tell whether it is oversampled: the smallest grid that they fit.

        Headers are wrong about it in both directions, so the last candidate is twice what the header says.
        """
        encoded = self.header.encoding[0].encodedSpace.matrixSize.x
        for grid in (self.cols, encoded, 2 * self.cols):
            if layout.fits(grid):
                return grid
        raise BadInputError(
            f"lines have {layout}, which fits neither the encoded matrix of {encoded} columns nor {self.cols} without "
            "oversampling; correct the matrix size or center_sample"
        )

    def _noise(self, lines: Lines, dwell: float, grid: int) -> tuple[torch.Tensor | None, float]:
        """Whitening matrix and noise level of single lines; (None, 0) without a noise measurement of these channels."""
        found = self.noise.whitener(lines.numbers, dwell, grid, self.cols)
        if found is None and not self.noise.lines:
            self.log.remark(NO_NOISE)
        elif found is None:
            others = sorted({len(numbers) for numbers, _, _ in self.noise.lines})
            self.log.remark(
                f"the noise measurement has {' and '.join(map(str, others))} channels and lacks some of the image's "
                f"{len(lines.numbers)}: the noise is estimated from k-space, without whitening"
            )
        return found or (None, 0.0)

    def _noise_energy(self, lines: Lines) -> float | None:
        """Expected |.|^2 of the noise of one line; None where it is not known."""
        assert lines.layout is not None and lines.header is not None
        energy = self.noise.energy(lines.numbers, lines.header.sample_time_us)
        return None if energy is None else energy * lines.layout.n_samples

    def _check_noise(
        self, sigma_n: float, estimate: Callable[..., float], kspace: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Once a scan: signal only adds to the noise of k-space, so that it is never quieter than the measurement."""
        if self.noise_is_checked:
            return
        self.noise_is_checked = True
        quiet = estimate(kspace, mask)
        if sigma_n > TOO_LOUD * quiet:
            self.log.remark(
                f"the noise measurement is {sigma_n / quiet:.1f} times as loud as the quietest part of k-space: it is "
                "of another scan, or its dwell time is wrong (--noise names another file)"
            )

    def _calibration_block(
        self,
        lines: Lines,
        limits: Limits,
        kspace: torch.Tensor,
        calibration: Lines | None,
        grid: int,
        whitener: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """(n_coils, rows_cal, cols) of the separate calibration, else of the image's own centre, else None."""
        if calibration is not None:
            calibration = self._checked(calibration, lines)
            block = central_block(calibration.sums, limits.center)
            if len(block) >= FEWEST_CALIBRATION_LINES:
                data = self._beside(calibration, lines, grid)
                index = {number: place for place, number in enumerate(calibration.sums)}
                return whitened(data[[index[number] for number in block]], whitener)
        center = self.rows // 2
        block = central_block((number + center - limits.center for number in lines.sums), center)
        return kspace[:, block.start : block.stop] if len(block) >= FEWEST_CALIBRATION_LINES else None

    def _calibration_of_volume(
        self,
        lines: Lines,
        limits: tuple[Limits, Limits],
        acquired: np.ndarray,
        kspace: torch.Tensor,
        calibration: Lines | None,
        grid: int,
        whitener: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """(n_coils, partitions_cal, rows_cal, cols), as `_calibration_block`."""
        if calibration is not None:
            calibration = self._checked(calibration, lines)
            places = places_of(calibration.sums) + offsets(limits, acquired.shape)
            box = central_box(on_matrix(places, acquired.shape))
            if box is not None:
                data = whitened(self._beside(calibration, lines, grid), whitener)
                block = data.new_zeros((len(data), *acquired.shape, self.cols))
                inside = ((places >= 0) & (places < acquired.shape)).all(1)
                partitions, rows = torch.from_numpy(places[inside]).T
                block[:, partitions, rows] = data[:, torch.from_numpy(inside)]
                return block[:, box[0], box[1]].clone()
        box = central_box(acquired)
        return None if box is None else kspace[:, box[0], box[1]]

    def _checked(self, calibration: Lines, lines: Lines) -> Lines:
        """A separate calibration, of the image lines' channels alone."""
        assert calibration.layout is not None and lines.layout is not None
        if not set(lines.numbers) <= set(calibration.numbers):
            raise LostError(
                f"its calibration has {calibration.layout.n_coils} channels, its image lines have "
                f"{lines.layout.n_coils}"
            )
        calibration = calibration.of_channels([calibration.numbers.index(number) for number in lines.numbers])
        check_repeats(calibration, self._noise_energy(calibration), "calibration lines of one label")
        _check(calibration, "calibration ")
        return calibration

    def _beside(self, calibration: Lines, lines: Lines, grid: int) -> torch.Tensor:
        """(n_lines, n_coils, cols) of a separate calibration on the grid of the image lines."""
        assert calibration.layout is not None
        if not calibration.layout.fits(grid):
            raise LostError(f"its calibration lines have {calibration.layout}, its image lines {lines.layout}")
        return calibration.mean(grid, self.cols)[0]


def _check(lines: Lines, kind: str) -> None:
    """Lines that do not fit together, or hold no numbers, lose the slice."""
    if lines.fault is not None:
        raise LostError(f"its {kind}lines differ: {lines.fault}")
    if not any(map(np.any, lines.sums.values())):
        raise LostError(f"all samples of its {kind}lines are zero")
    for number, data in lines.sums.items():
        if not np.isfinite(data).all():
            raise LostError(f"{kind}{line_name(number)} holds NaN or infinite values")
