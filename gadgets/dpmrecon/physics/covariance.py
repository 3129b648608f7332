"""The noise of a receiver's channels, from a noise measurement. Without torch, so that it is told at once."""

import numpy as np

from ..errors import BadInputError


def noise_covariance(lines: list[np.ndarray]) -> np.ndarray:
    """(n_coils, n_coils) complex128 of noise lines (n_coils, n_samples).

    Raises BadInputError for noise that is not finite or whose covariance is singular.
    """
    samples = np.concatenate(lines, 1).astype(np.complex128)
    n_coils, count = samples.shape
    if not np.isfinite(samples.view(np.float64)).all():
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
