"""The optimiser's configuration. No torch here, so that --help is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError

Kind = Literal["adamw", "muon", "adafactor"]
GROUPS = ("router", "experts", "dense", "embeddings", "norms")
_MATRICES = ("experts", "dense")  # what Muon is for, as in Moonlight (arXiv 2502.16982): the rest is AdamW's
_NOT_DECAYED = ("embeddings", "norms")


@dataclass(frozen=True)
class GroupConfig:
    """What one group of weights has of its own. What is not given is as in [optimizer]."""

    kind: Kind | None = None
    """Its optimiser."""
    learning_rate: float | None = None
    """At its peak; 0: these weights stay as they are."""
    weight_decay: float | None = None
    """Not given: that of [optimizer]; of embeddings and norms, 0."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move: kinds of optimiser, by group of weights, under a schedule of learning rates."""

    kind: Kind = "adamw"
    """adamw (arXiv 1711.05101). muon (arXiv 2502.16982): experts and dense alone, with AdamW for the others.
    adafactor (arXiv 1804.04235): factored state; its rates are relative to the weights' size."""
    learning_rate: float = 3e-3
    """At its peak, after warm-up."""
    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    """After warm-up, down to `final`: by a half cosine, by a line, or (wsd, arXiv 2404.06395) only in the last part."""
    warmup: float = 0.05
    """Share of all steps, rising linearly from 0."""
    decay: float = 0.2
    """wsd: share of all steps, the last, in which the rate falls."""
    decay_shape: Literal["sqrt", "linear"] = "sqrt"
    """wsd: how it falls, as 1 - sqrt(share done) (arXiv 2405.18392) or as a line."""
    final: float = 0.1
    """The last step's learning rate, as a share of the peak."""
    weight_decay: float = 0.1
    """On matrices; norms and embeddings are left alone."""
    beta1: float = 0.9
    """AdamW: how much of the mean of gradients a step keeps."""
    beta2: float = 0.95
    """AdamW: how much of the mean of their squares."""
    eps: float = 1e-8
    """AdamW: added to the root of that."""
    momentum: float = 0.95
    """Muon: how much of the mean of gradients a step keeps."""
    clip: float = 1.0
    """The gradient's norm is cut to this; 0: never."""
    clip_by: Literal["all", "group"] = "all"
    """The norm of all gradients together, or of each group's alone."""
    qk_clip: float = 0.0
    """After a step, the query and key weights of a head whose largest score was above this are scaled down (QK-clip,
    arXiv 2507.20534; 100 there), in gqa and swa without norms, and mla; 0: never."""
    router: GroupConfig = field(default_factory=GroupConfig)
    """The routers' matrices."""
    experts: GroupConfig = field(default_factory=GroupConfig)
    """The routed experts."""
    dense: GroupConfig = field(default_factory=GroupConfig)
    """All other matrices: attention, dense and shared networks."""
    embeddings: GroupConfig = field(default_factory=GroupConfig)
    """The embedding table, and the head's."""
    norms: GroupConfig = field(default_factory=GroupConfig)
    """Norms, and all else that is no matrix."""

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "final", "momentum"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"optimizer.{name} must be between 0 and 1 (got {getattr(self, name)})")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UsageError(f"optimizer.{name} must be at least 0 and below 1 (got {getattr(self, name)})")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"optimizer.learning_rate must be positive (got {self.learning_rate})")
        for name in ("eps", "weight_decay", "clip", "qk_clip"):
            check_range(f"optimizer.{name}", getattr(self, name))
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise UsageError(f"optimizer.warmup ({self.warmup}) and optimizer.decay ({self.decay}) exceed all steps")
        for group in GROUPS:
            for name in ("learning_rate", "weight_decay"):
                check_range(f"optimizer.{group}.{name}", getattr(self.of(group), name))
        if self.norms.kind == "muon":
            raise UsageError("optimizer.norms.kind: muon is for matrices; give adamw or adafactor")

    def of(self, group: str) -> Settings:
        """What holds for one of GROUPS."""
        own: GroupConfig = getattr(self, group)
        kind = self.kind if self.kind != "muon" or group in _MATRICES else "adamw"
        decay = 0.0 if group in _NOT_DECAYED else self.weight_decay
        return Settings(
            kind=own.kind or kind,
            learning_rate=self.learning_rate if own.learning_rate is None else own.learning_rate,
            weight_decay=decay if own.weight_decay is None else own.weight_decay,
        )


@dataclass(frozen=True)
class Settings:
    """A group's own, with nothing left open."""

    kind: Kind
    learning_rate: float
    weight_decay: float
