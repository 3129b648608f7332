"""Scans that are unsound and objects that are no heads: whether that is told, and what helps."""
