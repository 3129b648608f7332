"""The options of a reconstruction: one schema for Python, the command line and the properties of a Gadgetron chain."""

import argparse
import dataclasses
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadInputError


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its default. kind: str, int, float, Path, or bool for a switch (on/off as a
    property); several: values of `choices`, separated by commas; minimum: smallest value.

    process: it says how the process is set up, so that a peer of a running service cannot change it; raw: it says how
    raw acquisitions are taken, which a Gadgetron's own gadgets have done.
    """

    kind: type
    help: str
    choices: tuple[str, ...] = ()
    several: bool = False
    minimum: float | None = None
    metavar: str | None = None
    process: bool = False
    raw: bool = False


def _option(default: Any, kind: type, help: str, choices: tuple[str, ...] = (), **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"option": Option(kind, help, choices, **more)})


@dataclass(frozen=True)
class Options:
    """The options of a reconstruction. None: the model or the scan decides."""

    contrast: str | None = _option(None, str, "flair, t1, t2, dwi or swi (default: from the scan's protocol name)")
    model: Path | None = _option(
        None,
        Path,
        "checkpoint .safetensors, or the name one-step or latent (default: the one that ships)",
        process=True,
    )
    sampler: str | None = _option(
        None,
        str,
        "how to sample the posterior (default: the model's, prox); one-step: in few steps, first of the model one-step",
        choices=("prox", "dps", "one-step", "latent", "latent-hard"),
    )
    mode: str = _option(
        "fast",
        str,
        "fast: the best image soonest; uncertainty: many samples whose spread tells the error (default: fast)",
        choices=("fast", "uncertainty"),
    )
    steps: int | None = _option(None, int, "evaluations of the network per sample (default: the model's)", minimum=1)
    samples: int | None = _option(
        None,
        int,
        "samples per slice, whose mean is the image (default: the model's); one where all would be alike",
        minimum=1,
    )
    seed: int = _option(0, int, "of the samples: equal seeds give equal images (default: 0)")
    fallback: str = _option("on", str, "CG-SENSE where the model fails (default: on)", choices=("on", "off"))
    gate: str = _option(
        "warn",
        str,
        "ask whether prior and data agree: off, warn, or fallback, which gives CG-SENSE where an image is not to be "
        "trusted (default: warn)",
        choices=("off", "warn", "fallback"),
    )
    adapt: bool = _option(
        False,
        bool,
        "fit the prior to the scan first, where it is no head: slices alone; `dpmrecon estimate` tells the cost",
    )
    deadline: float | None = _option(
        None,
        float,
        "for the whole scan: samples and steps are cut so that its last image is out in time",
        minimum=0,
        metavar="SECONDS",
    )
    device: str | None = _option(None, str, "cpu, cuda, cuda:1 ... (default: cuda where there is one)", process=True)
    batch: int | None = _option(
        None, int, "images the network sees at once (default: 4 on a CPU, 32 on a GPU)", minimum=1, process=True
    )
    precision: str = _option(
        "auto",
        str,
        "of the network: auto is bfloat16 where the device has it, whose images differ by some 1e-4 between hosts; "
        "float32 is slower (default: auto)",
        choices=("auto", "float32"),
        process=True,
    )
    combine_averages: bool = _option(
        False, bool, "one image of all averages; those of diffusion scans keep the phase that each has"
    )
    conjugate: str = _option(
        "auto",
        str,
        "conjugate k-space, which turns the images by 180 degrees; auto: by the scanner's vendor (default: auto)",
        choices=("auto", "on", "off"),
        raw=True,
    )
    noise: Path | None = _option(
        None, Path, "file with the noise measurement (default: the scan's own)", metavar="FILE", raw=True
    )
    coils: str | None = _option(None, str, "channels to use, as 0-5,7 (default: all)", metavar="NUMBERS", raw=True)
    ignore_flags: str | None = _option(
        None,
        str,
        "leave lines out that bear one of these flags (default: navigators and the like)",
        metavar="NAMES",
        raw=True,
    )
    group: str | None = _option(None, str, "of the file (default: the one that holds a scan)", metavar="NAME", raw=True)
    set: str | None = _option(
        None,
        str,
        "header values in place of the scan's own, as encoding.reconSpace.fieldOfView_mm.x=230, semicolons between",
        metavar="PATH=VALUE",
        raw=True,
    )
    output: str = _option(
        "magnitude",
        str,
        "magnitude, phase (the smooth phase included) and complex images, those named (default: magnitude)",
        choices=("magnitude", "phase", "complex"),
        several=True,
        metavar="KIND,...",
    )
    b_values: str | None = _option(
        None,
        str,
        "s/mm^2 for each value of the counter that carries them, B@X/Y/Z with the direction (default: from the header)",
        metavar="COUNTER:B0,B1,...",
    )
    vein_phase: str = _option(
        "auto",
        str,
        "sign of the phase of veins, which SWI makes dark; auto: by the scanner's vendor (default: auto)",
        choices=("auto", "positive", "negative"),
    )
    reformat: str | None = _option(
        None,
        str,
        "DICOM of a volume in this plane too, beside the acquired one: axial, coronal or sagittal; what a peer is sent "
        "stays as acquired",
        choices=("axial", "coronal", "sagittal"),
        metavar="PLANE",
    )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The kinds of image that are wanted."""
        return _values(self.output)


# by the names that command line and chains have for them
OPTIONS: dict[str, Option] = {
    field.name.replace("_", "-"): field.metadata["option"] for field in dataclasses.fields(Options)
}
_NEEDED = {int: "a whole number", float: "a number", bool: "on or off", str: "a text"}
_SWITCH = {"on": True, "off": False, "true": True, "false": False}


def add_arguments(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Give a command line all options but those that are named."""
    default = Options()
    for name, option in OPTIONS.items():
        if name in without:
            parser.set_defaults(**{_field(name): getattr(default, _field(name))})
        elif option.kind is bool:
            parser.add_argument(f"--{name}", action="store_true", help=option.help)
        else:
            parser.add_argument(
                f"--{name}",
                type=option.kind,
                default=getattr(default, _field(name)),
                choices=None if option.several else option.choices or None,
                metavar=option.metavar,
                help=option.help,
            )


def from_arguments(args: argparse.Namespace) -> Options:
    """The options of a parsed command line. Raises BadInputError for a value out of range."""
    values = {_field(name): getattr(args, _field(name)) for name in OPTIONS}
    for name in OPTIONS:
        _check(name, values[_field(name)], f"--{name}")
    return Options(**values)


def from_properties(xml: bytes | str, defaults: Options | None = None, *, service: bool = False) -> Options:
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


def from_pairs(pairs: dict[str, str], defaults: Options | None = None, *, service: bool = False) -> Options:
    """As `from_properties`, for names and values as text."""
    valid = ", ".join(name for name, option in OPTIONS.items() if not (service and option.process))
    given: dict[str, Any] = {}
    for name, text in pairs.items():
        if name not in OPTIONS:
            raise BadInputError(f"property '{printable(name)}' is unknown: valid ones are {valid}")
        if service and OPTIONS[name].process:
            raise BadInputError(f"property '{name}' belongs to the command line: valid ones here are {valid}")
        given[_field(name)] = _parsed(name, text)
        _check(name, given[_field(name)], f"property '{name}'")
    return dataclasses.replace(defaults or Options(), **given)


def checked(options: Options) -> Options:
    """The same options, numbers of numpy or torch as Python's own. Raises BadInputError where one has a value that it
    cannot have."""
    options = dataclasses.replace(options, **{_field(name): plain(getattr(options, _field(name))) for name in OPTIONS})
    for name, option in OPTIONS.items():
        value = getattr(options, _field(name))
        kinds = (int, float) if option.kind is float else (option.kind,)
        taken = isinstance(value, kinds) and (option.kind is bool or not isinstance(value, bool))
        if not (taken or (value is None and getattr(Options, _field(name)) is None)):
            needed = "True or False" if option.kind is bool else _NEEDED.get(option.kind, option.kind.__name__)
            raise BadInputError(f"{_field(name)} is {shown(value)}: give {needed}")
        _check(name, value, _field(name))
    return options


def plain(value: Any) -> Any:
    """A single number of numpy or torch, as `x.std()` gives, as Python's own; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def path_of(name: str, value: Any) -> Path:
    """What was given as `name`. Raises BadInputError where it is no path."""
    if not isinstance(value, str | os.PathLike):
        raise BadInputError(f"{name} is {shown(value)}: give the path of a file")
    return Path(value)


def out_folder(text: str) -> Path:
    """A folder of the command line. Empty, as a shell's variable that is not set, is not the folder one is in."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a folder, . is the one you are in")
    return Path(text)


def shown(value: Any) -> str:
    """What was given, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 64 and "\n" not in text else f"of type {type(value).__name__}"


def printable(text: str) -> str:
    """What a peer wrote, short and harmless enough for a log."""
    return re.sub(r"[^\x21-\x7e]", "?", str(text))[:64]


def _field(name: str) -> str:
    return name.replace("-", "_")


def _values(text: str) -> tuple[str, ...]:
    return tuple(value.strip() for value in text.split(","))


def _parsed(name: str, text: str) -> Any:
    kind = OPTIONS[name].kind
    try:
        return _SWITCH[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise BadInputError(f"property '{name}' is '{printable(text)}': give {_NEEDED[kind]}") from error


def _check(name: str, value: Any, called: str) -> None:
    option = OPTIONS[name]
    if value is None:
        return
    if option.choices and not set(_values(value) if option.several else [value]) <= set(option.choices):
        several = ", or several of them with commas between" if option.several else ""
        raise BadInputError(f"{called} is '{printable(value)}': valid ones are {', '.join(option.choices)}{several}")
    if option.minimum is not None and not (value >= option.minimum and math.isfinite(value)):
        raise BadInputError(f"{called} is {value}: give {option.minimum} or more")
