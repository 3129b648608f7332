"""The source paper's experiments in kind."""
