"""preview.png: what went in, the conventional image, the reconstruction, and errors where a truth is given."""

from io import BytesIO
from pathlib import Path

import numpy as np


def write_preview(path: Path | BytesIO, rows: list[dict[str, np.ndarray]], titles: list[str]) -> None:
    """rows: per slice, title of the column -> magnitude (rows, cols); columns named 'error ...' show the error
    five times brighter than the images. titles: one a row."""
    from matplotlib.figure import Figure  # heavy, and needed for the picture alone

    columns = list(rows[0])
    aspect = rows[0][columns[0]].shape[0] / rows[0][columns[0]].shape[1]
    figure = Figure(figsize=(2.6 * len(columns), 2.6 * aspect * len(rows) + 0.4), facecolor="black")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes, images, title in zip(grid, rows, titles):
        bright = float(np.percentile(images["DPM"], 99.7)) or 1.0
        for axis, column in zip(axes, columns):
            error = column.startswith("error")
            axis.imshow(
                images[column], cmap="inferno" if error else "gray", vmin=0, vmax=bright / 5 if error else bright
            )
            axis.set_axis_off()
            axis.set_title(f"{title}{column}" if axis is axes[0] else column, color="white", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=130, facecolor="black")
