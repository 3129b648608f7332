"""dpmrecon: accelerated brain MRI reconstructed with a diffusion prior, beside the scanner.

From arrays: `reconstruct`, `estimate_coil_maps`, `load_model`. From an ISMRMRD file: `open_scan`, `reconstruct_scan`,
`doctor`.
The parts: `ForwardModel`, `Problem`, `NoiseSource`, `SamplerSettings`, `sample_prox`, `sample_dps`. What is raised on
purpose is a `DpmreconError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

# Loaded when asked for: `dpmrecon --help` has no use for torch
_HOMES = {
    "Result": "api",
    "load_model": "api",
    "estimate_coil_maps": "api",
    "reconstruct": "api",
    "reconstruct_scan": "api",
    "doctor": "tools.doctor",
    "open_scan": "mrd.file",
    "Scan": "mrd.scan",
    "Checkpoint": "prior.checkpoint",
    "ForwardModel": "physics.forward",
    "Problem": "prior.problem",
    "NoiseSource": "prior.problem",
    "SamplerSettings": "prior.samplers.diffusion",
    "sample_prox": "prior.samplers.diffusion",
    "sample_dps": "prior.samplers.diffusion",
    "DpmreconError": "errors",
    "BadInputError": "errors",
    "UnsupportedScanError": "errors",
    "CheckpointError": "errors",
    "DeviceError": "errors",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .api import Result as Result
    from .api import estimate_coil_maps as estimate_coil_maps
    from .api import load_model as load_model
    from .api import reconstruct as reconstruct
    from .api import reconstruct_scan as reconstruct_scan
    from .errors import BadInputError as BadInputError
    from .errors import CheckpointError as CheckpointError
    from .errors import DeviceError as DeviceError
    from .errors import DpmreconError as DpmreconError
    from .errors import UnsupportedScanError as UnsupportedScanError
    from .mrd.file import open_scan as open_scan
    from .mrd.scan import Scan as Scan
    from .physics.forward import ForwardModel as ForwardModel
    from .prior.checkpoint import Checkpoint as Checkpoint
    from .prior.problem import NoiseSource as NoiseSource
    from .prior.problem import Problem as Problem
    from .prior.samplers.diffusion import SamplerSettings as SamplerSettings
    from .prior.samplers.diffusion import sample_dps as sample_dps
    from .prior.samplers.diffusion import sample_prox as sample_prox
    from .tools.doctor import doctor as doctor


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dpmrecon' has no attribute '{name}'")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
