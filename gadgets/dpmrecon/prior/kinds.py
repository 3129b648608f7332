"""Kinds of models: what a card names as its `kind`, and the kind's samplers.

A new kind is a network, a file of samplers, and a KINDS entry.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from ..errors import BadInputError
from .conditional import ConditionalDenoiser
from .denoiser import Denoiser
from .latent import LatentModel
from .problem import NoiseSource, Problem, Stop
from .samplers.diffusion import SamplerSettings, sample_dps, sample_prox
from .samplers.latent import LatentSettings, sample_latent, sample_latent_hard
from .samplers.one_step import OneStepSettings, sample_one_step


class Settings(Protocol):
    """A frozen dataclass: its fields are a sampler's keys in a card."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def steps(self) -> int:
        """Evaluations of the model for a sample."""

    @property
    def seeded(self) -> bool:
        """Whether samples of other seeds are other images."""


class Model(Protocol):
    """A network of any kind: a torch module on its device, in evaluation mode."""

    labels: tuple[str, ...]
    bf16: bool

    @property
    def device(self) -> torch.device: ...

    def of_contrast(self, label: str | None, count: Callable[[int], object] = ...) -> Any:
        """What its samplers evaluate, the contrast given; None is the unlabelled prior. count: called with the
        number of images of each evaluation."""

    def warm_up(self) -> None:
        """One evaluation of nothing."""


def settings_from(values: Mapping[str, Any], settings: type[Any] = SamplerSettings) -> Any:
    """Settings from a card or options; an unknown key is a BadInputError that lists the valid ones."""
    valid = [field.name for field in dataclasses.fields(settings)]
    unknown = sorted(set(values) - set(valid))
    if unknown:
        raise BadInputError(f"sampler settings {unknown} are unknown: valid ones are {', '.join(valid)}")
    return settings(**values)


@dataclass(frozen=True)
class Sampler:
    """A way to draw from the posterior.

    sample(problem, prior, settings, noise, stop) -> (batch, rows, cols) complex64 at scale 1; prior is what the
    model's `of_contrast` gives, settings an object of the type `settings`. volumes: it takes those too.
    """

    settings: type[Any]
    sample: Callable[[Problem, Any, Any, NoiseSource, Stop], torch.Tensor]
    volumes: bool = False

    def settings_from(self, values: Mapping[str, Any]) -> Any:
        """See `settings_from`."""
        return settings_from(values, self.settings)


@dataclass(frozen=True)
class Kind:
    """build: the network from the card's `model`, weights still to be loaded; samplers: by name, the default first."""

    build: Callable[[dict], Any]
    samplers: Mapping[str, Sampler]

    def sampler(self, name: str | None) -> tuple[str, Sampler]:
        """Name and sampler; None is the default. Raises BadInputError for one that this kind does not have."""
        name = name or next(iter(self.samplers))
        if name not in self.samplers:
            its = next((f"; it is that of --model {NAMES[of]}" for of in NAMES if name in KINDS[of].samplers), "")
            raise BadInputError(f"the model has no sampler '{name}': valid ones are {', '.join(self.samplers)}{its}")
        return name, self.samplers[name]


DENOISER, ONE_STEP, LATENT = "denoiser", "one-step", "latent"
NAMES = {DENOISER: "default", ONE_STEP: "one-step", LATENT: "latent"}  # of each kind, as --model names it
KINDS: dict[str, Kind] = {
    DENOISER: Kind(
        Denoiser,
        {"prox": Sampler(SamplerSettings, sample_prox, volumes=True), "dps": Sampler(SamplerSettings, sample_dps)},
    ),
    ONE_STEP: Kind(ConditionalDenoiser, {"one-step": Sampler(OneStepSettings, sample_one_step, volumes=True)}),
    LATENT: Kind(
        LatentModel,
        {
            "latent": Sampler(LatentSettings, sample_latent),
            "latent-hard": Sampler(LatentSettings, sample_latent_hard),
        },
    ),
}
