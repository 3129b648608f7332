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
from ..mrd.header import Header, view_mm
from ..recon.types import Reconstruction
from .mrd_images import recon_shape, to_recon_space
from .names import Names
from .scores import METHODS, Truth, fitting_factor, pictures_of
from .writers import telling

WIDTH, TITLE, GAP, TEXT = 338, 24, 6, 13  # of a picture, its title and what parts two, pixels; of letters
ROWS = 6  # slices that are shown at most, spread over the scan
PLANES = 3  # of a volume


class Preview:
    """A writer of the picture. n_slices: how many are to come."""

    def __init__(self, path: Path, header: Header, truth: Truth, names: Names, n_slices: int):
        self.path, self.header, self.truth, self.names = path, header, truth, names
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
        truth = self.truth.of(item.key)
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
            self.titles.append(f"{self.names.image(item.key)}{fallback}: ")
            return
        grid = self._grid(images)
        for name in ORIENTATIONS:
            turned = {column: grid.resliced(image, name) for column, image in pictures.items()}
            self.rows.append({column: image[len(image) // 2] for column, (_, image) in turned.items()})
            _, down, across = turned["DPM"][0].spacing_mm
            self.aspects.append(down / across)
            self.titles.append(f"{self.names.image(item.key, name)}{fallback}: ")

    def _grid(self, images: list[ismrmrd.Image]) -> Grid:
        """Of a volume; where its header's directions say nothing, as if they were the patient's."""
        try:
            return grid_of_mrd(images[0].getHead(), images[0].data.shape)
        except (BadInputError, IndexError):
            view = reversed(view_mm(self.header))
            depth, height, width = (size / count for size, count in zip(view, recon_shape(self.header)))
            return Grid(np.zeros(3), np.eye(3)[::-1], (depth, height, width))

    def close(self, failure: BaseException | None) -> None:
        if not self.rows:
            return
        with telling(self.path.parent, "make room or choose another --out"):
            write_preview(self.path, self.rows, self.titles, self.aspects)


def write_preview(
    path: Path | BytesIO, rows: list[dict[str, np.ndarray]], titles: list[str], aspects: list[float]
) -> None:
    """rows: per slice, title of the column -> magnitude (rows, cols), left black where a row has none; columns named
    'error ...' show the error five times brighter than the images. titles, aspects: one a row, of a pixel its height
    over its width."""
    from PIL import Image, ImageDraw, ImageFont  # a tenth of what matplotlib takes to start, and as well kept

    font = ImageFont.load_default(TEXT)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    heights = [round(aspect * WIDTH * row["DPM"].shape[0] / row["DPM"].shape[1]) + TITLE
               for aspect, row in zip(aspects, rows)]  # fmt: skip
    page = Image.new("RGB", (len(columns) * (WIDTH + GAP) - GAP, sum(heights)))
    write, top = ImageDraw.Draw(page), 0
    for height, images, title in zip(heights, rows, titles):
        bright = float(np.percentile(images["DPM"], 99.7)) or 1.0
        for number, column in enumerate(columns):
            if column not in images:
                continue
            left = number * (WIDTH + GAP)
            picture = Image.fromarray(coloured(images[column], bright, column.startswith("error")))
            page.paste(picture.resize((WIDTH, max(1, height - TITLE)), Image.Resampling.BOX), (left, top + TITLE))
            text = column if number else f"{title}{column}"
            write.text((left + WIDTH // 2, top + TITLE // 2), text, "white", font, anchor="mm")
        top += height
    page.save(path, "PNG")


def coloured(image: np.ndarray, bright: float, error: bool) -> np.ndarray:
    """(rows, cols, 3) uint8: grey up to `bright`; errors five times brighter, from black over red and yellow."""
    level = np.nan_to_num(image)[..., None] / bright
    shades = 15 * level - np.arange(3) if error else level.repeat(3, -1)
    return np.rint(255 * shades.clip(0, 1)).astype(np.uint8)
