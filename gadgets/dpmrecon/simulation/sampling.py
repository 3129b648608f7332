"""Which lines of a 3D scan are acquired: patterns in the plane of partitions and rows."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pattern:
    """Patterns on a plane whose centre is index n//2; each is (partitions, rows) bool and holds the centre.

    shape: (partitions, rows); factors: undersampling of each; skipped: the first ones, which partial Fourier leaves
    out; elliptical: what lies outside the ellipse of the plane is left out.
    """

    shape: tuple[int, int]
    factors: tuple[int, int]
    skipped: tuple[int, int]
    elliptical: bool

    def _radius(self) -> np.ndarray:
        """Distance from the centre, 1 on the ellipse."""
        partition, row = (2 * (np.arange(size) - size // 2) / size for size in self.shape)
        return np.hypot(partition[:, None], row)

    def _allowed(self) -> np.ndarray:
        allowed = np.zeros(self.shape, bool)
        allowed[self.skipped[0] :, self.skipped[1] :] = True
        return allowed & (self._radius() <= 1) if self.elliptical else allowed

    def regular(self, shift: int = 0) -> np.ndarray:
        """Every factors-th line; shift: partitions by which the next row's move (CAIPIRINHA, Breuer et al., MRM
        2006)."""
        partition, row = (np.arange(size) - size // 2 for size in self.shape)
        moved = partition[:, None] - shift * (row // self.factors[1])
        return (moved % self.factors[0] == 0) & (row % self.factors[1] == 0) & self._allowed()

    def _count(self) -> int:
        return max(1, round(self._allowed().sum() / (self.factors[0] * self.factors[1])))

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """As many lines as the factors leave, drawn with a density that falls with the square of the distance from
        the edge."""
        allowed = self._allowed()
        density = np.where(allowed, (1.05 - self._radius().clip(0, 1)) ** 2, 0)
        density[self.shape[0] // 2, self.shape[1] // 2] = np.inf
        # the largest of log density + Gumbel noise: a weighted draw without replacement
        with np.errstate(divide="ignore"):
            score = np.log(density) + rng.gumbel(size=self.shape)
        chosen = np.zeros(self.shape, bool)
        chosen.flat[np.argsort(score, axis=None)[-self._count() :]] = True
        return chosen

    def poisson(self, rng: np.random.Generator) -> np.ndarray:
        """A Poisson disc of variable density: no two lines nearer than a distance that grows from the centre; the
        distance is set so that as many lines are left as the factors say, within 2 %."""
        allowed = self._allowed()
        centre = np.ravel_multi_index((self.shape[0] // 2, self.shape[1] // 2), self.shape)
        order = rng.permutation(np.flatnonzero(allowed))
        order = np.concatenate([[centre], order[order != centre]])
        low, high = 0.0, 4.0 * max(self.factors)
        chosen = allowed
        for _ in range(16):
            scale = (low + high) / 2
            chosen = self._disc(order, scale)
            excess = chosen.sum() - self._count()
            if abs(excess) <= 0.02 * self._count():
                break
            low, high = (scale, high) if excess > 0 else (low, scale)
        return chosen

    def _disc(self, order: np.ndarray, scale: float) -> np.ndarray:
        """Darts in a given order; each keeps a disc of `scale` (.5 + distance from the centre) lines free."""
        reach = scale * (0.5 + self._radius())
        free, chosen = np.ones(self.shape, bool), np.zeros(self.shape, bool)
        for place in order:
            partition, row = divmod(int(place), self.shape[1])
            if not free[partition, row]:
                continue
            chosen[partition, row] = True
            radius = reach[partition, row]
            whole = int(radius)
            first, start = max(partition - whole, 0), max(row - whole, 0)
            window = free[first : partition + whole + 1, start : row + whole + 1]
            away = np.hypot(
                np.arange(first, first + window.shape[0])[:, None] - partition,
                np.arange(start, start + window.shape[1]) - row,
            )
            window &= away >= radius
        return chosen
