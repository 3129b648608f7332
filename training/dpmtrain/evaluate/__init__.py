"""What a model is worth beside a reference, and its best settings."""
