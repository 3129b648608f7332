"""The ISMRMRD file of a simulated EPI scan: shots with their navigators and flags, and the header."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .epi import NAVIGATORS, EpiSlice, Shot, shots_of
from .epi_settings import EpiSettings
from .file import NOISE_LINES, header_of, record_of, write_file


def write_epi(path: Path, settings: EpiSettings, scanned: list[EpiSlice], mixing: np.ndarray) -> None:
    """Write the lines of all shots with noise as group "dataset". Raises OSError.

    mixing: (n_coils, n_coils), noise that is white and of unit level to that of the images' samples.
    """
    write_file(path, _header(settings), _records(settings, scanned, mixing))


def _records(settings: EpiSettings, scanned: list[EpiSlice], mixing: np.ndarray) -> Iterator[list[np.ndarray]]:
    """The file's records, shot after shot of each slice; scan counters tell the order of acquisition, in which the
    noise measurement is first."""
    import ismrmrd

    dwell, slow = settings.readout.dwell, settings.calibration_dwell

    def noise(rng: np.random.Generator, samples: int, own_dwell: float) -> np.ndarray:
        shape = (settings.n_coils, samples)
        white = rng.normal(size=shape) + 1j * rng.normal(size=shape)
        return np.sqrt(dwell / own_dwell) * mixing @ white

    start = 0
    if settings.noise_scan:
        rng = np.random.default_rng([settings.seed, 33])
        flags = [ismrmrd.ACQ_IS_NOISE_MEASUREMENT]
        yield [record_of(settings, noise(rng, settings.samples, slow), line, {}, flags) for line in range(NOISE_LINES)]
        start = NOISE_LINES
    shots = shots_of(settings)
    starts = start + np.cumsum([0] + [len(shot.ways) for shot in shots])
    ends = _ends(settings, shots)
    for one in scanned:
        for shot, lines in one.received([shot for shot in shots if shot.index == one.index], len(shots)):
            rng = np.random.default_rng([settings.seed, 34, shot.number])
            fields: dict[str, float] = {"sample_time_us": slow if shot.gradient_echo else dwell}
            if _in_own_space(settings, shot):
                fields["encoding_space_ref"] = 1
            records = []
            labels = _labels(settings, shot, *ends.get(shot.number, ([], [])))
            for number, (line, (counters, flags)) in enumerate(zip(lines, labels), int(starts[shot.number])):
                samples = line + noise(rng, line.shape[1], fields["sample_time_us"])
                centre = line.shape[1] // 2
                records.append(record_of(settings, samples, number, counters, flags, center_sample=centre, **fields))
            yield records


def _in_own_space(settings: EpiSettings, shot: Shot) -> bool:
    return shot.gradient_echo and settings.calibration_by == "own-space"


def _labels(
    settings: EpiSettings, shot: Shot, first: list[int], last: list[int]
) -> list[tuple[dict[str, int], list[int]]]:
    """(counters, flags) of each line of a shot, navigators first; first, last: flags of its first and last other line
    beside those of one image's shots."""
    import ismrmrd

    start = settings.calibration_rows().start if _in_own_space(settings, shot) else settings.skipped_rows
    shared = {"slice": shot.index, "average": shot.average, **_counted(settings, shot)}
    labels: list[tuple[dict[str, int], list[int]]] = []
    rows = [settings.rows // 2] * shot.navigators + list(shot.rows)
    for number, (row, way) in enumerate(zip(rows, shot.ways)):
        flags = [ismrmrd.ACQ_IS_REVERSE] if way else []
        if number < shot.navigators:
            flags.append(ismrmrd.ACQ_IS_PHASECORR_DATA)
        elif shot.weighting is None:
            flags.append(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        # as converters do, the segment tells the direction of a line
        labels.append(({"kspace_encode_step_1": row - start, "segment": way, **shared}, flags))
    several = shot.weighting is not None and settings.averages_of(shot.weighting) > 1
    if shot.first:
        first = [ismrmrd.ACQ_FIRST_IN_AVERAGE] * several + [ismrmrd.ACQ_FIRST_IN_SLICE, *first]
    if shot.last:
        last = [ismrmrd.ACQ_LAST_IN_AVERAGE] * several + [ismrmrd.ACQ_LAST_IN_SLICE, *last]
    labels[shot.navigators][1].extend(first)
    labels[-1][1].extend(last)
    return labels


def _counted(settings: EpiSettings, shot: Shot) -> dict[str, int]:
    """Counters of repetition and weighting."""
    return {"repetition": shot.repetition, settings.weighting_counter: shot.weighting or 0}


def _ends(settings: EpiSettings, shots: list[Shot]) -> dict[int, tuple[list[int], list[int]]]:
    """Flags of the first and of the last line of shots, by their number, where a repetition or the scan begins or
    ends."""
    import ismrmrd

    images = [shot for shot in shots if shot.weighting is not None]
    firsts: dict[int, int] = {}
    lasts: dict[int, int] = {}
    for shot in images:
        repetition = _counted(settings, shot)["repetition"]
        firsts.setdefault(repetition, shot.number)
        lasts[repetition] = shot.number
    ends: dict[int, tuple[list[int], list[int]]] = {number: ([], []) for number in {*firsts.values(), *lasts.values()}}
    for number in firsts.values():
        ends[number][0].append(ismrmrd.ACQ_FIRST_IN_REPETITION)
    for number in lasts.values():
        ends[number][1].append(ismrmrd.ACQ_LAST_IN_REPETITION)
    ends[images[-1].number][1].append(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    return ends


def _header(settings: EpiSettings):
    """The MRD header: that of a Cartesian scan, with the readout's trajectory and the weightings."""
    from ismrmrd import xsd

    header = header_of(settings)
    encoding = header.encoding[0]
    encoding.trajectory = xsd.trajectoryType.EPI
    encoding.trajectoryDescription = _trajectory(settings)
    # samples go by the trajectory, the matrix by what they cover
    encoding.encodedSpace.matrixSize.x = settings.cols
    encoding.encodedSpace.fieldOfView_mm.x = settings.fov_mm[1]
    limits = encoding.encodingLimits
    limits.segment.maximum = 1
    limits.average.maximum = max(settings.averages_of(number) for number in range(len(settings.weightings))) - 1
    if settings.weighting_counter == "repetition":
        limits.contrast.maximum, limits.repetition.maximum = 0, len(settings.weightings) - 1
    if settings.calibration == "separate" and settings.calibration_by == "own-space":
        header.encoding.append(_calibration_space(settings))
    sequence = header.sequenceParameters
    sequence.diffusionDimension = xsd.diffusionDimensionType(settings.weighting_counter)
    sequence.diffusion = [
        xsd.diffusionType(gradientDirection=xsd.gradientDirectionType(rl=x, ap=y, fh=z), bvalue=float(b))
        for b, (x, y, z) in settings.weighting_table
    ]
    sequence.sequence_type = "EPI"
    sequence.echo_spacing = [settings.readout.echo_spacing * 1e-3]
    return header


def _trajectory(settings: EpiSettings):
    """The readout as Gadgetron's EPI gadgets read it: times in microseconds."""
    from ismrmrd import xsd

    readout = settings.readout
    whole = {
        "etl": len(settings.shot_rows()[0]),
        "numberOfNavigators": NAVIGATORS,
        "rampUpTime": readout.ramp,
        "rampDownTime": readout.ramp,
        "flatTopTime": readout.flat,
        "echoSpacing": readout.echo_spacing,
        "acqDelayTime": readout.delay,
        "numSamples": readout.n_samples,
    }
    return xsd.trajectoryDescriptionType(
        identifier="ConventionalEPI",
        userParameterLong=[xsd.userParameterLongType(name=name, value=value) for name, value in whole.items()],
        userParameterDouble=[xsd.userParameterDoubleType(name="dwellTime", value=readout.dwell)],
    )


def _calibration_space(settings: EpiSettings):
    """The encoding of a calibration that has its own: its own lines and readout points, the images' field of view."""
    from ismrmrd import xsd

    encoding = header_of(settings).encoding[0]
    cols, rows = settings.calibration_cols, settings.calibration_lines
    encoding.encodedSpace.matrixSize = xsd.matrixSizeType(x=cols * settings.oversampling, y=rows, z=1)
    encoding.reconSpace.matrixSize = xsd.matrixSizeType(x=cols, y=rows, z=1)
    limits = encoding.encodingLimits
    samples = cols * settings.oversampling
    limits.kspace_encoding_step_0 = xsd.limitType(minimum=0, maximum=samples - 1, center=samples // 2)
    limits.kspace_encoding_step_1 = xsd.limitType(minimum=0, maximum=rows - 1, center=rows // 2)
    for name in ("average", "contrast", "repetition"):
        setattr(limits, name, xsd.limitType(minimum=0, maximum=0, center=0))
    encoding.parallelImaging.accelerationFactor.kspace_encoding_step_1 = 1
    encoding.parallelImaging.calibrationMode = xsd.calibrationModeType.OTHER
    return encoding
