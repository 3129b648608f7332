"""nifti/ of a result folder: a file for each series of images.h5, in dcm2niix's order of voxels.

That order is of our DICOM series: columns from the first one on; rows from the last one on; slices (partitions of a 3D
scan) along DICOM's normal; then volumes, one for each setting of the counters. The affine takes voxels to mm, RAS+.

Beside a series of several volumes NAME.json says which they are; of a diffusion scan NAME.bval and NAME.bvec hold b in
s/mm^2 and the directions in FSL's convention.
"""

import json
import shutil
from itertools import groupby
from pathlib import Path

import ismrmrd
import numpy as np

from ..data import LostSlice, SliceKey
from ..errors import BadInputError
from ..mrd.geometry import Plane, are_parallel, plane_of_partition, slice_spacing
from ..recon.types import Reconstruction
from .images_file import images_in, series_of
from .mrd_images import COUNTERS, RESEARCH
from .names import Names
from .report import Report
from .weighting import B_VALUE, DIRECTION
from .writers import telling

NAMES = {"Image": "reconstruction", "Uncertainty": "spread"}  # by the meta's DataRole; others keep its word
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


class NiftiFolder:
    """A writer of nifti/, once the scan is done and `images`, images.h5, is closed.

    A series that is no full stack becomes a note of the report.
    """

    def __init__(self, images: Path, report: Report):
        self.images, self.report = images, report

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        """A file holds a whole series: it is written at the end."""

    def close(self, failure: BaseException | None) -> None:
        if failure is not None:
            return
        folder = self.images.with_name("nifti")
        try:
            self.report.notes += write_nifti(self.images, folder, self.report.names)
        except BadInputError as error:
            shutil.rmtree(folder, ignore_errors=True)
            self.report.not_made("NIfTI", error)
        self.report.write()


def write_nifti(images: Path, folder: Path, names: Names = Names()) -> list[str]:  # noqa: B008, it is frozen
    """Write every series of `images` (images.h5) to folder/NUMBER_NAME.nii.gz, in its scale: phase in radians.

    names: of the scan's images. Returns a line for each series that is left out. Memory holds one series. Raises
    BadInputError where the folder cannot be written.
    """
    import nibabel

    complaints = []
    with telling(folder, "make room or choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        for number in series_of(images):
            found = list(images_in(images, number))
            role = str(found[0].meta.get("DataRole", "image"))
            name = f"{number:02d}_{NAMES.get(role, role.lower())}"
            try:
                voxels, affine = stack(found)
            except BadInputError as error:
                complaints.append(f"no NIfTI of {name[3:]}: {error}")
                continue
            file = nibabel.Nifti1Image(voxels, affine)
            file.set_sform(affine, 1)  # scanner coordinates
            file.set_qform(affine, 1)
            file.header.set_xyzt_units("mm")
            file.header["descrip"] = RESEARCH
            nibabel.save(file, folder / f"{name}.nii.gz")
            for ending, text in _beside(found, affine, names).items():
                (folder / f"{name}.{ending}").write_text(text)
    return complaints


def _beside(images: list[ismrmrd.Image], affine: np.ndarray, names: Names) -> dict[str, str]:
    """Texts beside a series of several volumes, by the ending of their file's name."""
    volumes = {_setting(image): image for image in images}
    first = [volumes[setting] for setting in sorted(volumes)]
    if len(first) < 2:
        return {}
    found, metas = {}, [dict(image.meta) for image in first]
    told = [names.counters(SliceKey.of(image.getHead())) for image in first]
    if any(told):
        found["json"] = json.dumps({"ImageComments": RESEARCH, "Volumes": told}, indent=1) + "\n"
    if all(B_VALUE[0] in meta for meta in metas):
        found["bval"] = _rows([[float(meta[B_VALUE[0]]) for meta in metas]])
        directions = np.array([meta.get(DIRECTION, (0, 0, 0)) for meta in metas], float)
        axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        vectors = axes.T @ _LPS_TO_RAS @ directions.T
        vectors[0] *= -np.sign(np.linalg.det(axes))  # FSL's first axis runs to the left
        found["bvec"] = _rows(vectors.tolist())
    return found


def _rows(rows: list[list[float]]) -> str:
    return "".join(" ".join(f"{value + 0.0:.6g}" for value in row) + "\n" for row in rows)


def _setting(image: ismrmrd.Image) -> tuple[int, ...]:
    """Of the counters, by which volumes are told apart and ordered."""
    return tuple(int(getattr(image.getHead(), name)) for name in COUNTERS)


def stack(images: list[ismrmrd.Image]) -> tuple[np.ndarray, np.ndarray]:
    """(columns, rows, slices[, volumes]) of a series, and its affine (4, 4) to RAS+ mm.

    Raises BadInputError where slices are no even stack, are turned, or some are missing.
    """
    shapes = {image.data.shape for image in images}
    slices = [(image, partition) for image in images for partition in range(image.data.shape[-3])]
    planes = [plane_of_partition(image.getHead(), image.data.shape, partition) for image, partition in slices]
    if not are_parallel(planes):
        raise BadInputError(f"its {len(slices)} images are turned against one another")
    normal = planes[0].normal
    placed = sorted(
        (_setting(image), round(float(plane.first @ normal), 3), index)
        for index, ((image, _), plane) in enumerate(zip(slices, planes))
    )
    volumes = [list(group) for _, group in groupby(placed, lambda entry: entry[0])]
    places = sorted({place for _, place, _ in placed})
    if len(shapes) > 1 or any([place for _, place, _ in volume] != places for volume in volumes):
        raise BadInputError(f"{len(slices)} images are not {len(volumes)} volumes of {len(places)} slices each")
    spacing = slice_spacing(planes) if len(places) > 1 else float(images[0].getHead().field_of_view[2]) or 1.0
    if spacing is None:
        raise BadInputError(f"its {len(places)} slices do not lie evenly in one stack")
    pixels = [image.data[0, partition] for image, partition in slices]
    voxels = np.stack([np.stack([pixels[index][::-1].T for *_, index in volume], -1) for volume in volumes], -1)
    first, last = (planes[volumes[0][end][-1]] for end in (0, -1))
    through = (last.first - first.first) / (len(places) - 1) if len(places) > 1 else spacing * normal
    return voxels[..., 0] if len(volumes) == 1 else voxels, _affine(first, images[0].data.shape[-2], through)


def _affine(plane: Plane, rows: int, through: np.ndarray) -> np.ndarray:
    """plane: of the first slice; through: from one slice to the next, LPS mm."""
    down, across = plane.spacing_mm
    affine = np.eye(4)
    columns = [across * plane.along_columns, -down * plane.along_rows, through, plane.point(rows - 1, 0)]
    affine[:3] = _LPS_TO_RAS @ np.stack(columns, 1)
    return affine
