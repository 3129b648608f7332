"""ISMRMRD (MRD): files and headers, lines to complete slices, geometry."""
