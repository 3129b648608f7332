"""The ISMRMRD file of a simulated scan: lines with their flags in the order of acquisition, and the header."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .phantom import CONTRASTS
from .settings import SimulationSettings, VolumeSettings

_Line = tuple[tuple[int, int], list[int]]  # (partition, row), flags
NOISE_LINES = 64
_RECORDS = 4096  # lines that are written at once


def write(path: Path, settings: SimulationSettings, kspace: list[np.ndarray], mixing: np.ndarray) -> None:
    """Write k-space with noise as group "dataset". Raises OSError.

    kspace: of each b-value or echo (slices, n_coils, partitions, rows, samples); 2D scans have one partition.

    mixing: (n_coils, n_coils), noise that is white and of unit level to that of the channels.
    """
    write_file(path, header_of(settings), _records(settings, kspace, mixing))


def write_file(path: Path, header, batches: Iterable[list[np.ndarray]]) -> None:
    """Write a header and records as group "dataset", each where its scan counter says; those of a batch follow each
    other. Raises OSError."""
    import h5py
    from ismrmrd.hdf5 import acquisition_dtype
    from xsdata.formats.dataclass.serializers import XmlSerializer

    from ..mrd.header import xml_context

    with h5py.File(path, "w") as file:
        text = file.create_dataset("dataset/xml", (1,), h5py.special_dtype(vlen=bytes))
        # not ismrmrd.xsd.ToXML: that of ismrmrd 1.14 fails with newer versions of the XML library
        xml = XmlSerializer(context=xml_context()).render(header, ns_map={"": "http://www.ismrm.org/ISMRMRD"})
        text[0] = xml.encode()
        data = file.create_dataset("dataset/data", (0,), acquisition_dtype, maxshape=(None,))
        for records in batches:
            # ismrmrd's own writer goes line by line, which takes longer than the simulation
            start = int(records[0]["head"]["scan_counter"][0])
            data.resize(max(len(data), start + len(records)), axis=0)
            data[start : start + len(records)] = np.concatenate(records)


def _records(settings: SimulationSettings, kspace: list[np.ndarray], mixing: np.ndarray) -> Iterator[list[np.ndarray]]:
    """The file's records in the order of acquisition: the noise measurement, then each average of each
    slice."""
    import ismrmrd

    rng = np.random.default_rng([settings.seed, 24])
    number = itertools.count()

    def noise(samples: int) -> np.ndarray:
        shape = (settings.n_coils, samples)
        return mixing @ (rng.normal(size=shape) + 1j * rng.normal(size=shape))

    if settings.noise_scan:
        flags = [ismrmrd.ACQ_IS_NOISE_MEASUREMENT]
        yield [record_of(settings, noise(settings.samples), next(number), {}, flags) for _ in range(NOISE_LINES)]
    skipped = settings.skipped_samples
    places = itertools.product(
        range(settings.repetitions), _passes(settings), settings.slice_order(), range(settings.averages)
    )
    for repetition, contrasts, index, average in places:
        records: list[np.ndarray] = []
        lists = [_lines(settings, index, average, repetition, contrast) for contrast in contrasts]
        for contrast, ((partition, row), flags) in _in_turn(contrasts, lists):
            if len(records) == _RECORDS:
                yield records
                records = []
            line = noise(settings.samples - skipped) + kspace[contrast][index, :, partition, row, skipped:]
            counters = {
                "kspace_encode_step_1": row - settings.skipped_rows,
                "kspace_encode_step_2": partition - settings.skipped_partitions,
                "slice": index,
                "average": average,
                "repetition": repetition,
                "contrast": contrast,
            }
            records.append(record_of(settings, line, next(number), counters, flags))
        yield records


def _passes(settings: SimulationSettings) -> list[list[int]]:
    """Values of the counter `contrast` that are acquired together: all echoes of a line, but one b-value at a time."""
    numbers = list(range(len(settings.weightings)))
    return [numbers] if settings.contrast == "swi" else [[number] for number in numbers]


def _in_turn(contrasts: list[int], lists: list[list[_Line]]) -> Iterator[tuple[int, _Line]]:
    """(contrast, line): the echoes of a line after each other; those that the first alone has come before all."""
    extra = len(lists[0]) - len(lists[-1])
    yield from ((contrasts[0], line) for line in lists[0][:extra])
    for group in zip(lists[0][extra:], *lists[1:]):
        yield from zip(contrasts, group)


def record_of(
    settings: SimulationSettings,
    samples: np.ndarray,
    number: int,
    counters: dict[str, int],
    flags: list[int],
    **fields: float,
) -> np.ndarray:
    """The file's record (1,) of a line (n_coils, samples), the number-th; counters: those of idx that are not 0;
    fields: of the line's header, in place of what a Cartesian scan has."""
    import ismrmrd
    from ismrmrd.hdf5 import acquisition_dtype, acquisition_header_dtype

    from ..mrd.receiving import is_conjugated

    data = samples.conj() if is_conjugated(settings.vendor) else samples
    acquisition = ismrmrd.Acquisition.from_array(data.astype(np.complex64))
    acquisition.scan_counter = number
    acquisition.acquisition_time_stamp = 4 * number  # of 2.5 ms each
    acquisition.available_channels = settings.n_coils
    skipped = settings.samples - samples.shape[1]  # the early samples of an asymmetric echo
    acquisition.center_sample = settings.samples // 2 - skipped
    acquisition.sample_time_us = 10.0 / settings.oversampling
    for name, value in fields.items():
        setattr(acquisition, name, value)
    for name, value in counters.items():
        setattr(acquisition.idx, name, value)
    acquisition.position[:] = settings.slice_position(counters.get("slice", 0))
    acquisition.read_dir[:], acquisition.phase_dir[:], acquisition.slice_dir[:] = settings.directions()
    for flag in flags:
        acquisition.set_flag(flag)
    record = np.empty(1, acquisition_dtype)
    record[0]["head"] = np.frombuffer(acquisition.getHead(), acquisition_header_dtype)[0]
    record[0]["data"] = np.ascontiguousarray(acquisition.data).view(np.float32).ravel()
    record[0]["traj"] = np.empty(0, np.float32)
    return record


def _lines(settings: SimulationSettings, index: int, average: int, repetition: int, contrast: int) -> list[_Line]:
    """One average of one slice or slab at one b-value or echo, in the order of acquisition."""
    import ismrmrd

    block = settings.calibration_places()
    grid = settings.grid_places()
    first: list[_Line] = []
    if settings.calibration == "separate" and average == contrast == 0:
        first = [(place, [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION]) for place in block]
    lines: list[_Line] = [(place, []) for place in grid]
    if settings.calibration == "embedded" and settings.acceleration * settings.partition_acceleration > 1:
        lines = []
        in_block, in_grid = set(block), set(grid)
        for place in sorted(in_grid | in_block):
            if place not in in_block:
                flags = []
            elif place in in_grid:
                flags = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING]
            else:
                flags = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION]
            lines.append((place, flags))
    order = settings.slice_order()
    if settings.averages > 1:
        lines[0][1].append(ismrmrd.ACQ_FIRST_IN_AVERAGE)
        lines[-1][1].append(ismrmrd.ACQ_LAST_IN_AVERAGE)
    # every average is a whole slice, for readers that keep averages apart
    lines[0][1].append(ismrmrd.ACQ_FIRST_IN_SLICE)
    lines[-1][1].append(ismrmrd.ACQ_LAST_IN_SLICE)
    if average == contrast == 0 and index == order[0]:
        lines[0][1].append(ismrmrd.ACQ_FIRST_IN_REPETITION)
    last_contrast = len(settings.weightings) - 1
    if average == settings.averages - 1 and contrast == last_contrast and index == order[-1]:
        lines[-1][1].append(ismrmrd.ACQ_LAST_IN_REPETITION)
        if repetition == settings.repetitions - 1:
            lines[-1][1].append(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    return first + lines


def header_of(settings: SimulationSettings):
    """The MRD header; no version, which older readers refuse."""
    from ismrmrd import xsd
    from xsdata.models.datatype import XmlDate, XmlTime

    protocol = CONTRASTS[settings.contrast].protocol + ("_3D" if isinstance(settings, VolumeSettings) else "")
    return xsd.ismrmrdHeader(
        subjectInformation=xsd.subjectInformationType(
            patientName=f"SIMULATED^{settings.phantom.upper()}",
            patientID=f"SIMULATED{settings.subject}",
            patientBirthdate=XmlDate(1970, 1, 1),
            patientGender="O",
        ),
        studyInformation=xsd.studyInformationType(
            studyDate=XmlDate(2000, 1, 1), studyTime=XmlTime(12, 0, 0), studyID="1", studyDescription="SIMULATED"
        ),
        measurementInformation=xsd.measurementInformationType(
            measurementID=f"simulated_{settings.subject}_{settings.seed}",
            patientPosition=xsd.patientPositionType(settings.patient_position),
            protocolName=protocol,
            sequenceName=protocol,
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor=settings.vendor,
            systemFieldStrength_T=3.0,
            relativeReceiverNoiseBandwidth=0.793,
            receiverChannels=settings.n_coils,
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=127731000),
        encoding=[_encoding(settings)],
        sequenceParameters=_sequence_parameters(settings),
        userParameters=_user_parameters(settings),
    )


def _encoding(settings: SimulationSettings):
    """Matrices, fields of view, R and calibration, of the header."""
    from ismrmrd import xsd

    def space(cols: int, width: float, partitions: int) -> xsd.encodingSpaceType:
        depth = partitions * settings.slice_thickness_mm
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=cols, y=settings.rows, z=partitions),
            fieldOfView_mm=xsd.fieldOfViewMm(x=width, y=settings.fov_mm[0], z=depth),
        )

    modes = {
        "embedded": xsd.calibrationModeType.EMBEDDED,
        "separate": xsd.calibrationModeType.SEPARATE,
        "none": xsd.calibrationModeType.OTHER,
    }
    parallel = xsd.parallelImagingType(
        accelerationFactor=xsd.accelerationFactorType(
            kspace_encoding_step_1=settings.acceleration,
            kspace_encoding_step_2=settings.partition_acceleration,
        ),
        calibrationMode=modes[settings.calibration],
    )
    return xsd.encodingType(
        encodedSpace=space(settings.samples, settings.fov_mm[1] * settings.oversampling, settings.encoded_partitions),
        reconSpace=space(settings.cols, settings.fov_mm[1], settings.partitions),
        encodingLimits=_limits(settings),
        trajectory=xsd.trajectoryType.CARTESIAN,
        parallelImaging=parallel,
    )


def _limits(settings: SimulationSettings):
    """First, last and centre value of each counter, of the header."""
    from ismrmrd import xsd

    def limit(count: int, center: int = 0) -> xsd.limitType:
        return xsd.limitType(minimum=0, maximum=count - 1, center=center)

    samples, rows, partitions = settings.skipped_samples, settings.skipped_rows, settings.skipped_partitions
    return xsd.encodingLimitsType(
        kspace_encoding_step_0=limit(settings.samples - samples, settings.samples // 2 - samples),
        kspace_encoding_step_1=limit(settings.rows - rows, settings.rows // 2 - rows),
        kspace_encoding_step_2=limit(
            settings.encoded_partitions - partitions, settings.encoded_partitions // 2 - partitions
        ),
        average=limit(settings.averages),
        slice=limit(settings.n_slices),
        contrast=limit(len(settings.weightings)),
        phase=limit(1),
        repetition=limit(settings.repetitions),
        set=limit(1),
        segment=limit(1),
    )


def _sequence_parameters(settings: SimulationSettings):
    """Times, flip angle and several b-values, of the header."""
    from ismrmrd import xsd

    sequence = CONTRASTS[settings.contrast]
    weightings = [
        xsd.diffusionType(gradientDirection=xsd.gradientDirectionType(rl=0.0, ap=0.0, fh=0.0), bvalue=float(b))
        for b in settings.b_values
    ]
    return xsd.sequenceParametersType(
        TR=[sequence.tr],
        TE=list(settings.weightings) if settings.contrast == "swi" else [sequence.te],
        TI=[] if sequence.ti is None else [sequence.ti],
        flipAngle_deg=[sequence.flip_angle],
        diffusionDimension=xsd.diffusionDimensionType.CONTRAST if weightings else None,
        diffusion=weightings,
    )


def _user_parameters(settings: SimulationSettings):
    """The one b-value of a diffusion-weighted scan, of the header; None for others."""
    from ismrmrd import xsd

    if settings.contrast != "dwi" or settings.b_values:
        return None
    value = xsd.userParameterDoubleType(name="b_value", value=float(settings.b_value))
    return xsd.userParametersType(userParameterDouble=[value])
