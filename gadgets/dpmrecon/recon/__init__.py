"""From a slice to an image: coil maps, samples, deadline, and when not to trust the model."""
