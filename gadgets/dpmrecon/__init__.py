"""dpmrecon: accelerated brain MRI reconstructed with a diffusion prior, beside the scanner."""

__version__ = "0.1.0"
