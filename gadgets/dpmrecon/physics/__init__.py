"""What happens in the scanner and how it is undone: transforms, coils, noise, CG-SENSE, scale, phase."""
