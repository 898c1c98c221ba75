"""The optimiser's configuration. No torch here, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gristmill.base.errors import UsageError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) under warm-up and cosine decay."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = 3e-3
    """At its peak, after warm-up."""
    warmup: float = 0.05
    """Share of all steps, rising linearly from 0."""
    final: float = 0.1
    """The last step's learning rate, as a share of the peak."""
    weight_decay: float = 0.1
    """On matrices; norms and embeddings are left alone."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    """The gradient's norm is cut to this; 0: never."""

    def __post_init__(self) -> None:
        for name, high in (("warmup", 1.0), ("final", 1.0), ("beta1", 1.0), ("beta2", 1.0)):
            if not 0.0 <= getattr(self, name) <= high:
                raise UsageError(f"optimizer.{name} must be between 0 and 1 (got {getattr(self, name)})")
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.clip < 0:
            raise UsageError("optimizer: learning_rate must be positive, weight_decay and clip not negative")
