"""`dpmrecon simulate`: a scan of the phantom as ISMRMRD, in the shape a scanner sends, and the truth beside it.

The object is evaluated on a grid twice as fine as the matrix, multiplied there by its phase and the coil maps,
transformed, and k-space is cropped to the matrix: partial volume and Gibbs ringing are those of a scanner. What
lies outside the field of view is cut off along the lines, unless `wrap` folds it in as a scanner does, and along the
readout likewise where there is no oversampling.
"""

import argparse
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BadInputError
from .phantom import CONTRASTS, Letters, Phantom, SmoothNoise

_NOISE_LINES = 64
_FINER = 2
_FOLDS = 3  # fields of view along the lines, with `wrap`: the middle one and one on either side
_PLANES = (-1 / 3, 0.0, 1 / 3)  # of the slice thickness: the slice profile


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate. Sizes are (rows, cols): rows are phase-encoding lines, cols are readout samples.

    subject is the seed of the anatomy, the coils and the phase, seed that of the noise: the truth does not depend
    on seed, nor on how k-space is sampled.
    """

    contrast: str = "flair"
    matrix: tuple[int, int] = (256, 256)
    fov_mm: tuple[float, float] = (230.0, 230.0)
    slice_thickness_mm: float = 4.0
    slice_gap_mm: float = 1.0
    n_slices: int = 3
    acceleration: int = 4
    calibration: str = "embedded"  # or "separate", or "none"
    calibration_lines: int = 24
    n_coils: int = 8
    noise: float = 0.021  # standard deviation per real channel, whitened, over the truth's 99th percentile
    noise_correlation: float = 0.15  # typical correlation of two channels
    noise_scan: bool = True
    oversampling: int = 2
    partial_fourier: float = 1.0  # part of the lines that is acquired; the early ones are left out
    asymmetric_echo: float = 1.0  # part of every readout that is acquired; the early samples are left out
    rotation_deg: tuple[float, float, float] = (20.0, 0.0, 4.0)  # of the slices, about x, then y, then z
    position_mm: tuple[float, float, float] = (4.0, -5.0, 20.0)  # centre of the slice group, LPS
    interleaved: bool = True
    averages: int = 1
    repetitions: int = 1
    b_value: float = 1000.0  # s/mm^2, for dwi alone
    b_values: tuple[float, ...] = ()  # several, for dwi alone, in place of b_value; the counter `contrast` tells them
    patient_position: str = "HFS"  # only what the header says: all coordinates are the patient's
    wrap: bool = False  # what lies beyond the field of view along the lines is folded into it
    swap_phase: bool = False  # lines run where readout samples ran: the two directions change places
    phantom: str = "head"  # or "letters", the test object for geometry
    subject: int = 0
    seed: int = 0
    lesion_side: str = "left"
    marker_mm: tuple[float, float, float] | None = None  # a fiducial ball of 3 mm radius, LPS
    vendor: str = "SIMULATED"  # Siemens's files hold conjugated k-space (mrd/receiving.py)

    def __post_init__(self) -> None:
        for name, choices in (
            ("contrast", tuple(CONTRASTS)),
            ("calibration", ("embedded", "separate", "none")),
            ("oversampling", (1, 2)),
            ("lesion_side", ("left", "right")),
            ("phantom", ("head", "letters")),
            ("patient_position", tuple(f"{first}F{side}" for first in "HF" for side in ("S", "P", "DR", "DL"))),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise BadInputError(f"{name} is {value!r}; use one of {', '.join(map(str, choices))}")
        whole = {"rows": self.matrix[0], "cols": self.matrix[1]}
        for name in ("n_slices", "acceleration", "n_coils", "averages", "repetitions"):
            whole[name] = getattr(self, name)
        for name, count in whole.items():
            least = 16 if name in ("rows", "cols") else 1
            if not isinstance(count, int) or not least <= count <= 4096:
                raise BadInputError(f"{name} is {count}; it must be a whole number from {least} to 4096")
        for name, number in (("fov_mm", min(self.fov_mm)), ("slice_thickness_mm", self.slice_thickness_mm)):
            if not 0 < number < np.inf:
                raise BadInputError(f"{name} is {number}; it must be a length above 0 mm")
        for name in ("slice_gap_mm", "noise", "noise_correlation", "b_value", "subject", "seed"):
            if not 0 <= getattr(self, name) < np.inf:
                raise BadInputError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.b_values and (self.contrast != "dwi" or not all(0 <= b < np.inf for b in self.b_values)):
            raise BadInputError(
                f"b_values are {self.b_values} for {self.contrast}; give values of 0 or more, and contrast dwi"
            )
        for name in ("partial_fourier", "asymmetric_echo"):
            if not 0.5 < getattr(self, name) <= 1:
                raise BadInputError(f"{name} is {getattr(self, name)}; it must be above 0.5 and at most 1")
        if self.calibration != "none":
            reach = self.rows // 2 - self.skipped_rows
            if not 2 <= self.calibration_lines <= 2 * reach:
                raise BadInputError(
                    f"{self.calibration_lines} calibration lines asked for; this matrix and partial Fourier have room "
                    f"for 2 to {2 * reach} around the centre"
                )

    @property
    def rows(self) -> int:
        return self.matrix[0]

    @property
    def cols(self) -> int:
        return self.matrix[1]

    @property
    def pixel_mm(self) -> tuple[float, float]:
        return self.fov_mm[0] / self.rows, self.fov_mm[1] / self.cols

    @property
    def samples(self) -> int:
        """Readout samples of a full echo, oversampling included."""
        return self.cols * self.oversampling

    @property
    def skipped_rows(self) -> int:
        return self.rows - int(np.ceil(self.partial_fourier * self.rows - 1e-9))

    @property
    def skipped_samples(self) -> int:
        return self.samples - int(np.ceil(self.asymmetric_echo * self.samples - 1e-9))

    def calibration_rows(self) -> range:
        """Rows of the calibration region, k-space centre (row rows//2) in its middle; empty without calibration."""
        if self.calibration == "none":
            return range(0)
        start = self.rows // 2 - self.calibration_lines // 2
        return range(start, start + self.calibration_lines)

    def grid_rows(self) -> list[int]:
        """Rows of the regular undersampling, which holds the k-space centre."""
        offset = self.rows // 2 % self.acceleration
        return [row for row in range(self.skipped_rows, self.rows) if row % self.acceleration == offset]

    def directions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit vectors (3,) in LPS along increasing cols, rows and slice index."""
        ax, ay, az = np.deg2rad(self.rotation_deg)
        about_x = np.array([[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]])
        about_y = np.array([[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]])
        about_z = np.array([[np.cos(az), -np.sin(az), 0], [np.sin(az), np.cos(az), 0], [0, 0, 1]])
        read, phase, through = (about_z @ about_y @ about_x).T
        return (phase, read, through) if self.swap_phase else (read, phase, through)

    def slice_position(self, index: int) -> np.ndarray:
        """Centre (3,) of a slice in LPS mm: voxel (rows//2, cols//2)."""
        step = self.slice_thickness_mm + self.slice_gap_mm
        return np.array(self.position_mm) + (index - (self.n_slices - 1) / 2) * step * self.directions()[2]

    def slice_order(self) -> list[int]:
        """Slice indices in the order of acquisition: 1, 3, ..., 0, 2, ... where interleaved."""
        indices = list(range(self.n_slices))
        return indices[1::2] + indices[::2] if self.interleaved else indices


def simulate(path: str | os.PathLike, settings: SimulationSettings) -> None:
    """Write the scan to `path` (ISMRMRD HDF5, group "dataset") and its truth to PATH_truth.npy beside it.

    The truth is float32 (n_slices, rows, cols) in the order of the slice index: magnitude of the noise-free,
    fully sampled, pre-whitened coil images, combined by the true coil maps with sum |s|^2 = 1; that of the first of
    several b-values. With `wrap` there are several maps at a pixel, made orthonormal: the root of the sum of squares
    of the images that they combine.
    Raises BadInputError where the file cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInputError(f"the folder {path.parent} does not exist; create it or name another output file")
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; name the file to write")
    phantom = the_object(settings)
    mixing = _noise_mixing(settings)
    b_values = settings.b_values or (settings.b_value,)
    shape = (settings.n_slices, settings.n_coils, settings.rows, settings.samples)
    kspace = np.empty((len(b_values), *shape), np.complex64)
    truths = np.empty((len(b_values), settings.n_slices, settings.rows, settings.cols), np.float32)
    for number, b_value in enumerate(b_values):
        for index in range(settings.n_slices):
            kspace[number, index], truths[number, index] = _simulate_slice(phantom, settings, index, b_value, mixing)
    truth = truths[0]
    # sigma is what whitened noise has per real channel in units of the truth
    level = settings.noise * float(np.percentile(truth, 99))
    partial = path.with_name(path.name + ".part")
    try:
        partial.unlink(missing_ok=True)
        _write(partial, settings, kspace, level * mixing)
        os.replace(partial, path)
        np.save(truth_path(path), truth)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BadInputError(f"{path} cannot be written ({error}); name a file in a folder with free space") from error


def simulated_kspace(settings: SimulationSettings, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One slice as arrays: k-space (n_coils, rows, cols) complex64, whitened, without oversampling and zero where it
    was not acquired, and its truth (rows, cols) float32, see `simulate`."""
    settings = dataclasses.replace(settings, oversampling=1)
    mixing = _noise_mixing(settings)
    clean, truth = _simulate_slice(the_object(settings), settings, index, settings.b_value, mixing)
    kspace = np.einsum("ij,jrc->irc", np.linalg.inv(mixing), clean)
    rng = np.random.default_rng([settings.seed, 24, index])
    level = settings.noise * float(np.percentile(truth, 99))
    kspace += level * (rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape))
    acquired = sorted({*settings.grid_rows(), *settings.calibration_rows()})
    kspace[:, np.setdiff1d(np.arange(settings.rows), acquired)] = 0
    kspace[..., : settings.skipped_samples] = 0
    return kspace.astype(np.complex64), truth


def the_object(settings: SimulationSettings) -> Phantom | Letters:
    """What lies in the scanner."""
    if settings.phantom == "letters":
        return Letters(np.array(settings.position_mm), settings.directions()[2])
    return Phantom(settings.subject, settings.lesion_side, settings.marker_mm)


def truth_path(path: str | os.PathLike) -> Path:
    """OUT_truth.npy of OUT.h5."""
    path = Path(path)
    return path.with_name(path.stem + "_truth.npy")


def slice_points(
    settings: SimulationSettings, index: int, finer: int, oversampling: int, offset: float, folds: int = 1
) -> np.ndarray:
    """Points (rows * finer * folds, cols * oversampling * finer, 3) float32 of a slice, LPS mm, `offset` mm off its
    plane; folds: an odd number of fields of view along the lines."""
    read, phase, through = settings.directions()
    rows, cols = settings.rows * finer * folds, settings.cols * oversampling * finer
    down = (np.arange(rows) - rows // 2)[:, None, None] * (settings.pixel_mm[0] / finer) * phase
    along = (np.arange(cols) - cols // 2)[None, :, None] * (settings.pixel_mm[1] / finer) * read
    return (settings.slice_position(index) + offset * through + down + along).astype(np.float32)


def coil_maps(points: np.ndarray, n_coils: int, subject: int = 0) -> np.ndarray:
    """Complex sensitivities (n_coils, ...) complex64 at points (..., 3) in LPS mm, before whitening.

    Each coil is a small loop on a helmet around the head that looks at its centre: the transverse part of a
    magnetic dipole's field, smoothed over the loop's size.
    """
    rng = np.random.default_rng([subject, 21])
    turn = 2 * np.pi * (np.arange(n_coils) + 0.25 + 0.1 * rng.uniform(-1, 1, n_coils)) / n_coils
    height = np.where(np.arange(n_coils) % 2, 45.0, -5.0) + rng.uniform(-6, 6, n_coils)
    maps = np.empty((n_coils, *points.shape[:-1]), np.complex64)
    for coil in range(n_coils):
        place = np.array([108 * np.cos(turn[coil]), 128 * np.sin(turn[coil]), height[coil]])
        aim = np.array([0.0, 0.0, 15.0]) - place
        aim = (aim / np.linalg.norm(aim)).astype(np.float32)
        x, y, z = np.moveaxis(points - place.astype(np.float32), -1, 0)
        square = x * x + y * y + z * z + np.float32(45.0**2)
        along = 3 * (aim[0] * x + aim[1] * y + aim[2] * z) / square
        maps[coil] = ((along * x - aim[0]) - 1j * (along * y - aim[1])) * (square / 100**2) ** np.float32(-1.5)
    return maps


def _simulate_slice(
    phantom: Phantom | Letters, settings: SimulationSettings, index: int, b_value: float, mixing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free k-space (n_coils, rows, samples) and the truth (rows, cols), noise of unit level being whitened."""
    import torch

    from ..physics.fourier import crop_or_pad, to_image, to_kspace

    folds = _FOLDS if settings.wrap else 1
    fine = slice_points(settings, index, _FINER, settings.oversampling, 0.0, folds)
    image = np.zeros(fine.shape[:2], np.float32)
    for part in _PLANES:
        offset = part * settings.slice_thickness_mm
        plane = slice_points(settings, index, _FINER, settings.oversampling, offset, folds)
        image += phantom.magnitude(plane, settings.contrast, b_value) / len(_PLANES)
    maps = coil_maps(fine, settings.n_coils, settings.subject)
    coil_images = maps * (image * _phase(fine, settings.subject))
    if settings.wrap:
        coil_images = _by_fold(coil_images, folds).sum(1)
    # orthonormal on both sizes: the factor keeps the units of the image
    kspace = to_kspace(torch.from_numpy(coil_images)) / _FINER
    kspace = crop_or_pad(crop_or_pad(kspace, settings.rows, -2), settings.samples, -1)

    coarse = crop_or_pad(to_image(kspace), settings.cols, -1).numpy()
    whitening = np.linalg.inv(mixing).astype(np.complex64)
    coarse = np.einsum("ij,jrc->irc", whitening, coarse)
    points = slice_points(settings, index, 1, 1, 0.0, folds)
    true_maps = np.einsum("ij,jrc->irc", whitening, coil_maps(points, settings.n_coils, settings.subject))
    if settings.wrap:
        return kspace.numpy(), _combined(_by_fold(true_maps, folds), coarse)
    true_maps /= np.linalg.norm(true_maps, axis=0)
    return kspace.numpy(), np.abs((true_maps.conj() * coarse).sum(0))


def _by_fold(array: np.ndarray, folds: int) -> np.ndarray:
    """(n_coils, folds * rows, cols) to (n_coils, folds, rows, cols), where what folds onto one pixel is one column."""
    # rows is even or folds odd: the origin of the whole is the origin of the middle one
    return array.reshape(len(array), folds, -1, array.shape[-1])


def _combined(maps: np.ndarray, coil_images: np.ndarray) -> np.ndarray:
    """Root of the sum of squares of the images of several maps (n_coils, n_maps, rows, cols), made orthonormal."""
    basis = np.linalg.qr(maps.transpose(2, 3, 0, 1))[0]
    return np.linalg.norm(np.einsum("rcim,irc->rcm", basis.conj(), coil_images), axis=-1)


def _phase(points: np.ndarray, subject: int) -> np.ndarray:
    """exp(i phase), complex64: smooth, of about a radian across the head."""
    rng = np.random.default_rng([subject, 22])
    waves = SmoothNoise(rng, 12, 170.0, 0.3)
    slope = rng.normal(0, 0.006, 3).astype(np.float32)
    flat = np.ascontiguousarray(points.reshape(-1, 3).T)
    return np.exp(1j * (0.6 * waves(flat) + slope @ flat)).astype(np.complex64).reshape(points.shape[:-1])


def _noise_mixing(settings: SimulationSettings) -> np.ndarray:
    """(n_coils, n_coils) complex128 M: white noise w of unit level becomes M w; the mean channel keeps the level."""
    rng = np.random.default_rng([settings.subject, 23])
    count = settings.n_coils
    off = rng.normal(size=(count, count)) + 1j * rng.normal(size=(count, count))
    gains = rng.uniform(0.85, 1.15, count)[:, None] if settings.noise_correlation else np.ones((count, 1))
    mixing = gains * (np.eye(count) + 0.5 * settings.noise_correlation * off)
    return mixing * np.sqrt(count / (np.abs(mixing) ** 2).sum())


def _write(path: Path, settings: SimulationSettings, kspace: np.ndarray, mixing: np.ndarray) -> None:
    import h5py
    import ismrmrd
    from ismrmrd.hdf5 import acquisition_dtype, acquisition_header_dtype
    from xsdata.formats.dataclass.serializers import XmlSerializer

    from ..mrd.receiving import is_conjugated

    rng = np.random.default_rng([settings.seed, 24])
    count, conjugated = 0, is_conjugated(settings.vendor)

    def readout(
        line: np.ndarray | None, index: int, row: int, average: int, repetition: int, contrast: int, flags: list[int]
    ):
        """One record of the file from a line (n_coils, samples); None is noise alone, over the full readout."""
        skipped = 0 if line is None else settings.skipped_samples
        shape = (settings.n_coils, settings.samples - skipped)
        data = mixing @ (rng.normal(size=shape) + 1j * rng.normal(size=shape))
        if line is not None:
            data += line[:, skipped:]
        data = data.conj() if conjugated else data
        acquisition = ismrmrd.Acquisition.from_array(data.astype(np.complex64))
        acquisition.scan_counter = count + len(records)
        acquisition.acquisition_time_stamp = 4 * acquisition.scan_counter  # of 2.5 ms each
        acquisition.available_channels = settings.n_coils
        acquisition.center_sample = settings.samples // 2 - skipped
        acquisition.sample_time_us = 10.0 / settings.oversampling
        acquisition.idx.kspace_encode_step_1 = row - settings.skipped_rows
        acquisition.idx.slice = index
        acquisition.idx.average = average
        acquisition.idx.repetition = repetition
        acquisition.idx.contrast = contrast
        acquisition.position[:] = settings.slice_position(index)
        acquisition.read_dir[:], acquisition.phase_dir[:], acquisition.slice_dir[:] = settings.directions()
        for flag in flags:
            acquisition.set_flag(flag)
        record = np.empty(1, acquisition_dtype)
        record[0]["head"] = np.frombuffer(acquisition.getHead(), acquisition_header_dtype)[0]
        record[0]["data"] = np.ascontiguousarray(acquisition.data).view(np.float32).ravel()
        record[0]["traj"] = np.empty(0, np.float32)
        return record

    with h5py.File(path, "w") as file:
        text = file.create_dataset("dataset/xml", (1,), h5py.special_dtype(vlen=bytes))
        # not ismrmrd.xsd.ToXML: that of ismrmrd 1.14 fails with newer versions of the XML library
        xml = XmlSerializer().render(_header(settings), ns_map={"": "http://www.ismrm.org/ISMRMRD"})
        text[0] = xml.encode()
        data = file.create_dataset("dataset/data", (0,), acquisition_dtype, maxshape=(None,))
        records: list[np.ndarray] = []

        def flush() -> None:
            # ismrmrd's own writer goes line by line, which takes longer than the simulation
            nonlocal count
            data.resize(count + len(records), axis=0)
            data[count:] = np.concatenate(records)
            count += len(records)
            records.clear()

        if settings.noise_scan:
            for _ in range(_NOISE_LINES):
                flags = [ismrmrd.ACQ_IS_NOISE_MEASUREMENT]
                records.append(readout(None, 0, settings.skipped_rows, 0, 0, 0, flags))
            flush()
        for repetition in range(settings.repetitions):
            for contrast in range(len(kspace)):
                for index in settings.slice_order():
                    for average in range(settings.averages):
                        counters = (average, repetition, contrast)
                        for row, flags in _lines(settings, index, *counters):
                            records.append(readout(kspace[contrast, index, :, row], index, row, *counters, flags))
                        flush()


def _lines(
    settings: SimulationSettings, index: int, average: int, repetition: int, contrast: int
) -> list[tuple[int, list[int]]]:
    """(row, flags) of one average of one slice at one b-value, in the order of acquisition."""
    import ismrmrd

    calibration = settings.calibration_rows()
    grid = settings.grid_rows()
    first: list[tuple[int, list[int]]] = []
    if settings.calibration == "separate" and average == contrast == 0:
        first = [(row, [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION]) for row in calibration]
    lines: list[tuple[int, list[int]]] = [(row, []) for row in grid]
    if settings.calibration == "embedded" and settings.acceleration > 1:
        lines = []
        for row in sorted({*grid, *calibration}):
            if row not in calibration:
                flags = []
            elif row in grid:
                flags = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING]
            else:
                flags = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION]
            lines.append((row, flags))
    order = settings.slice_order()
    if settings.averages > 1:
        lines[0][1].append(ismrmrd.ACQ_FIRST_IN_AVERAGE)
        lines[-1][1].append(ismrmrd.ACQ_LAST_IN_AVERAGE)
    # every average is a whole slice, so that a reader that keeps averages apart can close it
    lines[0][1].append(ismrmrd.ACQ_FIRST_IN_SLICE)
    lines[-1][1].append(ismrmrd.ACQ_LAST_IN_SLICE)
    if average == contrast == 0 and index == order[0]:
        lines[0][1].append(ismrmrd.ACQ_FIRST_IN_REPETITION)
    last_contrast = max(len(settings.b_values), 1) - 1
    if average == settings.averages - 1 and contrast == last_contrast and index == order[-1]:
        lines[-1][1].append(ismrmrd.ACQ_LAST_IN_REPETITION)
        if repetition == settings.repetitions - 1:
            lines[-1][1].append(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    return first + lines


def _header(settings: SimulationSettings):
    """The MRD header; no version, which older readers refuse."""
    from ismrmrd import xsd
    from xsdata.models.datatype import XmlDate, XmlTime

    sequence = CONTRASTS[settings.contrast]
    thickness = settings.slice_thickness_mm

    def space(cols: int, width: float) -> xsd.encodingSpaceType:
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=cols, y=settings.rows, z=1),
            fieldOfView_mm=xsd.fieldOfViewMm(x=width, y=settings.fov_mm[0], z=thickness),
        )

    def limit(count: int, center: int = 0) -> xsd.limitType:
        return xsd.limitType(minimum=0, maximum=count - 1, center=center)

    limits = xsd.encodingLimitsType(
        kspace_encoding_step_0=limit(
            settings.samples - settings.skipped_samples, settings.samples // 2 - settings.skipped_samples
        ),
        kspace_encoding_step_1=limit(settings.rows - settings.skipped_rows, settings.rows // 2 - settings.skipped_rows),
        kspace_encoding_step_2=limit(1),
        average=limit(settings.averages),
        slice=limit(settings.n_slices),
        contrast=limit(max(len(settings.b_values), 1)),
        phase=limit(1),
        repetition=limit(settings.repetitions),
        set=limit(1),
        segment=limit(1),
    )
    modes = {
        "embedded": xsd.calibrationModeType.EMBEDDED,
        "separate": xsd.calibrationModeType.SEPARATE,
        "none": xsd.calibrationModeType.OTHER,
    }
    parallel = xsd.parallelImagingType(
        accelerationFactor=xsd.accelerationFactorType(
            kspace_encoding_step_1=settings.acceleration, kspace_encoding_step_2=1
        ),
        calibrationMode=modes[settings.calibration],
    )
    diffusion = None
    if settings.contrast == "dwi" and not settings.b_values:
        value = xsd.userParameterDoubleType(name="b_value", value=float(settings.b_value))
        diffusion = xsd.userParametersType(userParameterDouble=[value])
    weightings = [
        xsd.diffusionType(gradientDirection=xsd.gradientDirectionType(rl=0.0, ap=0.0, fh=0.0), bvalue=float(b))
        for b in settings.b_values
    ]
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
            protocolName=sequence.protocol,
            sequenceName=sequence.protocol,
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor=settings.vendor,
            systemFieldStrength_T=3.0,
            relativeReceiverNoiseBandwidth=0.793,
            receiverChannels=settings.n_coils,
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=127731000),
        encoding=[
            xsd.encodingType(
                encodedSpace=space(settings.samples, settings.fov_mm[1] * settings.oversampling),
                reconSpace=space(settings.cols, settings.fov_mm[1]),
                encodingLimits=limits,
                trajectory=xsd.trajectoryType.CARTESIAN,
                parallelImaging=parallel,
            )
        ],
        sequenceParameters=xsd.sequenceParametersType(
            TR=[sequence.tr],
            TE=[sequence.te],
            TI=[] if sequence.ti is None else [sequence.ti],
            flipAngle_deg=[sequence.flip_angle],
            diffusionDimension=xsd.diffusionDimensionType.CONTRAST if weightings else None,
            diffusion=weightings,
        ),
        userParameters=diffusion,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dpmrecon simulate`; the defaults are those of SimulationSettings."""
    default = SimulationSettings()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "example:\n  dpmrecon simulate scan.h5 --contrast t1 --matrix 240 320 --R 3 --calibration separate\n"
        "writes scan.h5 and scan_truth.npy, float32 (slices, rows, cols)"
    )
    parser.add_argument("out", metavar="OUT.h5", type=Path, help="ISMRMRD file to write; the truth goes beside it")

    def option(flag: str, name: str, text: str, **how) -> None:
        value = getattr(default, name)
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        parser.add_argument(flag, dest=name, default=value, help=f"{text} (default: {shown})", **how)

    option("--contrast", "contrast", "contrast", choices=tuple(CONTRASTS))
    option("--matrix", "matrix", "lines and readout samples", nargs=2, type=int, metavar=("ROWS", "COLS"))
    option("--fov", "fov_mm", "field of view in mm", nargs=2, type=float, metavar=("ROWS", "COLS"))
    option("--slices", "n_slices", "number of slices", type=int, metavar="N")
    option("--thickness", "slice_thickness_mm", "slice thickness in mm", type=float, metavar="MM")
    option("--gap", "slice_gap_mm", "gap between slices in mm", type=float, metavar="MM")
    option("--R", "acceleration", "undersampling factor", type=int, metavar="R")
    option("--calibration", "calibration", "calibration lines", choices=("embedded", "separate", "none"))
    option("--calibration-lines", "calibration_lines", "their number", type=int, metavar="N")
    option("--coils", "n_coils", "number of coils", type=int, metavar="N")
    option("--noise", "noise", "sigma per real channel over the image's 99th percentile", type=float, metavar="LEVEL")
    option("--noise-correlation", "noise_correlation", "typical correlation of two channels", type=float, metavar="C")
    parser.add_argument("--no-noise-scan", dest="noise_scan", action="store_false", help="no noise measurement")
    option("--oversampling", "oversampling", "readout oversampling", type=int, choices=(1, 2))
    option("--partial-fourier", "partial_fourier", "part of the lines acquired", type=float, metavar="PART")
    option("--asymmetric-echo", "asymmetric_echo", "part of each readout acquired", type=float, metavar="PART")
    degrees = ("X", "Y", "Z")
    option("--rotation", "rotation_deg", "slice rotation in degrees", nargs=3, type=float, metavar=degrees)
    option("--position", "position_mm", "centre of the slices, LPS mm", nargs=3, type=float, metavar=degrees)
    parser.add_argument("--sequential", dest="interleaved", action="store_false", help="slices in order of position")
    option("--averages", "averages", "averages", type=int, metavar="N")
    option("--repetitions", "repetitions", "repetitions", type=int, metavar="N")
    option("--b-value", "b_value", "diffusion weighting in s/mm^2, for dwi", type=float, metavar="B")
    option("--b-values", "b_values", "several of them", nargs="+", type=float, metavar="B")
    option("--patient-position", "patient_position", "what the header says", metavar="HFS")
    parser.add_argument("--wrap", action="store_true", help="what lies beyond the field of view along the lines folds")
    parser.add_argument("--swap-phase", action="store_true", help="lines and readout change directions")
    option("--phantom", "phantom", "what is scanned", choices=("head", "letters"))
    option("--subject", "subject", "seed of the anatomy, the coils and the phase", type=int, metavar="N")
    option("--seed", "seed", "seed of the noise", type=int, metavar="N")
    option("--vendor", "vendor", "of the scanner, whose convention the file follows", metavar="NAME")
    option("--lesion-side", "lesion_side", "hemisphere of the acute infarct", choices=("left", "right"))


def run(args: argparse.Namespace) -> int:
    """`dpmrecon simulate`; the exit code. Raises BadInputError."""
    names = {field.name for field in dataclasses.fields(SimulationSettings)}
    chosen = {name: value for name, value in vars(args).items() if name in names}
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    simulate(args.out, SimulationSettings(**chosen))
    print(f"wrote {args.out} and {truth_path(args.out)}")
    return 0
