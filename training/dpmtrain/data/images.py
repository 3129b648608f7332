"""Readers of magnitude images: DICOM series and NIfTI volumes. They have no phase: training draws a smooth one."""

import gzip
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from dpmrecon.errors import BadInputError, first_line
from dpmrecon.mrd.geometry import plane_of_dicom
from dpmrecon.output.mrd_images import RESEARCH

from .items import Fault, Item, Volume

MAGNITUDE = "magnitude images, random smooth phase in training"
# Slices so many times thicker than pixels were acquired in their plane
THICK = 1.5
# Difference of a series' steps from slice to slice, over the usual one, from which slices lack
UNEVEN = 0.2
# Millimetres of NIfTI's units
UNITS = {"meter": 1e3, "micron": 1e-3}
# Voxels that heads are scanned with, mm
VOXEL_MM = 0.05, 30.0
# Values of a segmentation at most; images have more
LABELS = 32
# Share of negative values, of the sum of all magnitudes, that interpolation does not make
NEGATIVE = 0.1
B_VALUE_TAGS = ((0x0018, 0x9087), (0x2001, 0x1003), (0x0019, 0x100C))  # DICOM's own, Philips, Siemens


def read_nifti(item: Item) -> tuple[list[Volume], list[Fault]]:
    """One volume, or as many as a fourth dimension holds; slices in the plane of the thinnest pixels, else axial."""
    import nibabel

    (path,) = item.files
    image: Any = nibabel.load(path)
    stored = image.get_data_dtype()
    if stored.names:
        raise BadInputError("it is a colour map, not an image")
    data = abs(np.asarray(image.dataobj)) if stored.kind == "c" else image.dataobj
    data = np.asarray(data, dtype=np.float32)
    if data.ndim not in (3, 4):
        raise BadInputError(f"its data have shape {data.shape}; three dimensions, or four, are needed")
    _check_values([data])
    affine = image.affine.copy()
    affine[:3] *= UNITS.get(image.header.get_xyzt_units()[0], 1.0)
    volumes = [data] if data.ndim == 3 else list(np.moveaxis(data, 3, 0))
    made = []
    for number, volume in enumerate(volumes, 1):
        _check_magnitudes(volume)
        slices, voxel = oriented(volume, affine)
        made.append(Volume(_numbered(item.name, number, len(volumes)), slices, voxel, MAGNITUDE))
    return made, []


def read_dicom(item: Item) -> tuple[list[Volume], list[Fault]]:
    """The volumes of a series (of one b-value), slices in the plane of acquisition, in order of position.

    Files at the same position (directions, repetitions, echoes) make volumes of their own, in order of
    InstanceNumber, then of names; copies of a file count once. A file that cannot be read is left out and named. A
    volume in which slices lack is not cut across them.
    """
    positions = defaultdict(list)
    faults = []
    normal = None
    known = set()
    for path in item.files:
        try:
            dataset = open_dicom(path, pixels=True)
            plane = plane_of_dicom(dataset)
            normal = plane.normal if normal is None else normal
            slope, offset = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
            image = dataset.pixel_array.astype(np.float32) * slope + offset
        except Exception as error:  # the file's bytes decide what is raised
            faults.append(Fault(str(path), f"cannot be read ({type(error).__name__}: {first_line(error)})"))
            continue
        if abs(plane.normal @ normal) < 0.999:
            faults.append(Fault(str(path), "has another orientation than the series' first image"))
            continue
        place = round(float(plane.first @ normal), 2)
        copy = (dataset.get("SOPInstanceUID"), place, hash(image.tobytes()))  # anonymised files may share a UID
        if copy in known:
            continue
        known.add(copy)
        positions[place].append((int(dataset.get("InstanceNumber") or 0), image, plane))
    if not positions:
        raise BadInputError(f"none of its {len(item.files)} files can be read; the first: {faults[0].reason}")
    _check_values(image for found in positions.values() for _, image, _ in found)
    for found in positions.values():
        found.sort(key=lambda entry: entry[0])
    count = max(map(len, positions.values()))
    made = []
    for number in range(count):
        stack = [found[number] for _, found in sorted(positions.items()) if len(found) > number]
        images, planes = [image for _, image, _ in stack], [plane for _, _, plane in stack]
        if len({image.shape for image in images}) > 1:
            raise BadInputError(f"its images have different sizes: {sorted({image.shape for image in images})}")
        step = planes[0].normal
        if len(planes) > 1:
            step = (planes[-1].first - planes[0].first) / (len(planes) - 1)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 3] = step, planes[0].first
        affine[:3, 1] = planes[0].along_rows * planes[0].spacing_mm[0]
        affine[:3, 2] = planes[0].along_columns * planes[0].spacing_mm[1]
        affine[:2] *= -1  # LPS to RAS
        _check_magnitudes(np.stack(images))
        slices, voxel = oriented(np.stack(images), affine, slice_axis=0)
        steps = np.diff([plane.first @ normal for plane in planes])
        even = len(steps) < 2 or float(np.ptp(steps)) < UNEVEN * float(np.median(steps))
        made.append(Volume(_numbered(item.name, number + 1, count), slices, voxel, MAGNITUDE, coherent=even))
    return made, faults


def is_dicom(path: Path) -> bool:
    """Whether a file, packed with gzip or not, begins as DICOM does. Some have no preamble: their first element is of
    group 2 or 8, and its VR, or where VRs are implicit its length, fits it. Raises OSError."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    with _unpacked(path) as stream:
        head = stream.read(132)
    if head[128:132] == b"DICM":
        return True
    group, element = (int.from_bytes(head[at : at + 2], "little") for at in (0, 2))
    tag = group << 16 | element
    if group not in (2, 8) or len(head) < 132 or not (element == 0 or dictionary_has_tag(tag)):
        return False
    vr = "UL" if element == 0 else dictionary_VR(tag)
    length = int.from_bytes(head[4:8], "little")
    return head[4:6] == vr.encode() or (group == 8 and length % 2 == 0 and length <= 128)


def open_dicom(path: Path, *, pixels: bool) -> Any:
    """What `is_dicom` knows as a DICOM file, with or without its pixel data."""
    import pydicom

    with _unpacked(path) as stream:
        dataset = pydicom.dcmread(stream, stop_before_pixels=not pixels, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, _ = dataset.original_encoding
        syntaxes = (pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian)
        dataset.file_meta.TransferSyntaxUID = syntaxes[bool(implicit)]
    return dataset


def _unpacked(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]


def is_ours(dataset: Any) -> bool:
    """Whether dpmrecon made a DICOM image; a Gadgetron's files of ours have the comment alone."""
    makers = [str(item.get("Manufacturer", "")) for item in dataset.get("ContributingEquipmentSequence") or ()]
    return "dpmrecon" in makers or RESEARCH in str(dataset.get("ImageComments", ""))


def is_our_nifti(path: Path) -> bool:
    """Whether a file is dpmrecon's, or what dcm2niix made of its DICOM, which keeps the comment's beginning."""
    import nibabel

    header: Any = nibabel.load(path).header
    told = [bytes(header[name].item()).rstrip(b"\0") for name in ("descrip", "aux_file") if name in header]
    return any(text.startswith(RESEARCH[:20].encode()) for text in told)


def b_value(dataset: Any) -> int | None:
    """b in s/mm^2, rounded; None where the image does not say."""
    for tag in B_VALUE_TAGS:
        if tag in dataset:
            try:
                return round(float(dataset[tag].value))
            except (TypeError, ValueError):
                continue
    return None


def oriented(
    volume: np.ndarray, affine: np.ndarray, slice_axis: int | None = None
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(slices, rows, cols) float32 of a volume (i, j, k) with its RAS affine, and the steps along these in mm.

    Axial: slices upwards, rows to the back, columns to the patient's left; coronal and sagittal ones: rows downwards,
    columns to the left or to the back. slice_axis: of `volume`; None is the thick one, else axial.
    """
    import nibabel

    if not np.isfinite(volume).all():
        raise BadInputError("its data hold NaN or infinite values")
    orientation = nibabel.orientations.io_orientation(affine)
    if np.isnan(orientation).any():
        raise BadInputError("its affine does not say how the volume lies in the patient")
    target = orientation[:, 0].astype(int)  # of each axis of the volume
    spacing = np.empty(3)
    spacing[target] = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < VOXEL_MM[0] or spacing.max() > VOXEL_MM[1]:
        told = " x ".join(f"{size:.3g}" for size in spacing)
        raise BadInputError(f"its voxels have {told} mm, which no head is scanned with: correct its header")
    if slice_axis is None:
        thickest = int(spacing.argmax())
        axis = thickest if spacing[thickest] > THICK * np.delete(spacing, thickest).max() else 2
    else:
        axis = int(target[slice_axis])
    canonical = nibabel.orientations.apply_orientation(volume, orientation)
    if axis == 2:
        slices, order = canonical[::-1, ::-1], (2, 1, 0)
    elif axis == 1:
        slices, order = canonical[::-1, :, ::-1], (1, 2, 0)
    else:
        slices, order = canonical[:, ::-1, ::-1], (0, 2, 1)
    step, row, col = (float(spacing[of]) for of in order)
    return np.ascontiguousarray(slices.transpose(order), np.float32).clip(min=0), (step, row, col)


def _check_values(images: Iterable[np.ndarray]) -> None:
    """Raises BadInputError for a mask or a segmentation."""
    values: np.ndarray = np.empty(0, np.float32)
    for image in images:
        values = np.union1d(values, image)
        if len(values) > LABELS:
            return
    if len(values) == 2:
        raise BadInputError("its data have only two values: it is a mask, not an image")
    if len(values) > 2:
        raise BadInputError(f"its data have only {len(values)} values: it is a segmentation, not an image")


def _check_magnitudes(volume: np.ndarray) -> None:
    """Raises BadInputError for what is signed: phase, real parts, standardised values."""
    share = -float(volume.clip(max=0).sum(dtype=np.float64)) / max(float(abs(volume).sum(dtype=np.float64)), 1e-30)
    if share > NEGATIVE:
        raise BadInputError(
            f"{100 * share:.0f} % of its signal is negative: it is a phase image or another map, or was standardised; "
            "magnitudes are needed"
        )


def axial(path: Path) -> np.ndarray:
    """Axial slices (slices, rows, cols) of a NIfTI volume: columns run to the patient's left, rows to the back."""
    import nibabel

    image: Any = nibabel.load(path)
    axis = int(np.flatnonzero(nibabel.orientations.io_orientation(image.affine)[:, 0] == 2)[0])
    return oriented(np.asarray(image.dataobj, dtype=np.float32), image.affine, axis)[0]


def pixel_size(path: Path) -> float:
    """In-plane pixel size of a NIfTI volume in mm."""
    import nibabel

    image: Any = nibabel.load(path)
    return float(image.header.get_zooms()[0])


def _numbered(name: str, number: int, count: int) -> str:
    return name if count == 1 else f"{name}_{number:0{max(2, len(str(count)))}d}"
