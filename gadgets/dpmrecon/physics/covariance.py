"""The noise of a receiver's channels, from a noise measurement or from image lines. Without torch: told at once."""

import numpy as np

from ..errors import BadInputError

# Of image lines: the share of the readout that is taken, and of the lines that say where; how much more the inner lines
# may hold there; power at least, over the readout's: less is no receiver's noise
QUIET_SHARE, INNER_SHARE, FLAT, LEAST = 0.1, 0.1, 1.3, 1e-6
# Samples: enough for each channel, or in all, as chance correlates channels less then, and the fewest for each: 32
# channels of 15 samples each cost 4 % of the error that a noise measurement leaves, where no whitening doubles it
ENOUGH, IN_ALL, FEWEST = 64, 384, 8
# Least eigenvalue of their correlation: less is what a point's edges leave, the same in all channels but for a factor
INDEPENDENT = 1e-3
SPIKED = 8.0  # times the middle line's power there, in any channel: more is a spike


def noise_covariance(lines: list[np.ndarray]) -> np.ndarray:
    """(n_coils, n_coils) complex128 of noise lines (n_coils, n_samples).

    Raises BadInputError for noise that is not finite or whose covariance is singular.
    """
    samples = np.concatenate(lines, 1).astype(np.complex128)
    n_coils, count = samples.shape
    if not np.isfinite(samples).all():
        raise BadInputError("the noise measurement holds NaN or infinite values; send the scan without it or anew")
    if count < 2 * n_coils:
        raise BadInputError(
            f"the noise measurement has {count} samples for {n_coils} channels; at least {2 * n_coils} are needed"
        )
    covariance = samples @ samples.conj().T / count
    power = covariance.diagonal().real
    if power.min() <= 0:
        raise BadInputError(
            f"the noise covariance is singular: channel {int(power.argmin())} of {n_coils} carries no noise; "
            "leave that channel out or send the scan without its noise measurement"
        )
    # powers are divided out first: a weak channel is no dependent one
    correlation = covariance / np.sqrt(np.outer(power, power))
    if np.linalg.eigvalsh(correlation)[0] < 1e-9:
        raise BadInputError(
            f"the noise covariance of {n_coils} channels is singular: a channel is a combination of others; "
            "leave it out or send the scan without its noise measurement"
        )
    return covariance


def quiet_covariance(lines: np.ndarray) -> np.ndarray | None:
    """(n_coils, n_coils) complex128 of the noise in image lines, where the readout has no head; None where it has one
    everywhere, or lines are too few.

    lines: (n_lines, n_coils, n_samples) complex64 k-space, the outermost first. The innermost, which hold most signal,
    say where there is none: where they hold no more than the others do.
    """
    n_lines, n_coils, n_samples = lines.shape
    inner = max(1, round(INNER_SHARE * n_lines))
    count = round(QUIET_SHARE * n_samples)
    if (n_lines - inner) * count < min(ENOUGH * n_coils, max(IN_ALL, FEWEST * n_coils)):
        return None
    window = np.hanning(n_samples + 2)[1:-1].astype(np.float32)  # edges do not leak
    along = np.fft.ifft(lines * window, axis=-1)
    within = np.square(np.abs(along[-inner:])).mean((0, 1))
    heard = np.argsort(within, kind="stable")
    heard = heard[within[heard] > LEAST * within.mean()]  # a receiver's filter may leave no noise at the ends
    quiet = heard[:count]
    samples = along[:-inner, :, quiet]
    by_line = np.square(np.abs(samples)).mean(2)
    samples = samples[(by_line <= SPIKED * np.median(by_line, 0)).all(1)]  # a spike is everywhere in its line
    if not samples.size:
        return None
    power = np.square(np.abs(samples)).mean()
    if not (within[quiet].mean() <= FLAT * power and power > LEAST * np.square(np.abs(along)).mean()):
        return None
    try:
        covariance = noise_covariance(list(samples))
    except BadInputError:  # as of scans without noise
        return None
    scale = 1 / np.sqrt(covariance.diagonal().real)
    return covariance if np.linalg.eigvalsh(covariance * np.outer(scale, scale))[0] > INDEPENDENT else None
