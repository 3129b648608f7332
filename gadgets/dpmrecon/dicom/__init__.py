"""DICOM: series, archives, and how a viewer shows them."""
