"""Images side by side, for all reports."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from matplotlib.figure import Figure

Shown = tuple[str, np.ndarray, float, float]  # title, image (rows, cols), what is black and white


def panels(rows: Sequence[Sequence[Shown | None]], inches: float = 2.4) -> Figure:
    """Rows of grey images under their titles, each `inches` wide; None leaves a place empty."""
    shapes = [next(shown for shown in row if shown is not None)[1].shape for row in rows]
    heights, count = [shape[0] / shape[1] for shape in shapes], max(map(len, rows))
    made = Figure((inches * count, sum(inches * height + 0.3 for height in heights)), layout="constrained")
    axes = made.subplots(len(rows), count, squeeze=False, height_ratios=heights)
    for line, row in zip(axes, rows):
        for axis, shown in zip_longest(line, row):
            axis.set_axis_off()
            if shown is not None:
                axis.imshow(shown[1], cmap="gray", vmin=shown[2], vmax=shown[3], interpolation="nearest")
                axis.set_title(shown[0], fontsize=8)
    return made
