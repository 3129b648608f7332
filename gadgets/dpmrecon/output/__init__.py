"""From reconstructions to MRD images, the result folder, pictures and maps."""
