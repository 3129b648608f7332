"""The DICOM checkers of dicom3tools, and what they may say of our files."""

import shutil
import subprocess
from pathlib import Path

import pytest

# What dciodvfy may say of our files, and why it stays. All are of the kind "legal extension": PS3.2 lets a Standard
# Extended SOP Class carry attributes of other image types, as scanners' own MR images do.
EXPLAINED = {
    "(0x0028,0x1052) DS Rescale Intercept": "one scale for a series, as readers of MR images look for it",
    "(0x0028,0x1053) DS Rescale Slope": "the same",
    "(0x0028,0x1054) LO Rescale Type": "the same",
    "(0x0018,0x9087) FD Diffusion b-value": "of Enhanced MR; viewers sort diffusion images by it",
    "(0x0018,0x9075) CS Diffusion Directionality": "the same",
    "(0x0018,0x9076) SQ Diffusion Gradient Direction Sequence": "the same",
    "(0x0018,0x9089) FD Diffusion Gradient Orientation": "the same, where classic files of vendors have it",
    "this is a Standard Extended SOP Class": "follows from the attributes above",
    "Non-identity Modality LUT Module": "series whose values are far from 1 to 65535: uncertainty, trace, ADC, phase",
    "Unrecognized defined term <P>": "how vendors' phase images are known by their readers",
    "Unrecognized defined term <M>": "the same of magnitudes and SWI",
    "Unrecognized defined term <MNIP>": "the same of minimum-intensity projections",
}


def checker(name: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed (Debian package dicom3tools): the files are not checked")
    return name


def complaints(path: Path) -> list[str]:
    done = subprocess.run([checker("dciodvfy"), str(path)], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert "MRImage" in lines  # it knows what it checks
    return [line for line in lines if line.startswith(("Error", "Warning", "Abort"))]


def unexplained(path: Path) -> list[str]:
    """Complaints that EXPLAINED does not hold."""
    return [line for line in complaints(path) if not any(known in line for known in EXPLAINED)]
