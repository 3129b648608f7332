"""What a model is worth on slices with a reference, and which settings serve it best."""
