"""What comes in: every kind of scan and image, read and simulated, to prepared slices."""
