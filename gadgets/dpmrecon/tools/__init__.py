"""Beside the reconstruction: the geometry self-test, the estimate of costs, the doctor, comparisons."""
