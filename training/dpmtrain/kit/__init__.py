"""From a folder of a hospital's scans to a model fine-tuned on them."""
