"""The head as a gradient echo sees it: magnetic susceptibility, the field that it makes, veins and a microbleed.

Sign: a spin that turns f Hz too fast has the phase -2 pi f t, as in a right-handed system (Haacke et al., MRM 2004): a
vein along B0, being paramagnetic, is dark in the phase image. Files of vendors whose k-space is conjugated
(mrd/receiving.py) hold the conjugate. They give the same phase once that is undone. B0 points to the patient's head.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .phantom import TISSUES, Phantom, ellipsoid, gradient_echo, length, mirror, pallidum, soft

if TYPE_CHECKING:
    import torch

HZ_PER_PPM = 127.731  # of protons at 3 T
_WATER = -9.4  # susceptibility of tissue less that of air, ppm (Schenck, Medical Physics 1996)
_OTHER = {"bone": -2.0, "fat": 0.6}  # less that of water, ppm
VEIN_PPM = 0.45  # of venous blood, 60 % oxygenated, less tissue's, ppm (Weisskoff and Kiihne 1992)
BLEED_PPM = 2.5  # of haemosiderin in a microbleed, ppm
# iron: susceptibility in ppm, transverse relaxation 1/s beside the tissue's own
_IRON = {"pallidum": (0.18, 22.0), "red nucleus": (0.13, 15.0), "substantia nigra": (0.16, 18.0)}
_BLOOD = (0.80, 1600.0, 25.0)  # proton density, T1 and T2* in ms, of venous blood

_SPACING = 2.5  # mm, of the grid of the background field
_CORNER, _SIZE = np.array([-110.0, -140.0, -150.0]), (90, 104, 100)  # mm; points along x, y and z
_REACH = 5.0  # mm around a vein's axis where its own field counts


@dataclass(frozen=True)
class Vein:
    """A curved tube. course: (n, 3) points of its axis, LPS mm, less than 1 mm apart; radius: in mm."""

    course: np.ndarray
    radius: float


class GradientEchoHead(Phantom):
    """A head with its veins, `veins`, and one microbleed: a ball at `bleed` (3,) LPS mm of radius `bleed_radius` mm."""

    def __init__(self, seed: int = 0, lesion_side: str = "left", marker: tuple[float, float, float] | None = None):
        super().__init__(seed, lesion_side, marker)
        rng = np.random.default_rng([seed, 26])
        self.veins = _veins(rng)
        self.bleed = np.array([-31.0 if lesion_side == "left" else 31.0, 22.0, 31.0]) + rng.uniform(-3, 3, 3)
        self.bleed_radius = float(rng.uniform(1.1, 1.5))
        self._tubes = Tubes(self.veins)
        self._subject = seed, lesion_side

    def signal(self, points: np.ndarray, te: float, cell: np.ndarray) -> np.ndarray:
        """Complex signal (...) complex64 at points (..., 3) in LPS mm, `te` ms after excitation.

        cell: (3, 3) edges in mm, a row each, of a point's cell: the phase that the background and the microbleed spread
        over it weakens its signal.
        """
        shape = points.shape[:-1]
        points = points.reshape(-1, 3)
        magnitude = self.magnitude(points, "swi", te)
        inside = np.flatnonzero(magnitude)
        p = np.ascontiguousarray(points[inside], np.float32)
        value, gradient = _at(_background(*self._subject), p)
        own, own_gradient = ball_field(p - self.bleed.astype(np.float32), self.bleed_radius)
        vein, tube = self._tubes(p)
        turns = te * 1e-3 * HZ_PER_PPM
        weight = np.ones(len(p), np.float32)
        for edge in np.asarray(cell, np.float32):
            weight *= np.sinc(turns * ((gradient + own_gradient) @ edge))
        here = magnitude[inside] * np.exp(-te * 1e-3 * self._iron(p.T))
        here += vein * (gradient_echo(*_BLOOD, te) - here)
        here *= 1 - soft(length((p - self.bleed.astype(np.float32)).T) - self.bleed_radius)
        signal = np.zeros(len(points), np.complex64)
        signal[inside] = weight * here * np.exp(-2j * np.pi * turns * (value + own + tube))
        return signal.reshape(shape)

    def vein_fraction(self, points: np.ndarray) -> np.ndarray:
        """Share (...), 0 to 1, of vein at points (..., 3) in LPS mm."""
        return self._tubes(np.ascontiguousarray(points.reshape(-1, 3), np.float32))[0].reshape(points.shape[:-1])

    def _iron(self, points: np.ndarray) -> np.ndarray:
        """Relaxation 1/s (n,) by iron at points (3, n)."""
        rates = np.array([rate for _, rate in _IRON.values()], np.float32)
        return rates @ np.stack(_nuclei(points / self.size))


def _nuclei(p: np.ndarray) -> list[np.ndarray]:
    """Parts of 0 to 1 of points (3, n) of the standard head that lie in the nuclei of _IRON, in its order."""
    mirrored = mirror(p)
    red = ellipsoid(mirrored, (4.6, 14, -8), (3.0, 3.2, 4.0))
    nigra = ellipsoid(mirrored, (7.4, 8.6, -11), (4.4, 1.7, 4.5), turn=0.5)
    return [soft(shape, 0.5) for shape in (pallidum(mirrored), red, nigra)]


@functools.lru_cache(maxsize=2)
def _background(seed: int, lesion_side: str) -> "torch.Tensor":
    """Field of air, bone, fat and iron in ppm and its gradient in ppm/mm along x, y and z, on the grid of _CORNER:
    (1, 4, nz, ny, nx) float32. Shimmed: without its second-order polynomial over the brain.
    """
    import torch

    phantom = Phantom(seed, lesion_side)
    axes = [_CORNER[axis] + _SPACING * np.arange(_SIZE[axis]) for axis in range(3)]
    grid = np.stack(np.meshgrid(*axes[::-1], indexing="ij")[::-1]).astype(np.float32)
    shape = grid.shape[1:]
    map_ppm = np.zeros(shape, np.float32)
    brain = np.zeros(shape, bool)
    for number in range(shape[0]):
        inside = phantom.inside(grid[:, number])
        p = grid[:, number][:, inside]
        tissues = dict(zip(TISSUES, phantom.fractions(p)))
        ppm = _WATER * sum(tissues.values()) + sum(other * tissues[name] for name, other in _OTHER.items())
        for (iron, _), part in zip(_IRON.values(), _nuclei(p / phantom.size)):
            ppm = ppm + iron * part
        map_ppm[number][inside] = ppm
        brain[number][inside] = sum(tissues[name] for name in ("white", "grey", "deep_grey")) > 0.5
    brain &= grid[2] > -60  # not the cord

    field = dipole_field(map_ppm)
    x, y, z = (axis / 100 for axis in grid)
    terms = np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, y * z, z * x])
    fit = np.linalg.lstsq(terms[:, brain].T, field[brain], rcond=None)[0]
    field = field - np.tensordot(fit.astype(np.float32), terms, 1)
    gz, gy, gx = np.gradient(field, _SPACING)
    return torch.from_numpy(np.stack([field, gx, gy, gz]).astype(np.float32))[None]


def dipole_field(map_ppm: np.ndarray) -> np.ndarray:
    """Field along z in ppm of a susceptibility (nz, ny, nx) float32 in ppm on a grid of cubes, but for a constant.

    The convolution with a dipole's field by way of k-space, 1/3 - kz^2/k^2 (Salomir et al., Concepts in MR 2003), on a
    grid twice as long in each direction.
    """
    import torch

    double = [2 * size for size in map_ppm.shape]
    kz, ky, kx = (np.fft.fftfreq(size).astype(np.float32) for size in double)
    kx = kx[: double[2] // 2 + 1]
    square = kz[:, None, None] ** 2 + ky[:, None] ** 2 + kx**2
    square[0, 0, 0] = 1
    kernel = 1 / 3 - kz[:, None, None] ** 2 / square
    kernel[0, 0, 0] = 0
    spectrum = torch.fft.rfftn(torch.from_numpy(map_ppm), double) * torch.from_numpy(kernel)
    depth, rows, cols = map_ppm.shape
    return torch.fft.irfftn(spectrum, double)[:depth, :rows, :cols].numpy()


def _at(field: "torch.Tensor", points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value (n,) and gradient (n, 3) of `_background` at points (n, 3), between the grid's by linear interpolation."""
    import torch

    place = (points - _CORNER.astype(np.float32)) / (_SPACING * (np.array(_SIZE, np.float32) - 1) / 2) - 1
    samples = torch.nn.functional.grid_sample(
        field, torch.from_numpy(place)[None, None, None], padding_mode="border", align_corners=True
    )
    values = samples.reshape(4, -1).numpy()
    return values[0], values[1:].T


def ball_field(offset: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Field (n,) in ppm of the microbleed outside it and its gradient (n, 3) in ppm/mm, 0 inside; offset: (n, 3) mm
    from its middle."""
    z = offset[:, 2]
    square = (offset**2).sum(1).clip(radius**2)
    outside = square > radius**2
    strength = np.where(outside, np.float32(BLEED_PPM / 3 * radius**3), 0)
    field = strength * (3 * z * z - square) * square**-2.5
    # of 3 z^2 r^-5 - r^-3
    gradient = (strength * (3 * square - 15 * z * z) * square**-3.5)[:, None] * offset
    gradient[:, 2] += strength * 6 * z * square**-2.5
    return field, gradient


class Tubes:
    """Looks up the nearest point of the veins' axes: for each cell of 1 mm within reach of one, which it is."""

    def __init__(self, veins: list[Vein]) -> None:
        self.course = np.concatenate([vein.course for vein in veins]).astype(np.float32)
        along = [np.gradient(vein.course, axis=0) for vein in veins]
        self.along = np.concatenate(along).astype(np.float32)
        self.along /= np.linalg.norm(self.along, axis=1, keepdims=True)
        self.radius = np.concatenate([np.full(len(vein.course), vein.radius, np.float32) for vein in veins])
        whole = int(np.ceil(_REACH)) + 1
        self.corner = np.floor(self.course.min(0)).astype(int) - whole
        shape = np.ceil(self.course.max(0)).astype(int) + whole + 1 - self.corner
        self.nearest = np.full(shape, -1, np.int32)
        distance = np.full(shape, (_REACH + 1) ** 2, np.float32)
        steps = np.arange(-whole, whole + 1)
        for number, place in enumerate(self.course - self.corner):
            cell = np.round(place).astype(int)
            box = tuple(slice(middle - whole, middle + whole + 1) for middle in cell)
            x, y, z = ((steps + middle - at) ** 2 for middle, at in zip(cell, place))
            square = x[:, None, None] + y[:, None] + z
            nearer = square < distance[box]
            distance[box][nearer] = square[nearer]
            self.nearest[box][nearer] = number

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Part of 0 to 1 that is vein and the nearest vein's field in ppm, (n,) each, at points (n, 3) in LPS mm.

        The field is that of a long straight cylinder: inside f/2 (cos^2 t - 1/3), outside f/2 sin^2 t cos 2u (a/r)^2.
        """
        part, field = np.zeros((2, len(points)), np.float32)
        cell = np.round(points).astype(int) - self.corner
        within = np.flatnonzero(((cell >= 0) & (cell < self.nearest.shape)).all(1))
        number = self.nearest[tuple(cell[within].T)]
        within, number = within[number >= 0], number[number >= 0]
        offset = points[within] - self.course[number]
        axis, radius = self.along[number], self.radius[number]
        ahead = (offset * axis).sum(1)
        offset -= ahead[:, None] * axis
        away = np.linalg.norm(offset, axis=1)
        # cells of 1 mm: what is further along is beyond the vein
        ends = soft(np.abs(ahead) - 2.0, 0.25)
        part[within] = soft(away - radius, 0.1) * ends
        cosine = axis[:, 2]
        inside = cosine**2 - 1 / 3
        up = offset[:, 2] / away.clip(1e-6)
        outside = (2 * up**2 - (1 - cosine**2)) * (radius / away.clip(1e-6)) ** 2
        window = (1 - (away / _REACH) ** 2).clip(0) ** 2 * ends
        field[within] = VEIN_PPM / 2 * window * np.where(away < radius, inside, outside)
        return part, field


def _veins(rng: np.random.Generator) -> list[Vein]:
    """Medullary, subependymal, internal cerebral and cortical veins of the standard head."""
    found: list[Vein] = []

    def add(radius: float, *controls) -> None:
        """A Bezier curve of three points, each moved at random by about 1.5 mm."""
        first, middle, last = (np.array(point, float) + rng.normal(0, 1.5, 3) for point in controls)
        count = int(2.5 * (np.linalg.norm(middle - first) + np.linalg.norm(last - middle))) + 2
        t = np.linspace(0, 1, count)[:, None]
        found.append(Vein((1 - t) ** 2 * first + 2 * t * (1 - t) * middle + t**2 * last, radius))

    for side in (-1.0, 1.0):
        for y in np.linspace(-34, 44, 11):
            start = 12 + 0.1 * (y + 30), y, 26.0
            for up in (0.2, 1.0):  # towards the side, and upwards
                end = np.array([start[0] + 24 - 10 * up, 1.25 * y, 33 + 22 * up])
                middle = (np.array(start) + end) / 2 + [0, 0, 5 - 8 * up]
                add(rng.uniform(0.4, 0.6), [side * start[0], y, 26.0], middle * [side, 1, 1], end * [side, 1, 1])
        add(0.9, (side * 6, -30, 16), (side * 16, -8, 24), (side * 17, 22, 26))  # along the ventricle
        add(1.1, (side * 3, -8, 13), (side * 3.5, 12, 18), (side * 2.5, 34, 12))  # internal cerebral
        add(0.8, (side * 5, -10, 15), (side * 16, -4, 17), (side * 19, 12, 20))  # thalamostriate
        for y in (*np.linspace(-62, 70, 9),):  # cortical, towards the sagittal sinus
            height = 72.0 * np.sqrt(max(1 - ((y - 2) / 88) ** 2, 0.1))
            half = 66.0 * np.sqrt(max(1 - ((y - 2) / 88) ** 2, 0.1))
            low = [side * 0.97 * half, y + 8, 0.42 * height]
            high = [side * 5.0, y - 6, 0.99 * height]
            add(rng.uniform(0.8, 1.5), low, [side * 0.8 * half, y, 1.0 * height], high)
    return found
