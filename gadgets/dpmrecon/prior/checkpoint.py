"""Checkpoints: NAME.safetensors (float16, bfloat16 or float32 weights) and NAME.json, the card."""

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..device import has_bfloat16
from ..errors import CheckpointError
from ..files import from_json, replacing
from ..physics.phase import RULE as PHASE_RULE
from ..physics.scale import RULE
from ..version import __version__
from .conditional import ConditionalDenoiser, Later
from .denoiser import Denoiser, uncounted
from .kinds import DENOISER, KINDS, LATENT, ONE_STEP, Kind, Model
from .samplers.diffusion import Relay
from .samplers.latent import SKETCH, Sketcher

DEFAULT, VOLUMES = "default", "volumes"
UNCERTAINTY = "uncertainty"  # the mode's entry among the samplers of a card
# of models that are too large for the package, by name
MODELS = Path("~/.dpmrecon/models")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model in evaluation mode, its card, its id (name and start of the checksum), and its kind. prior: what
    makes a one-step model's later evaluations, where there are any; volumes: the model of 3D scans, where that is
    another, which slices of some contrasts take too (`SamplerSettings.volumes_above`)."""

    model: Model
    card: dict
    model_id: str
    kind: Kind = KINDS[DENOISER]
    prior: "Checkpoint | None" = None
    volumes: "Checkpoint | None" = None

    def of_scan(self, *, volume: bool) -> "Checkpoint":
        """The one for a scan of slices or of volumes."""
        return self.volumes if volume and self.volumes is not None else self

    def of_contrast(self, contrast: str | None, settings: Any, count: Callable[[int], object] = uncounted) -> Any:
        """What a sampler asks of a contrast, by its settings; count: see `Denoiser.of_contrast`."""
        own, first = self.model.of_contrast(contrast, count), self._first(settings)
        if first is None:
            return own
        return Relay(first.model.of_contrast(contrast, count), own, settings.volumes_above)

    def id_by(self, settings: Any) -> str:
        """The ids of the models that a sampler asks by its settings."""
        first = self._first(settings)
        return self.model_id if first is None else f"{self.model_id}+{first.model_id}"

    def _first(self, settings: Any) -> "Checkpoint | None":
        """Who is asked before this one."""
        return None if getattr(settings, "volumes_above", None) is None else self.volumes

    @property
    def denoiser(self) -> Denoiser:
        """The model where it is one; CheckpointError for a model of another kind."""
        if not isinstance(self.model, Denoiser):
            raise CheckpointError(f"model {self.model_id} is no denoiser D(x; sigma): name another model")
        return self.model


def save_checkpoint(path: Path, model: torch.nn.Module, card: dict) -> None:
    """Write `path` (.safetensors) and the card beside it.

    model: with its configuration as `config`. card: what only the caller knows (recipe, data, licences, sampler
    defaults, another kind than "denoiser"). Configuration, rules of scale and phase, checksum, number of parameters and
    package version are filled in here.
    """
    count = sum(p.numel() for p in model.parameters())
    # above 4 M parameters float32 would break a shipped file's 16 MB
    dtype = torch.float16 if count > 4_000_000 else torch.float32
    if card.get("kind") == LATENT:
        dtype = torch.bfloat16
    data = save({name: value.to(dtype).contiguous() for name, value in model.state_dict().items()})
    full = {
        "name": path.stem,
        "kind": DENOISER,
        "package_version": __version__,
        "checksum_sha256": hashlib.sha256(data).hexdigest(),
        "parameters": count,
        "scale_rule": RULE,
        "phase_rule": PHASE_RULE,
        "model": model.config,
        **card,
    }
    _replace({path: data, path.with_suffix(".json"): _text(full)})


def _text(card: dict) -> bytes:
    return (json.dumps(card, indent=1) + "\n").encode()


def _replace(contents: dict[Path, bytes]) -> None:
    """Write all files beside their places, then put them there: a full disk leaves what was. Raises OSError."""
    with ExitStack() as stack:
        for path, data in contents.items():
            stack.enter_context(replacing(path)).write_bytes(data)


def default_path() -> Path:
    """The checkpoint that ships with the package; the one for volumes lies beside it."""
    return Path(str(files("dpmrecon.checkpoints") / f"{DEFAULT}.safetensors"))


def model_path(model: Path | str | None) -> Path:
    """The file of `--model`: None, `default` and `one-step` ship, `latent` lies in MODELS. CheckpointError where it is
    not."""
    if model is None or str(model) == DEFAULT:
        return default_path()
    if str(model) == ONE_STEP:
        return default_path().with_name("one_step.safetensors")
    if str(model) != LATENT:
        return Path(model)
    path = MODELS.expanduser() / f"{LATENT}.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"the model latent is not in {path.parent}: put latent.safetensors and latent.json there (docs/latent.md), "
            "or name a file with --model"
        )
    return path


def load_checkpoint(
    path: Path | str | None = None,
    device: torch.device | str = "cpu",
    prior: Checkpoint | None = None,
    *,
    later: bool = True,
) -> Checkpoint:
    """Load a .safetensors file and its card; None is the checkpoint that ships with the package. prior: of the later
    evaluations of a one-step model whose card asks for one; None is again the one that ships; later: whether there will
    be such evaluations.

    Raises CheckpointError when either file is missing, damaged or of another format.
    """
    found = _alone(path, device)
    if model_path(path) == default_path():
        found = replace(found, volumes=_alone(default_path().with_name(f"{VOLUMES}.safetensors"), device))
    asks = "sigma_max" in found.card.get("sampling", {}).get(ONE_STEP, {})
    if isinstance(found.model, ConditionalDenoiser) and asks:
        if not later:
            return found
        prior = prior or _alone(None, device)
        found.model.later = Later(prior.denoiser)
        return replace(found, model_id=f"{found.model_id}+{prior.model_id}", prior=prior)
    if prior is not None:
        raise CheckpointError(f"model {path} does not end with another one's evaluations: leave out the prior")
    return found


def _alone(path: Path | str | None, device: torch.device | str) -> Checkpoint:
    """See `load_checkpoint`: without a prior for later evaluations."""
    path = model_path(path)
    if path.is_file() and path.suffix in (".bin", ".ckpt", ".pkl", ".pt", ".pth"):
        raise CheckpointError(
            f"model file {path} is pickled, which can run any code: give NAME.safetensors with NAME.json beside it"
        )
    card_path = path.with_suffix(".json")
    for needed in (path, card_path):
        if not needed.is_file():
            what = "is a folder" if needed.is_dir() else "does not exist"
            raise CheckpointError(f"model file {needed} {what}: a model is NAME.safetensors with NAME.json beside it")
    try:
        card = from_json(card_path.read_text())
        config, checksum, rule = card["model"], card["checksum_sha256"], card["scale_rule"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"model card {card_path} is not a dpmrecon card ({error!r}): get the file again"
        ) from error
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != checksum:
        raise CheckpointError(
            f"model file {path} has checksum {found[:12]}, its card says {str(checksum)[:12]}: "
            "the file is damaged or belongs to another card, get both again"
        )
    if rule != RULE:
        raise CheckpointError(f"model {path} was trained with scale rule '{rule}', this version uses '{RULE}'")
    phase_rule = card.get("phase_rule", PHASE_RULE)  # earlier cards have none: those networks know any phase
    if phase_rule != PHASE_RULE:
        raise CheckpointError(
            f"model {path} was trained with phase rule '{phase_rule}', this version uses '{PHASE_RULE}'"
        )
    kind = KINDS.get(card.get("kind", DENOISER))  # the first cards name none
    if kind is None:
        raise CheckpointError(
            f"model {path} is of kind '{card['kind']}', this version knows {', '.join(KINDS)}: update dpmrecon"
        )
    try:
        model = kind.build(config)
        model.load_state_dict({name: value.float() for name, value in load(data).items()})
    except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"model file {path} does not hold the network its card describes ({reason})") from error
    model.requires_grad_(False).eval().to(device)
    model.bf16 = has_bfloat16(torch.device(device))
    if "sketcher" in card:
        model.sketcher, shipped = shipped_sketcher(device)
        if shipped != card["sketcher"]:
            raise CheckpointError(
                f"model {path} was trained on sketches of {card['sketcher']}, this version ships {shipped}: get the "
                "model of this version"
            )
    return Checkpoint(model, card, f"{card.get('name', path.stem)}-{found[:12]}", kind)


def shipped_sketcher(device: torch.device | str = "cpu") -> tuple[Sketcher, str]:
    """The model one-step that ships as the Sketcher of a latent model, and its id."""
    found = _alone(ONE_STEP, device)
    assert isinstance(found.model, ConditionalDenoiser)
    return Sketcher(found.model, SKETCH), found.model_id


def sampler_defaults(card: dict, sampler: str, contrast: str | None, acceleration: float | None) -> tuple[dict, str]:
    """A sampler's settings for a scan of this contrast and R (None: not known), and where they come from, in words.

    card["sampling"][sampler] serves every scan. card["sampling"]["by_contrast_R"] is a list of what `dpmtrain sweep`
    measured, {"sampler", "contrast", "R", "settings"}: its entry of the scan's contrast at the nearest R, the higher
    of two equally near ones, comes on top. Raises CheckpointError for an entry that lacks one of these.
    """
    sampling = card.get("sampling", {})
    base = sampling.get(sampler, {})
    entries = sampling.get("by_contrast_R", [])
    for entry in entries:
        if lacking := {"sampler", "contrast", "R", "settings"} - set(entry):
            raise CheckpointError(
                f"model card: an entry of sampling.by_contrast_R lacks {', '.join(sorted(lacking))}: "
                "get the card again, or let `dpmtrain sweep` measure"
            )
    fitting = [entry for entry in entries if entry["sampler"] == sampler and entry["contrast"] == contrast]
    if acceleration is None or not fitting:
        return base, "model card, for every scan" if base else "built in"
    nearest = min(fitting, key=lambda entry: (abs(entry["R"] - acceleration), -entry["R"]))
    return {**base, **nearest["settings"]}, (
        f"model card, for {contrast} at R = {nearest['R']:g} (the scan announces R = {acceleration:g})"
    )


def volume_defaults(card: dict, sampler: str, contrast: str | None) -> tuple[dict, int, str] | None:
    """A sampler's settings for a volume, the number of samples, and their source; None where the card has none.

    card["sampling"]["volume"] holds samples; under a sampler's name its settings that differ from those of slices;
    by_contrast, those that differ again.
    """
    sampling = card.get("sampling", {})
    volume = sampling.get("volume")
    if volume is None:
        return None
    own = volume.get("by_contrast", {}).get(contrast, {}) if sampler in volume else {}
    settings = {**sampling.get(sampler, {}), **volume.get(sampler, {}), **own}
    return settings, volume.get("samples", 1), f"model card, for volumes{f' of {contrast}' if own else ''}"


def uncertainty_defaults(
    card: dict, contrast: str | None, acceleration: float | None, *, volume: bool = False
) -> tuple[dict, int, str] | None:
    """Settings of the uncertainty mode, number of samples, and where they come from; None where the card has none,
    CheckpointError where it lacks the number. It is a sampler to `sampler_defaults`. Volumes have those of every scan
    and, on top, what card["sampling"]["volume"]["uncertainty"], where that is, has for their contrast."""
    sampling = card.get("sampling", {})
    own = sampling.get("volume", {}).get(UNCERTAINTY) if volume else None
    if own is not None:
        chosen = {**sampling.get(UNCERTAINTY, {}), **own.get(contrast, {})}
        source = f"model card, for volumes{f' of {contrast}' if contrast in own else ''}"
    else:
        chosen, source = sampler_defaults(card, UNCERTAINTY, contrast, acceleration)
    if UNCERTAINTY not in sampling:
        return None
    if "samples" not in chosen:
        raise CheckpointError(
            "model card: sampling.uncertainty lacks samples: get the card again, or use `dpmtrain calibrate`"
        )
    return {name: value for name, value in chosen.items() if name != "samples"}, chosen["samples"], source


def write_card(path: Path, **entries: Any) -> None:
    """Put entries, such as `sampling`, into the card of the checkpoint `path`; weights and all else of the card stay.

    Raises CheckpointError where the checkpoint is no file or cannot be loaded, or its card written, and leaves the card
    as it is.
    """
    if not path.is_file():  # the name of a model that ships loads too, and its card would be begun in this folder
        raise CheckpointError(f"{path} is no file, and nothing is written: give a copy of the model, NAME.safetensors")
    card = {**load_checkpoint(path).card, **entries}
    card_path = path.with_suffix(".json")
    try:
        _replace({card_path: _text(card)})
    except OSError as error:
        raise CheckpointError(
            f"model card {card_path} cannot be written ({error}): copy the model elsewhere"
        ) from error
