"""DICOM images as a viewer shows them: window, pixel aspect, orientation letters.

`python -m dpmrecon.dicom.viewer DIR OUT.png` draws one row for each series under DIR.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInputError
from ..mrd.geometry import orientation_letters, plane_of_dicom

COLUMNS = 5


def read_series(folder: Path) -> list[list[Any]]:
    """The DICOM data sets under a folder, by series and InstanceNumber. Raises BadInputError where there are none."""
    from pydicom import dcmread

    series: dict[str, list[Any]] = defaultdict(list)
    for path in sorted(folder.rglob("*.dcm")):
        file = dcmread(path)
        series[file.SeriesInstanceUID].append(file)
    if not series:
        raise BadInputError(f"{folder} holds no .dcm files; give the folder that a replay wrote")
    ordered = sorted(series.values(), key=lambda files: int(files[0].SeriesNumber))
    return [sorted(files, key=lambda file: int(file.InstanceNumber)) for files in ordered]


def values(file: Any) -> np.ndarray:
    """(rows, columns) float64: stored values times RescaleSlope, plus RescaleIntercept."""
    return file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept)


def show(axis: Any, file: Any, title: str) -> None:
    """Draw one image on a matplotlib axis: its window, its pixels' shape, and the patient's sides at the edges."""
    plane = plane_of_dicom(file)
    low = float(file.WindowCenter) - float(file.WindowWidth) / 2
    aspect = plane.spacing_mm[0] / plane.spacing_mm[1]
    axis.imshow(values(file), cmap="gray", vmin=low, vmax=low + float(file.WindowWidth), aspect=aspect)
    axis.set_axis_off()
    axis.set_title(title, color="white", fontsize=7)
    style = {"color": "yellow", "fontsize": 8, "ha": "center", "va": "center"}
    for x, y, direction in (
        (0.96, 0.5, plane.along_columns),
        (0.04, 0.5, -plane.along_columns),
        (0.5, 0.04, plane.along_rows),
        (0.5, 0.96, -plane.along_rows),
    ):
        axis.text(x, y, orientation_letters(direction), transform=axis.transAxes, **style)


def draw(folder: Path, out: Path) -> None:
    """A picture of all series under a folder, a row each, at most COLUMNS images."""
    from matplotlib.figure import Figure

    series = read_series(folder)
    columns = min(COLUMNS, max(len(files) for files in series))
    figure = Figure(figsize=(2.4 * columns, 2.8 * len(series)), facecolor="black")
    grid = figure.subplots(len(series), columns, squeeze=False)
    for axes, files in zip(grid, series):
        shown = np.unique(np.linspace(0, len(files) - 1, min(columns, len(files))).round().astype(int))
        for axis in axes:
            axis.set_axis_off()
        for axis, index in zip(axes, shown):
            file = files[index]
            first = f"{file.SeriesNumber}: {file.SeriesDescription}\n" if axis is axes[0] else "\n"
            show(axis, file, f"{first}{file.InstanceNumber}/{len(files)}, {float(file.SliceLocation):.1f} mm")
    figure.tight_layout(pad=0.4, h_pad=1.2)
    figure.savefig(out, dpi=120, facecolor="black")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
