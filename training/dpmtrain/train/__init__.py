"""From a recipe and prepared slices to a network."""
