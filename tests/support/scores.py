"""Scores of an image whose error is known."""


def score_of(error: float, **more) -> dict:
    """A score whose NRMSE is `error`, with one least-squares factor for a scan of this slice alone."""
    moments = {"cross": (1 - error**2) ** 0.5, "image": 1.0, "truth": 1.0}
    return {**moments, "psnr": 1.0, "ssim": 1.0, "samples": 1, "seconds": {"rest": 1.0}, **more}
