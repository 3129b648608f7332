"""The checkpoints that ship with the package: NAME.safetensors with NAME.json, its card."""
