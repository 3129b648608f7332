"""The physics of a simulated EPI diffusion scan: what the lines of a shot receive, and the truth.

The object is that of `slices.py`, with emboli and white matter that diffuses along fibres. Each shot has the phase that
motion during the diffusion gradients leaves, and each direction the one of its eddy currents; lines are the exact
transform of the object at their own positions in k-space, on ramps too. A forward line has the phase +p(x), a reversed
one -p(x), constant and linear along the readout: that makes the N/2 ghost, and it drifts over the scan.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import BadInputError
from .diffusion import DiffusionHead, Embolus, mean_diffusion
from .epi_settings import EpiSettings
from .phantom import TISSUES, Letters, Phantom, SmoothNoise
from .slices import (
    FINER,
    PLANES,
    coil_maps,
    cropped_kspace,
    object_phase,
    slice_points,
    the_object,
    true_image,
)

NAVIGATORS = 3
_SHIFT = 0.8  # cycles per field of view: k-space's motion at b = 1000, standard deviation
_EDDY_SHIFT = 0.4  # the same of each direction's eddy currents
_BEND = 0.25  # rad, standard deviation of the phase that is neither constant nor linear


@dataclass(frozen=True)
class Shot:
    """One excitation and its lines, those of a gradient echo taken together. weighting: None for calibration, which has
    b = 0; number: counts all shots; first, last: of its image."""

    number: int
    index: int
    rows: tuple[int, ...]
    weighting: int | None
    average: int = 0
    repetition: int = 0
    first: bool = False
    last: bool = False
    gradient_echo: bool = False

    @property
    def navigators(self) -> int:
        """Lines through the centre of k-space that come first."""
        return 0 if self.gradient_echo else NAVIGATORS

    @property
    def ways(self) -> list[int]:
        """0 for a forward line, 1 for a reversed one, navigators first; they and the train both begin forwards."""
        if self.gradient_echo:
            return [0] * len(self.rows)
        return [number % 2 for count in (NAVIGATORS, len(self.rows)) for number in range(count)]


def shots_of(settings: EpiSettings) -> list[Shot]:
    """All excitations in the order of acquisition: calibration of all slices; then, average by average, the weightings,
    their shots, and in these the slices."""
    plan: list[dict] = []
    order = settings.slice_order()
    if settings.calibration == "separate":
        gradient_echo = settings.calibration_by != "epi"
        for index, rows in itertools.product(order, settings.calibration_shots()):
            plan.append({"index": index, "rows": tuple(rows), "weighting": None, "gradient_echo": gradient_echo})
    rounds = itertools.product(
        range(settings.repetitions),
        range(max(settings.averages, settings.unweighted_averages)),
        range(len(settings.weightings)),
        enumerate(settings.shot_rows()),
        order,
    )
    for repetition, average, weighting, (shot, rows), index in rounds:
        if average < settings.averages_of(weighting):
            ends = {"first": shot == 0, "last": shot == settings.shots - 1}
            counters = {"weighting": weighting, "average": average, "repetition": repetition}
            plan.append({"index": index, "rows": tuple(rows), **counters, **ends})
    return [Shot(number, **shot) for number, shot in enumerate(plan)]


@dataclass(frozen=True)
class Ghost:
    """Phase of forward lines, that of reversed ones being its negative: `constant` in rad, and `shift` in cycles per
    field of view, which is linear along the readout."""

    constant: float
    shift: float


def ghost_of(settings: EpiSettings, shot: Shot, n_shots: int) -> Ghost:
    """Its mean square over a head of .7 fields of view is that of `settings.ghost`; it drifts from shot to shot, and
    eddy currents change it by direction."""
    rng = np.random.default_rng([settings.subject, 30])
    turn, sides = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0], 2)
    drift = np.sin(turn + 2.2 * np.pi * shot.number / n_shots) * settings.ghost_drift
    own = 0.1 * settings.ghost_drift * ((shot.weighting or 0) % 3)
    level = settings.ghost * (1 + drift + own)
    return Ghost(float(sides[0] * 0.8 * level), float(sides[1] * 0.6 * level * np.sqrt(3) / (0.7 * np.pi)))


def phase_of(settings: EpiSettings, shot: Shot, places: np.ndarray) -> np.ndarray:
    """exp(i phase), complex64 (...), that motion and eddy currents leave in a shot at places (..., 2), (row, column)
    in fields of view from the middle: none at b = 0, one for all shots of a direction without motion."""
    b = 0.0 if shot.weighting is None else settings.weightings[shot.weighting]
    phase = np.zeros(places.shape[:-1], np.float32)
    own = settings.seed, shot.number, shot.index
    shared = settings.subject, shot.weighting or 0, 0
    strength = np.sqrt(b / 1000)
    for key, number, shift, size in ((own, 31, _SHIFT, settings.motion), (shared, 32, _EDDY_SHIFT, settings.eddy)):
        if size * strength == 0:
            continue
        rng = np.random.default_rng([number, *key])
        constant = rng.uniform(-np.pi, np.pi)
        slope = 2 * np.pi * shift * size * strength * rng.normal(size=2).clip(-2, 2)
        bend = SmoothNoise(rng, 6, 0.9, 0.3)
        flat = np.concatenate([places.reshape(-1, 2).T, np.zeros((1, places[..., 0].size))]).astype(np.float32)
        phase += (constant + slope @ flat[:2] + _BEND * size * strength * bend(flat)).reshape(phase.shape)
    return np.exp(1j * phase).astype(np.complex64)


class EpiSlice:
    """One slice: `truths` (n_weightings, rows, cols) float32, and the lines of its shots.

    mixing: (n_coils, n_coils), white noise to that of the channels, which is undone before coils are combined.
    """

    def __init__(self, settings: EpiSettings, index: int, thing: Phantom | Letters, mixing: np.ndarray) -> None:
        self.settings, self.index = settings, index
        points = slice_points(settings, index, FINER, settings.oversampling, 0.0)
        table = [(0.0, (0.0, 0.0, 0.0)), *settings.weighting_table]
        signal: np.ndarray | np.float32 = np.float32(0)
        for part in PLANES:
            plane = slice_points(settings, index, FINER, settings.oversampling, part * settings.slice_thickness_mm)
            signal = signal + _signals(thing, settings, plane, table) / len(PLANES)
        signals = np.asarray(signal, np.float32)
        images = self._coil_images(points)
        kspaces = (cropped_kspace(settings, images * image) for image in signals[1:])
        self.truths = np.stack([np.abs(true_image(settings, index, kspace, mixing)) for kspace in kspaces])
        # the readout beyond the object is left out, three quarters of it
        filled = np.flatnonzero(signals[0].any(0))
        self._cols = slice(filled[0], filled[-1] + 1) if len(filled) else slice(0, 1)
        self._signals = signals[:, :, self._cols].copy()

    def _coil_images(self, points: np.ndarray) -> np.ndarray:
        """(n_coils, ...) complex64 of an object of unit signal."""
        subject = self.settings.subject
        return coil_maps(points, self.settings.n_coils, subject) * object_phase(points, subject)

    def received(self, shots: list[Shot], n_shots: int) -> Iterator[tuple[Shot, list[np.ndarray]]]:
        """Each of these shots with what its lines receive without noise, (n_coils, n_samples) complex64 in the order
        of time; three navigators come first where the readout turns around. n_shots: of the whole scan."""
        settings = self.settings
        fine_cols, fine_rows = settings.samples * FINER, settings.rows * FINER
        along = (np.arange(fine_cols) - fine_cols // 2)[self._cols] / (settings.cols * FINER)
        down = (np.arange(fine_rows) - fine_rows // 2) / fine_rows
        places = np.stack(np.broadcast_arrays(down[:, None], along), -1)
        points = slice_points(settings, self.index, FINER, settings.oversampling, 0.0)
        sensitivities = self._coil_images(points[:, self._cols]) / (FINER * np.sqrt(np.float32(fine_rows * fine_cols)))
        for shot in shots:
            number = 0 if shot.weighting is None else 1 + shot.weighting
            image = sensitivities * (self._signals[number] * phase_of(settings, shot, places))
            k_rows = np.array([0] * shot.navigators + [row - settings.rows // 2 for row in shot.rows])
            profiles = list((_transform(k_rows, down) @ image).swapaxes(0, 1))
            if shot.gradient_echo:
                n_samples = settings.calibration_cols * settings.oversampling
                encoding = _transform((np.arange(n_samples) - n_samples // 2) / settings.oversampling, along).T
                yield shot, [profile @ encoding for profile in profiles]
                continue
            ghost, k = ghost_of(settings, shot, n_shots), settings.readout.positions(settings.cols)
            left_in = np.zeros(len(k))
            if settings.fixed_receiver:
                off_centre = settings.slice_position(self.index) @ settings.directions()[0] / settings.fov_mm[1]
                left_in = 2 * np.pi * off_centre * (settings.readout.as_if_flat(settings.cols) - k)
            encodings = [
                (np.exp(1j * sign * (ghost.constant + left_in))[:, None] * _transform(sign * (k - ghost.shift), along))
                .astype(np.complex64)
                .T
                for sign in (1, -1)
            ]
            yield shot, [profile @ encodings[way] for profile, way in zip(profiles, shot.ways)]


def _transform(k: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(len(k), len(places)) complex64: k in cycles per unit of places."""
    return np.exp(-2j * np.pi * np.outer(k, places)).astype(np.complex64)


def _signals(
    thing: Phantom | Letters,
    settings: EpiSettings,
    points: np.ndarray,
    table: list[tuple[float, tuple[float, float, float]]],
) -> np.ndarray:
    """Magnitude (len(table), ...) float32 at points (..., 3) of a plane of the fine grid."""
    if not isinstance(thing, DiffusionHead):
        return np.stack([thing.magnitude(points, "dwi", b) for b, _ in table])
    return thing.signals(points, table, _cell(settings, FINER))


def _cell(settings: EpiSettings, finer: int) -> np.ndarray:
    """Edges (3, 3) in mm, a row each, of what a point stands for."""
    read, phase, through = settings.directions()
    down, along = (size / finer for size in settings.pixel_mm)
    depth = settings.slice_thickness_mm / len(PLANES)
    return np.stack([along * read, down * phase, depth * through])


@dataclass(frozen=True)
class DiffusionTruth:
    """What lies in the voxels of a scan, on the grid of the truth.

    adc: (n_slices, rows, cols) float32, mm^2/s, the tissues' mean ADC weighted by their signal at b = 0; 0 in air.
    fractions: (len(TISSUES), n_slices, rows, cols) float32. emboli: each with its place; labels: (n_slices, rows, cols)
    int16, 1 + its number where an embolus fills a part of the voxel that is at least half of the most that it fills
    anywhere.
    """

    adc: np.ndarray
    fractions: np.ndarray
    emboli: list[Embolus]
    labels: np.ndarray

    @property
    def white(self) -> np.ndarray:
        """Voxels (n_slices, rows, cols) bool of white matter alone."""
        return self.fractions[TISSUES.index("white")] > 0.98

    @property
    def infarct(self) -> np.ndarray:
        """Voxels (n_slices, rows, cols) bool of the infarct's core, without the emboli."""
        return (self.fractions[TISSUES.index("lesion")] > 0.88) & (self.labels == 0)


def diffusion_truth(settings: EpiSettings) -> DiffusionTruth:
    """Raises BadInputError for the letters, which do not diffuse."""
    head = the_object(settings)
    if not isinstance(head, DiffusionHead):
        raise BadInputError(f"{settings.phantom} have no ADC to map; simulate a head")
    parts = len(PLANES)
    cell = _cell(settings, parts)
    shape = settings.n_slices, settings.rows, settings.cols
    fractions, filled = np.zeros((len(TISSUES), *shape), np.float32), np.zeros(shape, np.float32)
    labels = np.zeros(shape, np.int16)
    for index in range(settings.n_slices):
        points = slice_points(settings, index, 1, 1, 0.0)
        for steps in itertools.product(range(parts), repeat=3):
            part = points + ((np.array(steps) - parts // 2) @ cell).astype(np.float32)
            flat = np.ascontiguousarray(part.reshape(-1, 3).T)
            for places, near in head.blocks(flat):
                fractions[:, index].reshape(len(TISSUES), -1)[:, places] += head.fractions_in(near, cell) / parts**3
        whole = _cell(settings, 1) * [[1], [1], [parts]]
        flat = np.ascontiguousarray(points.reshape(-1, 3).T)
        for number, embolus in enumerate(head.emboli):
            own = head.filled_by(embolus, flat, whole)
            if own is not None and own.max() > 0:
                own = own.reshape(shape[1:])
                here = (own >= 0.5 * own.max()) & (own > filled[index])
                labels[index][here], filled[index][here] = 1 + number, own[here]
    signal = head.levels("dwi", 0.0)[:, None, None, None] * fractions
    total = signal.sum(0)
    adc = np.tensordot(mean_diffusion(), signal, 1) / np.where(total > 0, total, 1) * 1e-3
    return DiffusionTruth(adc.astype(np.float32), fractions, head.emboli, labels)
