"""preview.png: what went in, the conventional image, the reconstruction, and errors against a truth.

A slice is a row; a volume is three, the planes through its middle as readers look at them.
"""

from io import BytesIO
from pathlib import Path

import ismrmrd
import numpy as np

from ..data import LostSlice
from ..errors import BadInputError
from ..mrd.geometry import ORIENTATIONS, Grid, grid_of_mrd
from ..mrd.header import Header
from ..recon.types import Reconstruction
from .mrd_images import recon_shape, to_recon_space
from .scores import METHODS, Truth, fitting_factor, pictures_of
from .writers import telling

TITLE = 0.1  # widths of a picture
ROWS = 6  # slices that are shown at most, spread over the scan
PLANES = 3  # of a volume


class Preview:
    """A writer of the picture. n_slices: how many are to come."""

    def __init__(self, path: Path, header: Header, truth: Truth, n_slices: int):
        self.path, self.header, self.truth = path, header, truth
        self.every = max(1, -(-n_slices // ROWS))
        self.done = 0
        self.rows: list[dict[str, np.ndarray]] = []
        self.aspects: list[float] = []
        self.titles: list[str] = []

    def add(self, item: Reconstruction | LostSlice, images: list[ismrmrd.Image]) -> None:
        if isinstance(item, LostSlice):
            return
        self.done += 1
        if (self.done - 1) % self.every or len(self.rows) >= ROWS:
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
        fallback = " FALLBACK" if item.fallback else ""
        if pictures["DPM"].ndim == 2:
            self.rows.append(pictures)
            self.aspects.append(1.0)
            self.titles.append(f"slice {item.key.slice}{fallback}: ")
            return
        grid = self._grid(images)
        for name in ORIENTATIONS:
            turned = {column: grid.resliced(image, name) for column, image in pictures.items()}
            self.rows.append({column: image[len(image) // 2] for column, (_, image) in turned.items()})
            _, down, across = turned["DPM"][0].spacing_mm
            self.aspects.append(down / across)
            self.titles.append(f"{name}{fallback}: ")

    def _grid(self, images: list[ismrmrd.Image]) -> Grid:
        """Of a volume; where its header's directions say nothing, as if they were the patient's."""
        try:
            return grid_of_mrd(images[0].getHead(), images[0].data.shape)
        except (BadInputError, IndexError):
            fov = self.header.encoding[0].reconSpace.fieldOfView_mm
            depth, height, width = (
                size / count for size, count in zip((fov.z, fov.y, fov.x), recon_shape(self.header))
            )
            return Grid(np.zeros(3), np.eye(3)[::-1], (depth, height, width))

    def close(self, failure: BaseException | None) -> None:
        if not self.rows:
            return
        columns = set.intersection(*(set(row) for row in self.rows))
        rows = [{name: image for name, image in row.items() if name in columns} for row in self.rows]
        with telling(self.path.parent, "make room or choose another --out"):
            write_preview(self.path, rows, self.titles, self.aspects)


def write_preview(
    path: Path | BytesIO, rows: list[dict[str, np.ndarray]], titles: list[str], aspects: list[float]
) -> None:
    """rows: per slice, title of the column -> magnitude (rows, cols); columns named 'error ...' show the error
    five times brighter than the images. titles, aspects: one a row, of a pixel its height over its width."""
    from matplotlib.figure import Figure  # heavy, and needed for the picture alone

    columns = list(rows[0])
    shapes = [row[columns[0]].shape for row in rows]
    heights = [aspect * shape[0] / shape[1] for aspect, shape in zip(aspects, shapes)]
    if len(set(heights)) > 1:  # equal rows make room for their titles by getting narrower, others cannot
        heights = [height + TITLE for height in heights]
    figure = Figure(figsize=(2.6 * len(columns), 2.6 * sum(heights) + 0.4), facecolor="black")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for axes, images, title, aspect in zip(grid, rows, titles, aspects):
        bright = float(np.percentile(images["DPM"], 99.7)) or 1.0
        for axis, column in zip(axes, columns):
            error = column.startswith("error")
            vmax, cmap = (bright / 5, "inferno") if error else (bright, "gray")
            axis.imshow(images[column], cmap=cmap, vmin=0, vmax=vmax, aspect=aspect)
            axis.set_axis_off()
            axis.set_title(f"{title}{column}" if axis is axes[0] else column, color="white", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=130, facecolor="black")
