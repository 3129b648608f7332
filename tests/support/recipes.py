"""Recipes of small trainings."""

# of what is trained for a time: one-step, in-sampler
TIMED = """
[train]
seed = 3
optimizer = "muon"
precision = "float32"
batch = 2
draws = 2
crops = [32, 40]
rate = 1e-3
warmup = 2
decay_fraction = 0.5
clip = 1.0
label_dropout = 0.2
volumes = ["*"]
focus_weight = 3
real_fraction = 1.0
save_seconds = 10
"""
