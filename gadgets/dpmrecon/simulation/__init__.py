"""Simulated scans: phantoms, how they are sampled, and the files that a scanner would send."""
