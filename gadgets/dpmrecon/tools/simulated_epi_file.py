"""The ISMRMRD file of a simulated EPI scan: shots with their navigators and flags, and the header."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .epi_settings import EpiSettings
from .simulated_epi import EpiSlice, Shot, shots_of
from .simulated_file import NOISE_LINES, header_of, record_of, write_file

_NAVIGATORS = 3


def write_epi(path: Path, settings: EpiSettings, scanned: list[EpiSlice], mixing: np.ndarray) -> None:
    """Write the lines of all shots with noise as group "dataset". Raises OSError.

    mixing: (n_coils, n_coils), noise that is white and of unit level to that of the images' samples.
    """
    write_file(path, _header(settings), _records(settings, scanned, mixing))


def _records(settings: EpiSettings, scanned: list[EpiSlice], mixing: np.ndarray) -> Iterator[list[np.ndarray]]:
    """The file's records shot after shot, in the order of acquisition, after the noise measurement."""
    import ismrmrd

    rng = np.random.default_rng([settings.seed, 33])
    dwell = settings.readout.dwell

    def noise(samples: int, own_dwell: float) -> np.ndarray:
        shape = (settings.n_coils, samples)
        white = rng.normal(size=shape) + 1j * rng.normal(size=shape)
        return np.sqrt(dwell / own_dwell) * mixing @ white

    number = 0
    if settings.noise_scan:
        flags = [ismrmrd.ACQ_IS_NOISE_MEASUREMENT]
        slow = settings.calibration_dwell
        yield [record_of(settings, noise(settings.samples, slow), line, {}, flags) for line in range(NOISE_LINES)]
        number = NOISE_LINES
    shots = shots_of(settings)
    for shot in shots:
        records = []
        own_dwell = settings.calibration_dwell if shot.gradient_echo else dwell
        lines = scanned[shot.index].lines(shot, len(shots))
        for line, (counters, flags) in zip(lines, _labels(settings, shot)):
            samples = line + noise(line.shape[1], own_dwell)
            fields = {"sample_time_us": own_dwell, "center_sample": line.shape[1] // 2}
            if shot.gradient_echo and settings.calibration_by == "own-space":
                fields["encoding_space_ref"] = 1
            records.append(record_of(settings, samples, number + len(records), counters, flags, **fields))
        number += len(records)
        yield records


def _labels(settings: EpiSettings, shot: Shot) -> list[tuple[dict[str, int], list[int]]]:
    """(counters, flags) of each line of a shot, navigators first."""
    import ismrmrd

    own_space = shot.gradient_echo and settings.calibration_by == "own-space"
    start = settings.calibration_rows().start if own_space else settings.skipped_rows
    shared = {"slice": shot.index, "average": shot.average, "repetition": shot.repetition}
    shared[settings.weighting_counter] = shot.weighting or shared.get(settings.weighting_counter, 0)
    labels: list[tuple[dict[str, int], list[int]]] = []
    navigators = 0 if shot.gradient_echo else _NAVIGATORS
    rows = [settings.rows // 2] * navigators + list(shot.rows)
    for number, row in enumerate(rows):
        # the train begins forwards, as the navigators do
        backwards = not shot.gradient_echo and (number if number < navigators else number - navigators) % 2 == 1
        counters = {"kspace_encode_step_1": row - start, "segment": int(backwards), **shared}
        flags = [ismrmrd.ACQ_IS_REVERSE] if backwards else []
        if number < navigators:
            flags.append(ismrmrd.ACQ_IS_PHASECORR_DATA)
        elif shot.weighting is None:
            flags.append(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        labels.append((counters, flags))
    several = shot.weighting is not None and settings.averages_of(shot.weighting) > 1
    if shot.first:
        labels[navigators][1].extend([ismrmrd.ACQ_FIRST_IN_AVERAGE] * several + [ismrmrd.ACQ_FIRST_IN_SLICE])
    if shot.last:
        labels[-1][1].extend([ismrmrd.ACQ_LAST_IN_AVERAGE] * several + [ismrmrd.ACQ_LAST_IN_SLICE])
    _mark_ends(settings, shot, labels[navigators][1], labels[-1][1])
    return labels


def _mark_ends(settings: EpiSettings, shot: Shot, first: list[int], last: list[int]) -> None:
    """Flags of a repetition's first and last image line, and of the scan's last."""
    import ismrmrd

    order = settings.slice_order()
    averages = [settings.averages_of(number) for number in range(len(settings.weightings))]
    final = max(number for number, count in enumerate(averages) if count == max(averages))
    if shot.first and shot.average == shot.weighting == 0 and shot.index == order[0]:
        first.append(ismrmrd.ACQ_FIRST_IN_REPETITION)
    if shot.last and (shot.average, shot.weighting, shot.index) == (max(averages) - 1, final, order[-1]):
        last.append(ismrmrd.ACQ_LAST_IN_REPETITION)
        if shot.repetition == settings.repetitions - 1:
            last.append(ismrmrd.ACQ_LAST_IN_MEASUREMENT)


def _header(settings: EpiSettings):
    """The MRD header: that of a Cartesian scan, with the readout's trajectory and the weightings."""
    from ismrmrd import xsd

    header = header_of(settings)
    encoding = header.encoding[0]
    encoding.trajectory = xsd.trajectoryType.EPI
    encoding.trajectoryDescription = _trajectory(settings)
    # samples are counted by the trajectory, and readers take the matrix for what they cover
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
        "numberOfNavigators": _NAVIGATORS,
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
