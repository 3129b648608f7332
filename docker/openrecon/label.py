"""What OpenRecon reads of the image: `python docker/openrecon/label.py` writes label.json beside this file.

The parameters of its card are options of dpmrecon's one schema, those that a user at the scanner may want. `--base64`
prints the label's value for the image, `--name` the name that image and package bear. schema.json is what a label must
be: version 1.1.0, as public OpenRecon repositories have it, in our words.
"""

import argparse
import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

from dpmrecon.contrasts import CONTRAST_LABELS
from dpmrecon.hosts.parameters import AUTO, CONFIG, OPEN
from dpmrecon.options import OPTIONS, Options
from dpmrecon.version import __version__

HERE = Path(__file__).parent
VENDOR = NAME = "dpmrecon"
PORT = 9002
# 13 beside the configuration; what is left out is for files, for experts, or does nothing to images that go back
PARAMETERS = (
    *("contrast", "mode", "sampler", "samples", "steps", "seed", "deadline"),
    *("gate", "fallback", "output", "combine-averages", "conjugate", "vein-phase"),
)
# samplers that the model has which ships; labels that it knows
CHOICES = {"sampler": ("prox", "dps"), "contrast": CONTRAST_LABELS}
LARGEST: dict[str, int] = {"samples": 64, "steps": 1000, "seed": 2**31 - 1, "deadline": 3600}
UNITS = {"deadline": "s"}
KINDS = {int: "int", float: "double", bool: "boolean", str: "string"}
RESEARCH = "RESEARCH: not for diagnostic use."


def label(*, gpu: bool) -> dict[str, Any]:
    """gpu: the image can use one."""
    return {
        "general": {
            "name": {"en": NAME},
            "version": __version__,
            "vendor": VENDOR,
            "information": {"en": f"Accelerated brain MRI, reconstructed with a diffusion prior. {RESEARCH}"},
            "id": NAME,
            "regulatory_information": {
                "device_trade_name": NAME,
                "production_identifier": __version__,
                "manufacturer_address": "",
                "made_in": "",
                "manufacture_date": "",
                "material_number": f"{NAME}_{__version__}",
                "gtin": "",
                "udi": "",
                "safety_advices": RESEARCH,
                "special_operating_instructions": "Read the manual.",
                "additional_relevant_information": "",
            },
        },
        "reconstruction": {
            "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"},
            "port": PORT,
            "emitter": "raw",
            "injector": "image",
            "can_process_adjustment_data": False,
            "can_use_gpu": gpu,
            "min_count_required_gpus": 0,
            "min_required_gpu_memory": 4096 if gpu else 0,
            "min_required_memory": 8192,  # as the compose file gives the service
            "min_count_required_cpu_cores": 4,
            "content_qualification_type": "RESEARCH",
        },
        "parameters": [
            {
                "id": CONFIG,
                "type": "choice",
                "label": {"en": CONFIG},
                "values": [{"id": "dpm", "name": {"en": "dpmrecon"}}],
                "default": "dpm",
            },
            *map(parameter, PARAMETERS),
        ],
    }


def parameter(name: str) -> dict[str, Any]:
    """An option as a field of the card."""
    option = OPTIONS[name]
    (default,) = [field.default for field in dataclasses.fields(Options) if field.name == name.replace("-", "_")]
    found: dict[str, Any] = {
        "id": name.replace("-", ""),
        "type": KINDS[option.kind],
        "label": {"en": name.replace("-", " ")},
        "information": {"en": option.help},
    }
    choices = CHOICES.get(name, () if option.several else option.choices)
    if choices:
        values = [*([AUTO] if name in OPEN else []), *choices]
        named = [{"id": value, "name": {"en": value}} for value in values]
        return {**found, "type": "choice", "values": named, "default": AUTO if default is None else default}
    if name not in LARGEST:
        return {**found, "default": default}
    zero = option.kind(0)  # the model or the scan decides
    limits = {"minimum": zero, "maximum": option.kind(LARGEST[name]), "default": default or zero}
    return {**found, **limits, **({"unit": {"en": UNITS[name]}} if name in UNITS else {})}


def package_name() -> str:
    """Of image and package, as the scanner wants them."""
    return f"OpenRecon_{VENDOR}_{NAME}_V{__version__}"


def image_tag() -> str:
    return f"OpenRecon_{VENDOR}_{NAME}:V{__version__}".lower()


def text(*, gpu: bool) -> str:
    return json.dumps(label(gpu=gpu), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="of an image that can use one")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--base64", action="store_true", help="print the label's value")
    shown.add_argument("--name", action="store_true", help="print the package's name")
    shown.add_argument("--tag", action="store_true", help="print the image's name")
    args = parser.parse_args()
    if args.base64:
        print(base64.b64encode(text(gpu=args.gpu).encode()).decode())
    elif args.name or args.tag:
        print(package_name() if args.name else image_tag())
    else:
        (HERE / "label.json").write_text(text(gpu=args.gpu), encoding="utf-8")


if __name__ == "__main__":
    main()
