"""The options of a reconstruction: one schema for the command line and for the properties of a Gadgetron chain."""

import argparse
import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadInputError

if TYPE_CHECKING:
    import torch

    from .prior.checkpoint import Checkpoint
    from .recon.sample import Sampling

Values = dict[str, Any]


@dataclass(frozen=True)
class Option:
    """One option. kind: str, int, float, Path, or bool for a switch (on/off as a property); minimum: smallest value.

    process: it says how the process is set up, so that a peer of a running service cannot change it.
    """

    name: str
    kind: type
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    metavar: str | None = None
    process: bool = False


OPTIONS = (
    Option("contrast", str, "flair, t1, t2, dwi or swi (default: from the scan's protocol name)"),
    Option("model", Path, "checkpoint .safetensors (default: the one that ships)", process=True),
    Option("sampler", str, "how the posterior is sampled (default: prox)", "prox", ("prox", "dps")),
    Option(
        "mode",
        str,
        "fast: the best image soonest; uncertainty: many samples whose spread tells the error (default: fast)",
        "fast",
        ("fast", "uncertainty"),
    ),
    Option("steps", int, "evaluations of the network per sample (default: the model's)", minimum=1),
    Option("samples", int, "posterior samples per slice; their mean is the image (default: the model's)", minimum=1),
    Option("seed", int, "of the samples: equal seeds give equal images (default: 0)", 0),
    Option("fallback", str, "CG-SENSE where the model fails (default: on)", "on", ("on", "off")),
    Option(
        "deadline",
        float,
        "for the whole scan: samples and steps are cut so that its last image is out in time",
        minimum=0,
        metavar="SECONDS",
    ),
    Option("device", str, "cpu, cuda, cuda:1 ... (default: cuda where there is one)", process=True),
    Option("batch", int, "images the network sees at once (default: 4 on a CPU, 32 on a GPU)", minimum=1, process=True),
    Option("combine-averages", bool, "one image of all averages", False),
)
_BY_NAME = {option.name: option for option in OPTIONS}
_SWITCH = {"on": True, "off": False, "true": True, "false": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a command line all options."""
    for option in OPTIONS:
        if option.kind is bool:
            parser.add_argument(f"--{option.name}", action="store_true", help=option.help)
        else:
            parser.add_argument(
                f"--{option.name}",
                type=option.kind,
                default=option.default,
                choices=option.choices or None,
                metavar=option.metavar,
                help=option.help,
            )


def from_arguments(args: argparse.Namespace) -> Values:
    """The options of a parsed command line. Raises BadInputError for a value out of range."""
    values = {option.name: getattr(args, option.name.replace("-", "_")) for option in OPTIONS}
    for name, value in values.items():
        _check(_BY_NAME[name], value, f"--{name}")
    return values


def from_properties(xml: bytes | str, defaults: Values | None = None, *, service: bool = False) -> Values:
    """The options that a chain's `<configuration>` gives as `<property name= value=/>`, over `defaults`.

    service: refuse options of the process. Raises BadInputError, in one sentence, for XML that is no configuration,
    for unknown properties (with the list of valid ones) and for bad values.
    """
    text = (xml.decode("utf-8", "replace") if isinstance(xml, bytes) else xml).rstrip("\0").strip()
    pairs = {}
    if text:
        try:
            root = ElementTree.fromstring(text)
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise BadInputError(f"the configuration is no XML ({error}): <configuration> is needed") from error
        if root.tag != "configuration":
            raise BadInputError(f"the configuration is a <{printable(root.tag)}>: <configuration> is needed")
        for child in root:
            name, value = child.get("name"), child.get("value")
            if child.tag != "property" or name is None or value is None:
                raise BadInputError(
                    f"the configuration holds <{printable(child.tag)}>: <property name= value=/> alone is taken"
                )
            if name in pairs:
                raise BadInputError(f"property '{printable(name)}' stands there twice: give it once")
            pairs[name] = value
    return from_pairs(pairs, defaults, service=service)


def from_pairs(pairs: dict[str, str], defaults: Values | None = None, *, service: bool = False) -> Values:
    """As `from_properties`, for names and values as text."""
    values = dict(defaults or {option.name: option.default for option in OPTIONS})
    valid = [option.name for option in OPTIONS if not (service and option.process)]
    for name, text in pairs.items():
        if name not in _BY_NAME:
            raise BadInputError(f"property '{printable(name)}' is unknown: valid ones are {', '.join(valid)}")
        option = _BY_NAME[name]
        if service and option.process:
            raise BadInputError(
                f"property '{name}' belongs to the command line of `dpmrecon serve`: valid ones here are "
                f"{', '.join(valid)}"
            )
        values[name] = _parsed(option, text)
        _check(option, values[name], f"property '{name}'")
    return values


def _parsed(option: Option, text: str) -> Any:
    try:
        return _SWITCH[text.lower()] if option.kind is bool else option.kind(text)
    except (ValueError, KeyError) as error:
        needed = {int: "a whole number", float: "a number", bool: "on or off"}[option.kind]
        raise BadInputError(f"property '{option.name}' is '{printable(text)}': give {needed}") from error


def _check(option: Option, value: Any, called: str) -> None:
    if value is None:
        return
    if option.choices and value not in option.choices:
        raise BadInputError(f"{called} is '{printable(value)}': valid ones are {', '.join(option.choices)}")
    if option.minimum is not None and not (value >= option.minimum and math.isfinite(value)):
        raise BadInputError(f"{called} is {value}: give {option.minimum} or more")


def printable(text: str) -> str:
    """What a peer wrote, short and harmless enough for a log."""
    return re.sub(r"[^\x21-\x7e]", "?", str(text))[:64]


# From options to what the reconstruction needs


def load(values: Values) -> "tuple[Checkpoint, torch.device]":
    """The checkpoint on its device. Raises BadInputError and CheckpointError."""
    from .prior.checkpoint import load_checkpoint

    device = device_of(values["device"])
    return load_checkpoint(values["model"], device), device


def device_of(name: str | None) -> "torch.device":
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(f"device '{name}' cannot be used ({reason}): leave --device out or name another") from error
    return device


def sampling_of(
    values: Values,
    checkpoint: "Checkpoint",
    device: "torch.device",
    contrast: str | None = None,
    acceleration: float | None = None,
) -> "Sampling":
    """How to sample a scan of this contrast and announced R (None: not known).

    What no option says is the model's own default, else that of SamplerSettings and one sample.
    """
    from .prior.checkpoint import sampler_defaults, uncertainty_defaults
    from .prior.samplers import settings_from
    from .recon.sample import Sampling

    if values["mode"] == "uncertainty":
        found = uncertainty_defaults(checkpoint.card) if values["sampler"] == "prox" else None
        if found is None:
            raise BadInputError(
                "mode uncertainty is for the sampler prox and a model whose card has settings for it: choose mode fast"
            )
        (chosen, samples), source = found, "model card, for the uncertainty mode"
    else:
        chosen, source = sampler_defaults(checkpoint.card, values["sampler"], contrast, acceleration)
        samples = checkpoint.card.get("sampling", {}).get("samples", 1)
    settings = settings_from(chosen)
    if values["steps"] is not None:
        settings = dataclasses.replace(settings, steps=values["steps"])
        source += "; steps by option"
    return Sampling(
        sampler=values["sampler"],
        settings=settings,
        samples=values["samples"] or samples,
        seed=values["seed"],
        batch=values["batch"] or (4 if device.type == "cpu" else 32),
        fallback=values["fallback"] == "on",
        deadline=values["deadline"],
        mode=values["mode"],
        source=source,
    )


def contrast_of(values: Values, checkpoint: "Checkpoint", header: Any) -> str | None:
    """The label that the options give, else the one that the protocol's name tells if the model knows it, else None.

    Raises BadInputError for a label that the model does not know.
    """
    from .mrd.header import contrast_label

    given = values["contrast"]
    if given is None:
        label = contrast_label(header)
        return label if label in checkpoint.denoiser.labels else None
    labels = [label for label in checkpoint.denoiser.labels if not label.startswith("spare")]
    if given not in labels:
        raise BadInputError(
            f"contrast '{printable(given)}' is unknown to the model: valid ones are {', '.join(labels)}"
        )
    return given
