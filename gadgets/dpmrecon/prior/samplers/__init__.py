"""Posterior samplers: one file for each family."""
