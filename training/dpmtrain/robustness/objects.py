"""Objects far from heads, as magnitudes (rows, cols) float32, 0 to about 1, beside those of `gate_cases.py`."""

import math

import numpy as np
import torch

from .gate_cases import Paint, fruit, grid, knee, placed


def bars(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A disc with groups of bright and dark bars, 1 to 6 pixels wide, along rows and columns."""
    rows, cols = image.shape
    down, along = grid(image)
    found = 0.5 * (torch.hypot(down, along) < 0.85).float()
    left, high = round(float(rng.uniform(0.2, 0.28)) * cols), round(0.09 * rows)
    for number, width in enumerate((1, 2, 3, 4, 6)):
        top = round(rows * (0.22 + 0.12 * number))
        for bar in range(5):
            first = left + 2 * bar * width
            found[top : top + high, first : first + width] = 1.0
            first = top + 2 * bar * width
            if first + width <= top + high:
                found[first : first + width, left + cols // 3 : left + cols // 2] = 0.1
    return found


def letters(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A part of a printed page, as a bright sheet."""
    from skimage.data import page

    printed = page().astype(np.float32) / 255
    side = min(printed.shape) - 1
    top, left = (int(rng.integers(0, extent - side)) for extent in printed.shape)
    return placed(printed[top : top + side, left : left + side], image, rng)


def abdomen(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Fat, liver with vessels, spleen, kidneys, spine, great vessels and loops of bowel."""
    down, along = grid(image)

    def ellipse(place: tuple[float, float], radii: tuple[float, float], turn: float = 0.0) -> torch.Tensor:
        y, x = down - place[0], along - place[1]
        across, up = math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x
        return ((1 - torch.hypot(across / radii[0], up / radii[1])) * min(radii) * 60 + 0.5).clamp(0, 1)

    found = 0.95 * ellipse((0, 0), (0.92, 0.68))
    organs = [((0.0, 0.0), (0.82, 0.58), 0.0, 0.35), ((-0.08, -0.4), (0.38, 0.36), 0.3, 0.55)]
    organs += [((-0.1, 0.45), (0.22, 0.28), 0.0, 0.7), ((0.15, 0.55), (0.15, 0.2), 0.0, 0.8)]
    for side in (-0.3, 0.32):
        organs += [((0.28, side), (0.11, 0.16), 0.3, 0.75), ((0.28, side + 0.02), (0.05, 0.09), 0.3, 0.95)]
    organs += [((0.38, 0.0), (0.14, 0.13), 0.0, 0.5), ((0.2, -0.02), (0.06, 0.06), 0.0, 0.05)]
    for _ in range(30):  # bowel
        place, radii = _pair(rng, (-0.35, 0.1), (-0.1, 0.35)), _pair(rng, (0.03, 0.09), (0.03, 0.09))
        organs.append((place, radii, rng.uniform(0, 3), rng.uniform(0.1, 1)))
    for _ in range(25):  # vessels of the liver
        far, around = 0.3 * math.sqrt(rng.uniform()), rng.uniform(0, 2 * math.pi)
        place = (-0.08 + far * math.sin(around), -0.4 + far * math.cos(around))
        organs.append((place, (0.015, 0.03), rng.uniform(0, 3), 0.85))
    for where, radii, turn, level in organs:
        inside = ellipse(where, radii, turn)
        found = found * (1 - inside) + level * inside
    return found


def _pair(rng: np.random.Generator, first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """A number from each range."""
    return float(rng.uniform(*first)), float(rng.uniform(*second))


OBJECTS: dict[str, Paint] = {"knee": knee, "fruit": fruit, "bars": bars, "abdomen": abdomen, "letters": letters}
