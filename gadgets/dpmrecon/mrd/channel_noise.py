"""The noise of a scan's channels, as it was measured or as image lines tell it: what whitens it, and the level left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..physics.covariance import quiet_covariance
from .header import Limits
from .lines import Lines, places_of
from .noise_lines import NoiseLines
from .scan_log import ScanLog

if TYPE_CHECKING:
    import torch

# A noise measurement so much louder than quiet k-space is another scan's
TOO_LOUD = 1.5
# Without one: times the median channel's level in the outermost OUTER of the lines and of their samples; how much
# larger noise is further in, by chance
LOUD, OUTER, MOST_LINES, FLAT = 2.0, 0.15, 512, 1.3
# Without one channels are whitened where their noise correlates more, root mean square, or two powers differ more: less
# may be chance
CORRELATED, UNLIKE = 0.08, 1.5
# And a noise measurement is not that of the scan where they do so by more once it has whitened them
MISFIT_CORRELATED, MISFIT_UNLIKE = 0.15, 2.0


class ChannelNoise:
    """Of a scan. What image lines tell is told by those of the first slice, for all: slices keep their brightness."""

    def __init__(self, measurement: NoiseLines, log: ScanLog) -> None:
        self.measurement, self.log = measurement, log
        self.is_checked = False
        # by the channels' numbers
        self.contradicted: dict[tuple[int, ...], bool] = {}
        self.whiteners: dict[tuple[int, ...], np.ndarray | None] = {}
        self.levels: dict[tuple[int, ...], np.ndarray] = {}

    def whitener(
        self, lines: Lines, limits: tuple[Limits, Limits], grid: tuple[int, int], remarks: list[str]
    ) -> tuple[torch.Tensor | None, float | None]:
        """Whitening matrix and noise level of single lines, whose readouts have grid[0] samples and keep grid[1]; no
        level without a noise measurement of these channels, or with another scan's."""
        assert lines.header is not None
        measured = self.measurement.whitener(lines.numbers, lines.header.sample_time_us, *grid)
        if measured is None or self._contradicted(measured[0].numpy(), lines, limits):
            return self._estimated(lines, limits, remarks), None
        return measured

    def _contradicted(self, whitener: np.ndarray, lines: Lines, limits: tuple[Limits, Limits]) -> bool:
        """Whether the noise measurement leaves the noise beside the head, in the first slice, far from white."""
        if lines.numbers not in self.contradicted:
            covariance = quiet_covariance(whitener @ _outward(lines, limits))
            self.contradicted[lines.numbers] = False
            if covariance is not None:
                correlations, powers = _correlations(covariance)
                if _typical(correlations) > MISFIT_CORRELATED or powers > MISFIT_UNLIKE:
                    self.contradicted[lines.numbers] = True
                    self.log.remark(
                        "the noise measurement is left out: beside the head channels that it has whitened correlate by "
                        f"up to {correlations.max(initial=0):.2f}, and the loudest has {powers:.1f} times the power of "
                        "the quietest; see whether it has spikes or signal, or gains or channels were others"
                    )
        return self.contradicted[lines.numbers]

    def _estimated(self, lines: Lines, limits: tuple[Limits, Limits], remarks: list[str]) -> torch.Tensor | None:
        """Without a noise measurement, in its place: what whitens the noise that the readouts of the first slice hold
        beside the head; where that cannot be told the matrix of `_balanced`."""
        import torch

        if lines.numbers not in self.whiteners:
            covariance = quiet_covariance(_outward(lines, limits))
            self.whiteners[lines.numbers] = None if covariance is None else self._whitening(covariance)
        found = self.whiteners[lines.numbers]
        return self._balanced(lines, limits, remarks) if found is None else torch.from_numpy(found)

    def _whitening(self, covariance: np.ndarray) -> np.ndarray | None:
        """(n_coils, n_coils) complex64, which keeps the mean power; None where the channels are alike as they are."""
        correlations, powers = _correlations(covariance)
        if _typical(correlations) <= CORRELATED and powers <= UNLIKE:
            return None
        self.log.remark(
            "the noise of the channels, where readouts hold no head, correlates by up to "
            f"{correlations.max(initial=0):.2f}, and the loudest has {powers:.1f} times the power of the quietest: "
            "they are whitened by that"
        )
        mean = covariance.diagonal().real.mean()
        return np.linalg.inv(np.linalg.cholesky(covariance / mean)).astype(np.complex64)

    def _balanced(self, lines: Lines, limits: tuple[Limits, Limits], remarks: list[str]) -> torch.Tensor | None:
        """The matrix that scales loud channels to the level of the others; None where none is."""
        import torch

        if lines.numbers not in self.levels:
            self.levels[lines.numbers] = _outer_levels(lines, limits)
        levels = self.levels[lines.numbers]
        ratios = levels / (np.median(levels) or 1.0)
        loud = np.flatnonzero(ratios > LOUD)
        if not len(loud):
            return None
        told = ", ".join(str(lines.numbers[place]) for place in loud)
        remarks.append(
            f"channel {told} is {ratios[loud].max():.3g} times as loud as the others where k-space is quiet: it is "
            "scaled to them; a noise measurement would tell (--noise names a file with one)"
        )
        ratios[ratios <= LOUD] = 1.0
        return torch.diag(torch.from_numpy(1 / ratios).to(torch.complex64))

    def level(
        self,
        measured: float | None,
        lines: Lines,
        estimate: Callable[..., float],
        kspace: torch.Tensor,
        mask: torch.Tensor,
    ) -> float:
        """Of the k-space: as it was measured for single lines, else as it is estimated."""
        if measured is None:
            return estimate(kspace, mask)
        sigma_n = measured * lines.noise
        self._check(sigma_n, estimate, kspace, mask)
        return sigma_n

    def _check(self, sigma_n: float, estimate: Callable[..., float], kspace: torch.Tensor, mask: torch.Tensor) -> None:
        """Once a scan: signal only adds to the noise of k-space, so that it is never quieter than the measurement."""
        if self.is_checked:
            return
        self.is_checked = True
        quiet = estimate(kspace, mask)
        if sigma_n > TOO_LOUD * quiet:
            self.log.remark(
                f"the noise measurement is {sigma_n / quiet:.1f} times as loud as the quietest part of k-space: it is "
                "of another scan, or its dwell time is wrong (--noise names another file)"
            )


def _correlations(covariance: np.ndarray) -> tuple[np.ndarray, float]:
    """Moduli of the correlations of two channels each, and the largest power over the smallest."""
    power = covariance.diagonal().real
    correlation = np.abs(covariance) / np.sqrt(np.outer(power, power))
    return correlation[~np.eye(len(power), dtype=bool)], float(power.max() / power.min())


def _typical(correlations: np.ndarray) -> float:
    """Their root mean square."""
    return float(np.sqrt(np.square(correlations).mean())) if len(correlations) else 0.0


def _outer_levels(lines: Lines, limits: tuple[Limits, Limits]) -> np.ndarray:
    """(n_coils,): the median size of a sample in the outermost lines and at the ends of them; all alike where those
    further in are larger: that is signal, as in scans without noise."""
    samples = np.arange(lines.layout.first, lines.layout.end)
    ends = samples[np.argsort(-np.abs(samples - lines.layout.center), kind="stable")]
    numbers = _numbers_outward(lines, limits)

    def level(first: float, last: float) -> np.ndarray:
        """Of these shares of lines and samples, from the outermost on."""
        some, columns = (part[round(first * len(part)) : max(1, round(last * len(part)))] for part in (numbers, ends))
        some = some[:: max(1, len(some) // MOST_LINES)].tolist()
        found = [np.abs(lines.sums[number][:, columns]) / lines.counts[number] ** 0.5 for number in some]
        return np.median(np.concatenate(found, 1), 1)

    outer, further_in = level(0, OUTER), level(OUTER, 2 * OUTER)
    return outer if np.median(further_in / np.maximum(outer, 1e-30)) <= FLAT else np.ones(len(outer))


def _numbers_outward(lines: Lines, limits: tuple[Limits, Limits]) -> np.ndarray:
    """The numbers of the lines, the outermost first."""
    apart = places_of(lines.sums) - np.array([limit.center for limit in limits])
    return np.array(list(lines.sums))[np.argsort(-np.hypot(*apart.T), kind="stable")]


def _outward(lines: Lines, limits: tuple[Limits, Limits]) -> np.ndarray:
    """(n_lines, n_coils, n_samples) complex64: lines, or some of many, the outermost first, with one line's noise."""
    numbers = _numbers_outward(lines, limits)
    some = numbers[:: max(1, len(numbers) // MOST_LINES)].tolist()
    where = slice(lines.layout.first, lines.layout.end)
    return np.stack([lines.sums[number][:, where] / np.float32(lines.counts[number] ** 0.5) for number in some])
