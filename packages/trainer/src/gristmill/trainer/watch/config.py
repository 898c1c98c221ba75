"""What is looked at while a run trains. Nothing here decides a weight. No torch here, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gristmill.base.config import check_range


@dataclass(frozen=True)
class HealthConfig:
    """What is measured of the model beside its loss. Loads, entropies and gradient norms are logged at every step."""

    every: int = 50
    """Steps between those that also measure how far the weights moved and how the routers' logits spread; such a step
    needs a copy of the weights. 0: never."""

    def __post_init__(self) -> None:
        check_range("health.every", self.every)


@dataclass(frozen=True)
class SamplesConfig:
    """Text that the model writes while it trains, from the same prompts each time; takes a tokenizer."""

    every: int = 500
    """Steps between samples; the last step always has some. 0: only the last."""
    prompts: tuple[str, ...] = ("", "The")
    """Texts to go on from; an empty one begins a document."""
    tokens: int = 48
    """At most this many for each prompt. 0: no samples."""
    temperature: float = 0.0
    """0: the likeliest token each time."""
    top_k: int = 50
    """With a temperature, draw from this many likeliest tokens."""

    def __post_init__(self) -> None:
        check_range("samples.every", self.every)
        check_range("samples.tokens", self.tokens)
        check_range("samples.temperature", self.temperature)
        check_range("samples.top_k", self.top_k, 1)


@dataclass(frozen=True)
class TrackersConfig:
    """Who else is told the numbers of events.jsonl. One that fails is left out; training goes on."""

    use: tuple[Literal["wandb", "trackio", "tensorboard"], ...] = ()
    """wandb and tensorboard write into the run's folder, trackio where it keeps its own runs (TRACKIO_DIR)."""
    project: str = "gristmill"
    """For wandb and trackio: the project that the run is shown in."""
    name: str = ""
    """Of the run; "": its folder's name."""
    online: bool = False
    """wandb: send while training (needs `wandb login`); else `wandb sync` sends the run's folder later."""
