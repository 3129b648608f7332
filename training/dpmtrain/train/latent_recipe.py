"""Recipes of `dpmtrain latent`: one for each stage, each with exactly the keys that it uses."""

from pathlib import Path

from dpmrecon.errors import BadInputError

from .recipe import LEAST, check, read_toml

COMMON: dict[str, tuple[type, float | None]] = {
    "seed": (int, 0),
    "precision": (str, None),
    "batch": (int, 1),
    "crop": (int, 16),
    "pool": (int, 1),  # crops that stay on the device
    "rate": (float, LEAST),
    "warmup": (int, 1),  # steps
    "decay_fraction": (float, 0),  # of the budget
    "clip": (float, LEAST),
    "volumes": (list, 1),
    "held_back": (list, 1),  # volumes for the round trip, which no stage may train on
    "real_fraction": (float, 0),
    "save_seconds": (float, 0),
}
DIFFUSION: dict[str, tuple[type, float | None]] = {"draws": (int, 1), "label_dropout": (float, 0)}
LOSSES = dict.fromkeys(("l1", "log_rms", "perceptual", "kl", "adversarial", "adversarial_from"), (float, 0))
KEYS: dict[str, dict] = {
    "sketcher": COMMON,
    "autoencoder": {**COMMON, **LOSSES},
    "denoiser": {**COMMON, **DIFFUSION},
    "control": {**COMMON, **DIFFUSION, "time_power": (float, 1)},
}
MODEL = {
    "sketcher": {"labels", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio"},
    "autoencoder": {"labels", "patch", "autoencoder", "unet", "schedule"},
}
TABLES = {"sketcher": {"model"}, "autoencoder": {"model"}, "denoiser": set(), "control": {"sampling"}}


def read_latent_recipe(path: Path) -> dict:
    """`stage`, [train], of the first two stages [model], of the last [sampling]; BadInputError says what is wrong."""
    recipe = read_toml(path)
    stage = recipe.get("stage")
    if stage not in KEYS:
        raise BadInputError(f"recipe {path}: stage is {stage!r}, give one of {', '.join(KEYS)}")
    tables = {"stage", "train"} | TABLES[stage]
    if set(recipe) != tables:
        wrong = ", ".join(sorted(set(recipe) ^ tables))
        raise BadInputError(f"recipe {path}: unknown or missing {wrong}; {stage} has {', '.join(sorted(tables))}")
    for table, valid in (("train", set(KEYS[stage])), ("model", MODEL.get(stage, set()))):
        if table in recipe and set(recipe[table]) != valid:
            wrong = ", ".join(sorted(set(recipe[table]) ^ valid))
            raise BadInputError(
                f"recipe {path}, table [{table}]: unknown or missing {wrong}; it has {', '.join(sorted(valid))}"
            )
    for key, (wanted, smallest) in KEYS[stage].items():
        check(path, key, recipe["train"][key], wanted, smallest)
    if recipe["train"]["precision"] not in ("bf16", "float32"):
        raise BadInputError(f"recipe {path}: precision is '{recipe['train']['precision']}', give float32 or bf16")
    return recipe
