"""Every method on the same scans: quality, seconds and memory."""
