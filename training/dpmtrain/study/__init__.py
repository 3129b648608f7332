"""A reader study: blinded sets, the page they are read on, and the statistics."""
