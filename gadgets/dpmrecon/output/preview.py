"""preview.png: what went in, the conventional image, the reconstruction, and errors where a truth is given."""

from io import BytesIO
from pathlib import Path

import ismrmrd
import numpy as np

from ..data import LostSlice
from ..mrd.header import Header
from ..recon.types import Reconstruction
from .mrd_images import to_recon_space
from .scores import METHODS, Truth, fitting_factor, pictures_of
from .writers import telling

ROWS = 6  # slices that are shown at most, spread over the scan


class Preview:
    """A writer of the picture. n_slices: how many are to come."""

    def __init__(self, path: Path, header: Header, truth: Truth, n_slices: int):
        self.path, self.header, self.truth = path, header, truth
        self.every = max(1, -(-n_slices // ROWS))
        self.done = 0
        self.rows: list[dict[str, np.ndarray]] = []
        self.titles: list[str] = []

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        if isinstance(item, LostSlice):
            return
        self.done += 1
        if (self.done - 1) % self.every or len(self.rows) == ROWS:
            return
        pictures = pictures_of(item, self.header)
        truth = self.truth.of(item.key.slice)
        if item.spread is not None:
            pictures["std of samples x5"] = 5 * to_recon_space(item.spread, self.header).abs().cpu().numpy()
        if truth is not None:
            pictures["truth"] = truth * fitting_factor(truth, pictures["DPM"])
            for name in METHODS:
                fitted = pictures[name] * fitting_factor(pictures[name], pictures["truth"])
                pictures[f"error {name} x5"] = np.abs(fitted - pictures["truth"])
        self.rows.append(pictures)
        self.titles.append(f"slice {item.key.slice}{' FALLBACK' if item.fallback else ''}: ")

    def close(self, failure: BaseException | None) -> None:
        if not self.rows:
            return
        columns = set.intersection(*(set(row) for row in self.rows))
        rows = [{name: image for name, image in row.items() if name in columns} for row in self.rows]
        with telling(self.path.parent, "make room or choose another --out"):
            write_preview(self.path, rows, self.titles)


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
