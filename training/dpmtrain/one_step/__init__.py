"""Experiments with the one-step network: its settings, SSDM-MRI's experiments in kind, volumes, susceptibility."""
