"""A procedural head: points in patient coordinates -> tissue fractions -> magnitude of a contrast.

Coordinates are LPS in mm (x to the patient's left, y to the back, z to the head), with the origin between the thalami.
Nothing is symmetric, so that a flipped image shows: the face and the eyes are in front; the front of the brain is
narrower; the acute infarct lies in the **left** hemisphere (x > 0) unless `lesion_side` says "right". Anatomy is built
of signed distances (mm, negative inside), painted front to back.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

TISSUES = ("white", "grey", "deep_grey", "csf", "fat", "muscle", "marrow", "bone", "lesion", "gliosis")

# Proton density, T1 ms, T2 ms at 3 T, apparent diffusion coefficient in 1e-3 mm^2/s; rounded from the usual tables
# (Wansapura 1999, Stanisz 2005, Gelman 1999 for relaxation; Le Bihan 2001, Warach 1992 for diffusion).
_PROPERTIES = {
    "white": (0.70, 850.0, 70.0, 0.75),
    "grey": (0.82, 1400.0, 95.0, 0.85),
    "deep_grey": (0.80, 1200.0, 78.0, 0.80),
    "csf": (1.00, 4200.0, 1800.0, 3.0),
    "fat": (0.70, 380.0, 80.0, 0.1),
    "muscle": (0.75, 1300.0, 42.0, 1.3),
    "marrow": (0.35, 500.0, 60.0, 0.3),
    "bone": (0.05, 600.0, 12.0, 0.3),
    "lesion": (0.86, 1480.0, 125.0, 0.42),
    "gliosis": (0.80, 1250.0, 118.0, 1.0),
}

# T2* in ms at 3 T, rounded from Peters et al. (MRI 2007) or guessed
_T2_STAR = {
    "white": 53.0,
    "grey": 66.0,
    "deep_grey": 45.0,
    "csf": 500.0,
    "fat": 30.0,
    "muscle": 28.0,
    "marrow": 10.0,
    "bone": 2.0,
    "lesion": 66.0,
    "gliosis": 72.0,
}

_CHUNK = 16384  # points at a time: temporaries stay in the cache


@dataclass(frozen=True)
class Contrast:
    """Sequence parameters (ms, degrees) and the protocol name that a scanner would send."""

    protocol: str
    tr: float
    te: float
    ti: float | None
    flip_angle: float


CONTRASTS = {
    "flair": Contrast("T2_FLAIR", 9000.0, 90.0, 2500.0, 150.0),
    "t1": Contrast("T1_MPRAGE", 2300.0, 3.0, 950.0, 9.0),
    "t2": Contrast("T2_TSE", 5000.0, 100.0, None, 150.0),
    "dwi": Contrast("DWI", 6000.0, 80.0, None, 90.0),
    "swi": Contrast("SWI", 28.0, 20.0, None, 15.0),
}


def tissue_signal(tissue: str, contrast: str, weighting: float = 0.0) -> float:
    """Magnitude by the signal equation of the sequence; `weighting` is the b-value in s/mm^2 of dwi, the echo time in
    ms of swi, and nothing to the others."""
    density, t1, t2, diffusion = _PROPERTIES[tissue]
    sequence = CONTRASTS[contrast]
    if contrast == "swi":
        return gradient_echo(density, t1, _T2_STAR[tissue], weighting)
    signal = density * np.exp(-sequence.te / t2)
    if contrast == "dwi":
        signal *= (1 - np.exp(-sequence.tr / t1)) * np.exp(-weighting * diffusion * 1e-3)
        return float(signal * (0.08 if tissue in ("fat", "marrow") else 1.0))  # fat is suppressed
    if sequence.ti is None:
        return float(signal * (1 - np.exp(-sequence.tr / t1)))
    inverted = 1 - 2 * np.exp(-sequence.ti / t1) + np.exp(-sequence.tr / t1)
    return float(signal * abs(inverted))


def tissue_diffusion(tissue: str) -> float:
    """Mean ADC in 1e-3 mm^2/s."""
    return _PROPERTIES[tissue][3]


def gradient_echo(density: float, t1: float, t2_star: float, te: float) -> float:
    """Magnitude of the spoiled gradient echo of swi after `te` ms, times 5 to be of order 1 as others are."""
    sequence = CONTRASTS["swi"]
    angle, recovery = np.deg2rad(sequence.flip_angle), np.exp(-sequence.tr / t1)
    steady = np.sin(angle) * (1 - recovery) / (1 - np.cos(angle) * recovery)
    return float(5 * density * steady * np.exp(-te / t2_star))


class Phantom:
    """One subject, the same for the same seed: head size, folds, ventricles and lesion vary with it.

    marker: (x, y, z) mm of a fiducial capsule, a bright ball of 3 mm radius, or None.
    """

    def __init__(
        self, seed: int = 0, lesion_side: str = "left", marker: tuple[float, float, float] | None = None
    ) -> None:
        rng = np.random.default_rng([seed, 20])
        self.marker = marker
        self.size = rng.normal(1.0, 0.02, (3, 1)).clip(0.95, 1.05).astype(np.float32)
        self.ventricle = float(rng.uniform(-1.0, 1.6))  # mm added to the radius of the ventricles
        self.sulcus = float(rng.uniform(0.1, 0.6))  # mm added to the half width of the sulci
        self.folds = SmoothNoise(rng, 32, 16.5, 0.2)
        self.depth = SmoothNoise(rng, 10, 40.0, 0.3)
        self.warp = [SmoothNoise(rng, 10, 36.0, 0.3) for _ in range(3)]
        self.fine = SmoothNoise(rng, 28, 7.0, 0.5)
        self.coarse = SmoothNoise(rng, 8, 45.0, 0.3)
        side = 1.0 if lesion_side == "left" else -1.0
        centre = np.array([44.0, 4.0, 20.0]) + rng.uniform(-1, 1, 3) * [5, 9, 7]
        self.lesion = (centre * [side, 1, 1], rng.uniform(0.8, 1.15) * np.array([14.0, 19.0, 15.0]))
        angle = rng.uniform(0, 2 * np.pi, 9)
        spots = np.stack([22 + 9 * np.cos(angle), 8 + 32 * np.sin(angle), rng.uniform(14, 36, 9)], -1)
        spots[:, 0] *= rng.choice([-1.0, 1.0], 9)
        self.spots = [(spot.astype(np.float32), float(rng.uniform(1.2, 2.8))) for spot in spots]
        self.gain = {name: rng.normal(1.0, 0.02) for name in TISSUES}

    def magnitude(self, points: np.ndarray, contrast: str, weighting: float = 0.0) -> np.ndarray:
        """Signal at points (..., 3) in LPS mm -> (...) float32, of order 1 and not negative; weighting: as
        `tissue_signal` has it."""
        shape = points.shape[:-1]
        points = np.ascontiguousarray(points.reshape(-1, 3).T, np.float32)
        signal = np.zeros(points.shape[1], np.float32)
        levels = self.levels(contrast, weighting)
        for places, near in self.blocks(points):
            signal[places] = (levels @ self.fractions(near)) * self.texture(near)
        signal += self.marker_signal(points)
        return signal.reshape(shape)

    def levels(self, contrast: str, weighting: float) -> np.ndarray:
        """Signal (len(TISSUES),) float32 of each tissue in this subject."""
        return np.array([tissue_signal(name, contrast, weighting) * self.gain[name] for name in TISSUES], np.float32)

    def blocks(self, points: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Points (3, n) in LPS mm in turn, those in the head alone: (indices (m,), points (3, m))."""
        for start in range(0, points.shape[1], _CHUNK):
            block = points[:, start : start + _CHUNK]
            inside = np.flatnonzero(self.inside(block))
            yield start + inside, np.ascontiguousarray(block[:, inside])

    def texture(self, points: np.ndarray) -> np.ndarray:
        """Factor (n,) by which the signal varies within tissues, at points (3, n) in LPS mm."""
        return (1 + 0.02 * self.fine(points) + 0.03 * self.coarse(points)).clip(0.7, 1.3)

    def marker_signal(self, points: np.ndarray) -> np.ndarray | np.float32:
        """What the fiducial sends from points (3, n) in LPS mm."""
        if self.marker is None:
            return np.float32(0)
        offset = points - np.array(self.marker, np.float32)[:, None]
        return 2 * soft(length(offset) - 3.0)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Whether points (3, ...) in LPS mm lie in the head or within 1 mm of it: (...) bool."""
        flat = points.reshape(3, -1)
        return (self._head(flat / self.size) < 1.0).reshape(points.shape[1:])

    def fractions(self, points: np.ndarray) -> np.ndarray:
        """Tissue fractions (len(TISSUES), n) float32 at points (3, n) in LPS mm; they sum to 1 in the head's solid
        parts and to less at its surface and in the airways."""
        p = np.asarray(points, np.float32) / self.size
        warp = np.stack([wave(p) for wave in self.warp])
        cranium = self._cranium(p)
        inner = np.flatnonzero(cranium < 0.5)
        outer = np.flatnonzero(cranium > -0.5)
        fractions = np.zeros((len(TISSUES), p.shape[1]), np.float32)
        brain = _Paint(soft(cranium[inner]))
        self._paint_brain(brain, p[:, inner], warp[:, inner])
        fractions[:, inner] = brain.fractions
        cover = _Paint(1 - soft(cranium[outer]))
        self._paint_cover(cover, p[:, outer], warp[:, outer], cranium[outer])
        fractions[:, outer] += cover.fractions
        return fractions

    def _cranium(self, p: np.ndarray) -> np.ndarray:
        """Inner surface of the skull."""
        return _smooth_min(_cerebrum(p), ellipsoid(p, (0, 46, -36), (51, 32, 26)), 15.0) - 1.9

    def _head(self, p: np.ndarray) -> np.ndarray:
        head = self._cranium(p) - 13.0
        head = _smooth_min(head, ellipsoid(p, (0, -44, -72), (64, 56, 66)), 20.0)
        head = _smooth_min(head, ellipsoid(p, (0, -103, -62), (13, 17, 24)), 10.0)  # nose
        head = _smooth_min(head, _capsule(p, (0, 18, -70), (0, 30, -190), 56.0), 25.0)
        return _smooth_min(head, ellipsoid(mirror(p), (82, 18, -32), (6, 15, 25)), 5.0)  # ears

    def _paint_brain(self, paint: "_Paint", p: np.ndarray, warp: np.ndarray) -> None:
        x, y, z = p
        mirrored = mirror(p)
        side = mirrored[0]
        ventricles = self._ventricles(p, mirrored, warp)
        paint("csf", soft(ventricles))

        # Cerebellum and brainstem
        stem = _smooth_min(_capsule(p, (0, 12, -6), (0, 30, -100), 10.5), ellipsoid(p, (0, 11, -28), (18, 14, 15)), 8.0)
        cerebellum = ellipsoid(p, (0, 46, -36), (50.5, 31.5, 25.5)) + 0.8 * warp[1]
        cerebellum = np.maximum(cerebellum, 5 - np.hypot(side, (y - 80) / 1.6))  # notch between the hemispheres
        course = z * 0.9 + 0.55 * np.hypot(side * 0.7, y - 24) + 1.4 * warp[0]
        folia = np.sin(2 * np.pi / 4.6 * course)
        arms = np.sin(2 * np.pi / 18.4 * course)  # the arbor vitae follows every fourth folium
        below = soft(cerebellum)
        paint("csf", below * soft(-9 - cerebellum) * 0.6 * soft(0.72 - folia, 0.1))
        paint("white", below * soft(cerebellum + 9.5 + 5.0 * arms))
        paint("grey", below * 0.94)
        paint("white", soft(stem) * 0.62)
        paint("deep_grey", soft(stem))
        paint("csf", soft(_capsule(p, (0, 22, -60), (0, 31, -110), 14.0)))

        # Cerebrum: depth below the pia, which follows hull, folds and fissures
        around = np.minimum(cerebellum, stem + 0.9 * (z + 16).clip(0, 40))
        shell = np.maximum(_cerebrum(p), 1.6 - around)
        callosum = _ellipse_2d(y - 4 - 3 * warp[1], z - 8, 43.0, 27.0)
        midline = np.hypot(x + 1.1 * warp[0], (-callosum).clip(0)) - 0.6 - 0.5 * self.sulcus
        midline = midline + 0.8 * (-22 - z).clip(0, 40)
        outer = np.minimum(-shell, midline)
        core = -np.minimum(ellipsoid(p, (0, 4, 8), (27, 43, 27)), ellipsoid(p, (0, 8, -12), (26, 26, 16)))
        folds = self._folds(p, warp, outer, core)
        pia = _smooth_min(_smooth_min(outer, folds, 3.0), self._sylvian(mirrored, warp), 3.0)
        inside = soft(shell)
        paint("csf", 1 - inside)
        paint("csf", soft(pia))

        # Deep grey matter
        thalamus = ellipsoid(mirrored, (11.5, 14, 6), (8.5, 14, 10), turn=-0.45) + 0.7 * warp[2]
        thin = 5.4 - 0.06 * (y + 19).clip(0, 40)
        caudate = _capsule(mirrored, (14, -20, 9), (21, 12, 25), thin) + 0.7 * warp[1]
        putamen = ellipsoid(mirrored, (26.5, -1, 4), (5.6, 16, 11), turn=-0.2) + 0.7 * warp[0]
        globus = pallidum(mirrored)
        claustrum = np.maximum(np.abs(side - 33.6 - 0.6 * warp[2]) - 0.5, np.hypot(y - 1, z - 4) - 13)
        amygdala = _capsule(mirrored, (22, -8, -21), (28, 22, -14), 6.0)
        paint("deep_grey", soft(np.minimum(caudate, putamen)) * 0.95)
        paint("deep_grey", soft(thalamus) * 0.75)
        paint("deep_grey", soft(globus) * 0.5)
        paint("grey", soft(np.minimum(claustrum, amygdala)))

        # The ribbon, but not where the fissure ends on the corpus callosum
        cortex = soft(pia - 2.8 - 0.45 * warp[2])
        paint("grey", cortex * (1 - soft(side - 6, 0.8) * soft(callosum - 3, 0.8)))
        old = np.full(len(x), 99.0, np.float32)
        for centre, radius in self.spots:
            old = np.minimum(old, length(p - centre[:, None]) - radius)
        caps = 0.5 * np.exp(-ventricles.clip(0, 20) / 2.2) * soft(26 - np.abs(y - 2), 2.0) * soft(-5 - z, 2.0)
        paint("gliosis", np.maximum(soft(old + 0.8 * warp[0], 0.6) * 0.9, caps))
        paint("white", np.ones_like(x))

        # The acute infarct: a ragged wedge of grey and white matter
        centre, radii = self.lesion
        infarct = ellipsoid(p, centre, radii) + 3.2 * warp[0] + 2.6 * warp[1] + 0.9 * self.fine(p)
        paint.replace(("grey", "white", "deep_grey", "gliosis"), "lesion", 0.92 * soft(infarct, 0.8))

    def _folds(self, p: np.ndarray, warp: np.ndarray, outer: np.ndarray, core: np.ndarray) -> np.ndarray:
        """Distance to the walls of the sulci: zero levels of narrow-band noise on the hull, carried inwards to a
        depth that varies, but not into the core (depth in mm) of callosum and brainstem."""
        q = p - np.array([[0], [2], [4]], np.float32)
        radii = np.array([[68], [86], [64]], np.float32)
        stretch = length(q / radii).clip(0.3) ** -0.75
        u = q * stretch + 3.4 * warp
        u[0] += 31.0 * np.sign(p[0])  # the hemispheres fold differently
        value, gradient = self.folds.with_gradient(u)
        normal = q / radii**2
        normal = normal / length(normal).clip(1e-6)
        gradient = gradient - (gradient * normal).sum(0) * normal
        slope = np.sqrt((gradient**2).sum(0) + 0.045**2) * stretch
        deep = 18.5 + 7.0 * self.depth(u).clip(-1.3, 1.3)
        beyond = np.maximum(outer - deep, core + 1.5 * warp[1]).clip(0)
        width = 0.3 + self.sulcus + 0.8 * np.exp(-outer.clip(0) / 4.0)
        return np.hypot(value / slope, beyond) - width

    def _sylvian(self, mirrored: np.ndarray, warp: np.ndarray) -> np.ndarray:
        side, y, z = mirrored
        floor = 0.76 * (z - 2 - 0.8 * (y - 1) + 0.2 * (side - 50)) - 2.4 * warp[1]
        cleft = np.hypot(floor, np.maximum(37 - side, np.maximum(-25 - y, y - 27)).clip(0))
        ends = (np.hypot(y - 1, 1.3 * (z - 3)) - 15).clip(0)
        insula = np.hypot(side - 38.5 - 2.2 * warp[0] + 0.02 * (y - 1) ** 2, ends)
        return np.minimum(cleft - 0.8, insula - 0.7) - 0.6 * self.sulcus

    def _ventricles(self, p: np.ndarray, mirrored: np.ndarray, warp: np.ndarray) -> np.ndarray:
        grow = self.ventricle
        lateral = _capsule(mirrored, (12, -33, 8), (6.5, -8, 18), 3.6 + grow)  # frontal horn
        for start, end, radius in (
            ((6.5, -8, 18), (14, 22, 24), 4.8 + grow),  # body
            ((14, 22, 24), (27, 42, 9), 5.2 + grow),  # atrium
            ((27, 42, 9), (20, 60, 6), 2.6 + 0.6 * grow),  # occipital horn
            ((27, 40, 6), (32, 2, -15), 1.8 + 0.5 * grow),  # temporal horn
        ):
            lateral = _smooth_min(lateral, _capsule(mirrored, start, end, radius), 4.0)
        lateral = np.maximum(lateral + 0.8 * warp[0] + 0.5 * warp[1], 0.9 - mirrored[0])  # septum
        x, y, z = p
        third = np.maximum(np.abs(x) - 1.4 - 0.35 * grow, np.hypot((y - 7) / 1.5, z - 2) - 10)
        fourth = ellipsoid(p, (0, 33, -31), (8, 5, 10))
        cisterns = np.minimum(
            ellipsoid(p, (0, 31, -2), (12, 4, 6)) + warp[1],  # quadrigeminal
            ellipsoid(p, (0, -7, -22), (12, 8, 6)) + 1.5 * warp[0],  # suprasellar
        )
        return np.minimum(np.minimum(lateral, third), np.minimum(fourth, cisterns))

    def _paint_cover(self, paint: "_Paint", p: np.ndarray, warp: np.ndarray, cranium: np.ndarray) -> None:
        """Skull, face and scalp."""
        x, y, z = p
        mirrored = mirror(p)
        side = mirrored[0]
        head = self._head(p)
        paint.keep(soft(head))
        paint("muscle", soft(-head - 1.6))  # skin

        # Skull: two tables of compact bone with marrow between them, thinner at the temples
        thickness = 5.6 + 1.1 * warp[0] - 1.8 * soft(48 - side, 1.0) * soft(z - 20, 1.0)
        calvaria = soft(cranium - thickness) * soft(-22 - z - 0.25 * np.abs(y + 40), 4.0)
        marrow = soft(np.abs(cranium - thickness / 2) - (thickness / 2 - 1.5))
        paint("marrow", calvaria * marrow * (0.75 + 0.25 * warp[1].clip(-1, 1)))
        paint("bone", calvaria)

        eye = length(mirrored - np.array([[32], [-80], [-30]], np.float32)) - 12.2
        lens = ellipsoid(mirrored, (32, -89, -30), (5, 2.4, 5))
        nerve = _capsule(mirrored, (31, -69, -30), (9, -34, -26), 2.2)
        recti = np.minimum(
            _capsule(mirrored, (42, -74, -30), (20, -46, -28), 2.3),
            _capsule(mirrored, (21, -74, -30), (15, -46, -28), 2.0),
        )
        orbit = ellipsoid(mirrored, (30, -72, -30), (20, 28, 19), turn=0.3)
        paint("muscle", soft(lens))
        paint("csf", soft(eye + 1.0))
        paint("muscle", soft(eye))
        paint("white", soft(nerve))
        paint("muscle", soft(recti))
        paint("fat", soft(orbit))
        paint("bone", soft(orbit - 2.5))

        airway = ellipsoid(p, (0, -74, -62), (13, 28, 24))
        septum = np.abs(x - 1 - warp[1]) - 1.5
        airway = np.maximum(airway, -septum)
        for cavity in (
            ellipsoid(mirrored, (27, -66, -62), (12, 14, 13)),  # maxillary
            ellipsoid(p, (0, -66, -32), (9, 20, 10)),  # ethmoid
            ellipsoid(p, (4, -91, -8), (11, 4, 8)),  # frontal, off the midline
            _capsule(p, (0, -30, -60), (0, -25, -150), 9.0),  # pharynx
            np.maximum(ellipsoid(mirrored, (53, 28, -42), (12, 14, 18)), 1.2 - 2.5 * np.abs(warp[1])),  # mastoid
        ):
            airway = np.minimum(airway, cavity)
        paint.keep(1 - soft(airway))
        paint("bone", soft(airway - 1.8))
        paint("bone", 0.9 * soft(cranium - 5.5) * soft(z + 12, 4.0))

        # Scalp: fat, with muscle over the temples, in the face and at the neck
        temporalis = soft(ellipsoid(mirrored, (74, -22, -8), (12, 36, 34)) + 1.5 * warp[2])
        neck = soft(ellipsoid(p, (0, 62, -75), (58, 36, 50)) + 2 * warp[0])
        paint("muscle", np.maximum(temporalis, neck) * (0.88 + 0.1 * warp[1].clip(-1, 1)))
        paint("muscle", soft(np.abs(cranium - thickness - 1.0) - 0.5))  # galea and periosteum
        paint("muscle", soft(z + 38, 4.0) * (0.6 + 0.3 * np.tanh(3 * warp[2] + 2 * self.coarse(3 * p))))
        paint("fat", np.ones_like(x))


class Letters:
    """A test object for geometry in place of a head: a round body with the letters L, A and H on the patient's left,
    front and head side, and beside each a marker, a Gaussian spot of known place.

    centre, normal: (3,) middle and unit normal of the slices, LPS mm. The letters are drawn in the anatomical plane
    (axial, coronal or sagittal) nearest to them, as radiologists look at it. They are carried through along its normal;
    the one that the normal points to shows in the middle, in the slices on its side alone. The markers are put where
    the slices are.
    """

    MARKER_SIGMA_MM = 3.5
    SIDES = {"L": (1.0, 0.0, 0.0), "A": (0.0, -1.0, 0.0), "H": (0.0, 0.0, 1.0)}
    _STROKES = {
        "L": (((-1, -1), (-1, 1)), ((-1, 1), (0.8, 1))),
        "A": (((-1, 1), (0, -1)), ((0, -1), (1, 1)), ((-0.55, 0.3), (0.55, 0.3))),
        "H": (((-1, -1), (-1, 1)), ((1, -1), (1, 1)), ((-1, 0), (1, 0))),
    }
    # right and down in the picture, for slices across x, y, z
    _VIEWS = (((0, 1, 0), (0, 0, -1)), ((1, 0, 0), (0, 0, -1)), ((1, 0, 0), (0, 1, 0)))

    def __init__(self, centre: np.ndarray, normal: np.ndarray) -> None:
        self.axis = int(np.argmax(np.abs(normal)))
        self.centre, self.normal = np.asarray(centre, float), np.asarray(normal, float)
        self.right, self.down = (np.array(vector, np.float32) for vector in self._VIEWS[self.axis])
        self.places: dict[str, np.ndarray] = {}
        self.markers: dict[str, np.ndarray] = {}
        for letter, aside, depth in (("L", -6.0, 2.3), ("A", -9.0, -3.4), ("H", -4.0, 4.1)):
            side = np.array(self.SIDES[letter])
            place = self._place(letter)
            self.places[letter] = place.astype(np.float32)
            if self._across(letter):  # on the side that no letter takes
                marker = place - 36.0 * self.right * sum(self.right @ np.array(other) for other in self.SIDES.values())
            else:  # well away from all ink
                beside = np.asarray(self.down if abs(side @ self.right) > 0.5 else self.right, float)
                marker = place + aside * side + 36.0 * beside
            self.markers[letter] = self._in_depth(marker, depth)

    def _across(self, letter: str) -> bool:
        """Whether a letter's side is one that the slices' normal points to."""
        return bool(self.SIDES[letter][self.axis])

    def _place(self, letter: str) -> np.ndarray:
        """Middle (3,) of a letter, LPS mm."""
        return np.zeros(3) if self._across(letter) else 40.0 * np.array(self.SIDES[letter])

    def _in_depth(self, marker: np.ndarray, depth: float) -> np.ndarray:
        """A marker at `depth` mm from the middle slice, where it would be somewhere along the normal."""
        return marker + (depth - (marker - self.centre) @ self.normal) * self.normal

    def _weight(self, letter: str, points: np.ndarray) -> np.ndarray | float:
        """Share, 0 to 1, of a letter's ink at points (3, n)."""
        if not self._across(letter):
            return 1.0
        facing = self.normal * np.sign(np.array(self.SIDES[letter]) @ self.normal)
        offset = facing.astype(np.float32) @ (points - self.centre[:, None].astype(np.float32))
        return soft(1.0 - offset, 1.0)

    def magnitude(self, points: np.ndarray, contrast: str = "", weighting: float = 0.0) -> np.ndarray:
        """Signal at points (..., 3) in LPS mm -> (...) float32; the same for every contrast."""
        flat = np.ascontiguousarray(points.reshape(-1, 3).T, np.float32)
        signal = 0.5 * soft(ellipsoid(flat, (0, 0, 0), (84, 96, 84)), 1.0)
        for letter, strokes in self._STROKES.items():
            q = flat - self.places[letter][:, None]
            u, v = self.right @ q, self.down @ q
            ink = np.full(len(u), 99.0, np.float32)
            for start, end in strokes:
                line = np.array([u, v, np.zeros_like(u)])
                ink = np.minimum(ink, _capsule(line, (*(11.0 * np.array(start)), 0), (*(11.0 * np.array(end)), 0), 2.4))
            weight = soft(ink, 1.0) * self._weight(letter, flat)
            signal += 0.4 * weight
        for place in self.markers.values():
            distance = length(flat - place.astype(np.float32)[:, None])
            signal += 2.0 * np.exp(-0.5 * (distance / self.MARKER_SIGMA_MM) ** 2)
        return signal.astype(np.float32).reshape(points.shape[:-1])


class LetterVolume(Letters):
    """The same for a 3D scan: every letter lies on its own side, 40 mm from the origin, in planes near it alone, and
    its marker beside it. So each of the three axes of a volume has a letter that tells it and its sign."""

    _HALF_DEPTH = 14.0  # mm

    def _place(self, letter: str) -> np.ndarray:
        return 40.0 * np.array(self.SIDES[letter])

    def _in_depth(self, marker: np.ndarray, depth: float) -> np.ndarray:
        return marker + depth * self.normal

    def _weight(self, letter: str, points: np.ndarray) -> np.ndarray | float:
        offset = points[self.axis] - self.places[letter][self.axis]
        return soft(np.abs(offset) - self._HALF_DEPTH, 1.0)


class _Paint:
    """Front to back: each tissue takes its weight (0 to 1) of every point's rest."""

    def __init__(self, left: np.ndarray) -> None:
        self.left = left
        self.fractions = np.zeros((len(TISSUES), len(left)), np.float32)

    def __call__(self, tissue: str, weight: np.ndarray) -> None:
        taken = self.left * weight
        self.fractions[TISSUES.index(tissue)] += taken
        self.left = self.left - taken

    def keep(self, weight: np.ndarray) -> None:
        """The rest of what is left is air."""
        self.left = self.left * weight

    def replace(self, tissues: tuple[str, ...], by: str, weight: np.ndarray) -> None:
        for tissue in tissues:
            taken = self.fractions[TISSUES.index(tissue)] * weight
            self.fractions[TISSUES.index(tissue)] -= taken
            self.fractions[TISSUES.index(by)] += taken


class SmoothNoise:
    """Smooth noise of unit standard deviation: random plane waves of about one wavelength (mm)."""

    def __init__(self, rng: np.random.Generator, count: int, wavelength: float, spread: float) -> None:
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        length = 2 * np.pi / (wavelength * rng.uniform(1 - spread, 1 + spread, (count, 1)))
        self.vectors = (direction * length).astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
        self.amplitude = np.float32(np.sqrt(2 / count))

    def __call__(self, p: np.ndarray) -> np.ndarray:
        return self.amplitude * np.cos(self._angle(p)).sum(0)

    def with_gradient(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angle = self._angle(p)
        sine = -self.amplitude * np.sin(angle)
        gradient = np.stack([(self.vectors[:, k, None] * sine).sum(0) for k in range(3)])
        return self.amplitude * np.cos(angle).sum(0), gradient

    def _angle(self, p: np.ndarray) -> np.ndarray:
        # written out: threaded products of inner size 3 are ten times slower
        kx, ky, kz = self.vectors.T[:, :, None]
        return kx * p[0] + ky * p[1] + kz * p[2] + self.phases


# Points are (3, n) float32 below, distances (n,) in mm, negative inside.


def length(p: np.ndarray) -> np.ndarray:
    return np.sqrt(p[0] * p[0] + p[1] * p[1] + p[2] * p[2])


def mirror(p: np.ndarray) -> np.ndarray:
    return np.stack([np.abs(p[0]), p[1], p[2]])


def soft(distance: np.ndarray, width: float = 0.25) -> np.ndarray:
    """1 inside, 0 outside; the edge is a ramp of 4 `width` mm."""
    return (0.5 - distance * np.float32(0.25 / width)).clip(0, 1)


def _smooth_min(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Minimum, rounded where both differ by less than `radius` mm."""
    blend = (radius - np.abs(a - b)).clip(0)
    return np.minimum(a, b) - blend * blend * np.float32(0.25 / radius)


def ellipsoid(p: np.ndarray, centre, radii, turn: float = 0.0) -> np.ndarray:
    """Near-distance to an ellipsoid, turned by `turn` rad about the head-feet axis."""
    q = p - np.asarray(centre, np.float32)[:, None]
    if turn:
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        q = np.stack([c * q[0] + s * q[1], c * q[1] - s * q[0], q[2]])
    radii = np.asarray(radii, np.float32)[:, None]
    scaled = q / radii
    norm = length(scaled)
    return norm * (norm - 1) / length(scaled / radii).clip(1e-6)


def pallidum(mirrored: np.ndarray) -> np.ndarray:
    return ellipsoid(mirrored, (19.5, 1, 1), (4.6, 9, 7), turn=-0.35)


def _ellipse_2d(a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float) -> np.ndarray:
    norm = np.hypot(a / radius_a, b / radius_b)
    return norm * (norm - 1) / np.hypot(a / radius_a**2, b / radius_b**2).clip(1e-6)


def _capsule(p: np.ndarray, start, end, radius) -> np.ndarray:
    first = np.asarray(start, np.float32)
    axis = np.asarray(end, np.float32) - first
    q = p - first[:, None]
    along = (axis @ q / (axis @ axis)).clip(0, 1)
    return length(q - axis[:, None] * along) - radius


def _cerebrum(p: np.ndarray) -> np.ndarray:
    """Hull of the cerebrum: narrower in front, flatter below, left occipital and right frontal petalia."""
    x, y, z = p
    y = y - 0.025 * x
    width = 1 - 0.10 * (-y / 86).clip(-0.5, 1)
    height = np.where(z > 6, np.float32(1.0), np.float32(66 / 42))
    bent = np.stack([x / width, y, 6 + (z - 6) * height])
    upper = ellipsoid(bent, (0, 0, 6), (68, 86, 66))
    lobes = ellipsoid(np.stack([np.abs(x), y, z]), (41, -8, -18), (24, 38, 22))
    return _smooth_min(upper, lobes, 10.0)
