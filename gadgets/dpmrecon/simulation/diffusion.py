"""The head as diffusion sees it: fibres of white matter, the infarct, and emboli."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .phantom import TISSUES, Phantom, SmoothNoise, tissue_diffusion

# along and across white matter's fibres, 1e-3 mm^2/s; the mean is the tissue's
ALONG, ACROSS = 1.25, 0.50
# points within a cell around 0, for an embolus that fills a part
_WITHIN = np.array(list(itertools.product((np.arange(6) + 0.5) / 6 - 0.5, repeat=3)))
_BRAIN = ("white", "grey", "deep_grey", "gliosis")


@dataclass(frozen=True)
class Embolus:
    """A ball of infarcted tissue. place: (x, y, z) LPS mm; index: of the slice that it was put into."""

    place: tuple[float, float, float]
    diameter_mm: float
    index: int


class DiffusionHead(Phantom):
    """A head with `emboli`, whose white matter has fibres."""

    def __init__(
        self, seed: int = 0, lesion_side: str = "left", marker: tuple[float, float, float] | None = None
    ) -> None:
        super().__init__(seed, lesion_side, marker)
        rng = np.random.default_rng([seed, 27])
        self._course = [SmoothNoise(rng, 12, 90.0, 0.3) for _ in range(3)]
        self.emboli: list[Embolus] = []

    def signals(
        self, points: np.ndarray, weightings: list[tuple[float, tuple[float, float, float]]], cell: np.ndarray
    ) -> np.ndarray:
        """Magnitude (len(weightings), ...) float32 at points (..., 3) in LPS mm for each (b-value in s/mm^2, unit
        vector along the gradient or zeros); cell: (3, 3) edges in mm, a row each, of a point's cell.
        """
        flat = np.ascontiguousarray(points.reshape(-1, 3).T, np.float32)
        signal = np.zeros((len(weightings), flat.shape[1]), np.float32)
        levels = [self.levels("dwi", b) for b, _ in weightings]
        for places, near in self.blocks(flat):
            fractions, texture = self.fractions_in(near, cell), self.texture(near)
            fibres = self.fibres(near)
            for number, (b, direction) in enumerate(weightings):
                white = levels[number][_WHITE] * fractions[_WHITE]
                others = levels[number] @ fractions - white
                turned = np.exp(-b * 1e-3 * _anisotropy(fibres, direction))
                signal[number, places] = (others + white * turned) * texture
        signal += self.marker_signal(flat)
        return signal.reshape(-1, *points.shape[:-1])

    def fractions_in(self, points: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Tissue fractions (len(TISSUES), n) float32 with the emboli, at points (3, n); cell: as of `signals`."""
        fractions = self.fractions(points)
        for embolus in self.emboli:
            filled = self.filled_by(embolus, points, cell)
            if filled is None:
                continue
            for tissue in _BRAIN:
                taken = fractions[TISSUES.index(tissue)] * filled
                fractions[TISSUES.index(tissue)] -= taken
                fractions[TISSUES.index("lesion")] += taken
        return fractions

    def filled_by(self, embolus: Embolus, points: np.ndarray, cell: np.ndarray) -> np.ndarray | None:
        """Part (n,) float32 of the cell at each point (3, n) that an embolus fills, None where it fills none; cell: as
        of `signals`."""
        place = np.array(embolus.place, np.float32)
        radius = embolus.diameter_mm / 2
        reach = radius + np.linalg.norm(cell, axis=1).sum() / 2
        # most are in other slices
        if not points.size or (points.min(1) > place + reach).any() or (points.max(1) < place - reach).any():
            return None
        offset = points - place[:, None]
        near = np.flatnonzero((offset**2).sum(0) < reach**2)
        parts = offset[:, near, None] + (_WITHIN @ cell).astype(np.float32).T[:, None]
        filled = np.zeros(points.shape[1], np.float32)
        filled[near] = ((parts**2).sum(0) < radius**2).mean(-1)
        return filled

    def fibres(self, points: np.ndarray) -> np.ndarray:
        """Unit vectors (3, n) along the fibres of white matter at points (3, n)."""
        course = np.stack([wave(points) for wave in self._course])
        return course / np.linalg.norm(course, axis=0).clip(1e-6)

    def put_emboli(self, centres: Iterable[tuple[int, np.ndarray]], plane: np.ndarray, count: int, seed: int) -> None:
        """Put `count` emboli of 1, 2, 3 and 4 mm diameter into each slice, in brain, apart from each other and from
        the infarct and the ventricles by a centimetre; fewer where there is no room.

        centres: (index, centre (3,) LPS mm) of each slice; plane: (2, 3) unit vectors that span them.
        """
        around = 7.0 * np.array([(np.cos(turn), np.sin(turn)) for turn in np.arange(8) * np.pi / 4]) @ plane
        for index, centre in centres:
            rng = np.random.default_rng([seed, 29, index])
            candidates = centre + rng.uniform(-80, 80, (300, 2)) @ plane
            ring = np.concatenate([candidates[:, None], candidates[:, None] + around], 1)
            fractions = self.fractions(ring.reshape(-1, 3).T).reshape(len(TISSUES), len(candidates), -1)
            brain = sum(fractions[TISSUES.index(tissue)] for tissue in _BRAIN)
            free = (brain.mean(1) > 0.85) & (brain[:, 0] > 0.98)
            free &= fractions[TISSUES.index("lesion")].max(1) < 0.01
            chosen: list[np.ndarray] = []
            for place in candidates[free]:
                if len(chosen) < count and all(np.linalg.norm(place - other) > 10 for other in chosen):
                    x, y, z = map(float, place)
                    self.emboli.append(Embolus((x, y, z), 1.0 + len(chosen) % 4, index))
                    chosen.append(place)


def mean_diffusion() -> np.ndarray:
    """Mean ADC (len(TISSUES),) of each tissue in 1e-3 mm^2/s."""
    return np.array([tissue_diffusion(name) for name in TISSUES])


_WHITE = TISSUES.index("white")


def _anisotropy(fibres: np.ndarray, direction: tuple[float, float, float]) -> np.ndarray | float:
    """ADC (n,) of white matter along a direction less the mean one, 1e-3 mm^2/s; 0 for a trace-weighted image."""
    if not any(direction):
        return 0.0
    along = (np.array(direction, np.float32) @ fibres) ** 2
    return (ALONG - ACROSS) * (along - np.float32(1 / 3))
