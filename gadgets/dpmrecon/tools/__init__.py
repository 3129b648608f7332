"""Beside the reconstruction: simulated scans, the geometry self-test, the estimate of costs."""
