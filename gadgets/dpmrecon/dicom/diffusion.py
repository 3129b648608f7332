"""The diffusion weighting of a DICOM image: the standard's attributes, and what readers of vendors' files look for.

Readers go by the manufacturer's name. dcm2niix 1.0.20220720 and MRtrix take the standard's attributes from files of
Siemens, Philips and unknown makers, dcm2niix the direction of the last outside its sequence alone; dcm2niix takes GE's
own elements from files of GE, and dicom2nifti Siemens's own from those of Siemens.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..mrd.geometry import Plane
from ..output.weighting import B_VALUE, DIRECTION, DIRECTIONALITY

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def add_weighting(file: "Dataset", meta: Mapping[str, Any], plane: Plane) -> None:
    """b-value and direction of an image whose MRD meta tells them; nothing where it does not."""
    if B_VALUE[0] not in meta:
        return
    b = float(meta[B_VALUE[0]])
    direction = np.array(meta[DIRECTION], float) if DIRECTION in meta else None
    file.DiffusionBValue = b
    if DIRECTIONALITY in meta:
        file.DiffusionDirectionality = meta[DIRECTIONALITY]
    if direction is not None:
        _add_standard(file, direction)
    maker = str(file.Manufacturer)
    if re.match("siemens", maker, re.IGNORECASE):
        _add_siemens(file, b, direction)
    elif re.match(r"ge\b|general electric", maker, re.IGNORECASE):
        _add_ge(file, b, np.zeros(3) if direction is None else direction, plane)


def _add_standard(file: "Dataset", direction: np.ndarray) -> None:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.DiffusionGradientOrientation = direction.tolist()
    file.DiffusionGradientDirectionSequence = [item]
    file.DiffusionGradientOrientation = direction.tolist()  # as XA's classic files have it


def _add_siemens(file: "Dataset", b: float, direction: np.ndarray | None) -> None:
    block = file.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", str(round(b)))
    block.add_new(0x0D, "CS", str(file.get("DiffusionDirectionality", "NONE")))
    if direction is not None:
        block.add_new(0x0E, "FD", direction.tolist())


def _add_ge(file: "Dataset", b: float, direction: np.ndarray, plane: Plane) -> None:
    """GE has directions in the image's axes, columns and rows reversed: as dcm2niix turns it back."""
    file.InPlanePhaseEncodingDirection = "COL"
    file.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "IS", [str(round(b)), "8", "0", "0"])
    block = file.private_block(0x0019, "GEMS_ACQU_01", create=True)
    axes = (-plane.along_columns, -plane.along_rows, plane.normal)
    for element, axis in zip((0xBB, 0xBC, 0xBD), axes):
        block.add_new(element, "DS", f"{float(direction @ axis):.6g}")
