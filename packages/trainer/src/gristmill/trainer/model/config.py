"""The shape of a model, and what follows from it: parameters, active parameters, FLOPs per token. No torch here.

One idea: a preset is a TOML file of these fields; a run names a preset and overrides single fields.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources

from gristmill.base.config import from_mapping, nearest
from gristmill.base.errors import UsageError


@dataclass(frozen=True)
class ModelConfig:
    """A decoder with grouped-query attention and SwiGLU experts in every layer (Qwen3-MoE, arXiv 2505.09388)."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    expert_width: int
    rope_theta: float = 10_000.0
    tie_embeddings: bool = True
    norm_eps: float = 1e-6
    aux_loss: float = 0.01  # load-balance coefficient, Switch Transformer (arXiv 2101.03961, section 2.2)
    z_loss: float = 0.001  # router z-loss coefficient, ST-MoE (arXiv 2202.08906, section 3)
    attention: str = "gqa"
    router: str = "softmax"

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "experts", "top_k", "expert_width"):
            if getattr(self, name) < 1:
                raise UsageError(f"model.{name} must be at least 1 (got {getattr(self, name)})")
        if self.heads % self.kv_heads:
            raise UsageError(f"model.heads ({self.heads}) must be a multiple of model.kv_heads ({self.kv_heads})")
        if self.top_k > self.experts:
            raise UsageError(f"model.top_k ({self.top_k}) must not exceed model.experts ({self.experts})")
        if self.head_dim % 2:
            raise UsageError(f"model.head_dim ({self.head_dim}) must be even: rotary positions turn pairs")
        for name in ("width", "expert_width"):  # grouped_mm wants rows of a multiple of 16 bytes
            if getattr(self, name) % 8:
                raise UsageError(f"model.{name} must be a multiple of 8 (got {getattr(self, name)})")

    @property
    def parameters(self) -> int:
        """All weights."""
        return self._count(self.experts)

    @property
    def active_parameters(self) -> int:
        """The weights that one token meets: all but those of the experts it is not sent to."""
        return self._count(self.top_k)

    def flops_per_token(self, sequence: int) -> int:
        """Training FLOPs per token: 6 per active matmul weight, and causal attention (arXiv 2204.02311, appendix B)."""
        norms = self.layers * (2 * self.width + 2 * self.head_dim) + self.width
        lookup = 0 if self.tie_embeddings else self.vocab * self.width
        matmul = self.active_parameters - norms - lookup
        return 6 * matmul + 6 * self.layers * self.heads * self.head_dim * sequence

    def _count(self, experts: int) -> int:
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        norms = 2 * self.width + 2 * self.head_dim
        layer = attention + norms + self.width * self.experts + experts * 3 * self.width * self.expert_width
        embeddings = self.vocab * self.width * (1 if self.tie_embeddings else 2)
        return embeddings + self.layers * layer + self.width


@dataclass(frozen=True)
class ModelSection:
    """What a run says of its model: a preset, and the fields that differ. Vocabulary: the data's, if not given."""

    preset: str = "tiny"
    vocab: int | None = None
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    experts: int | None = None
    top_k: int | None = None
    expert_width: int | None = None
    rope_theta: float | None = None
    tie_embeddings: bool | None = None
    norm_eps: float | None = None
    aux_loss: float | None = None
    z_loss: float | None = None
    attention: str | None = None
    router: str | None = None


def presets() -> list[str]:
    folder = resources.files("gristmill.trainer.model").joinpath("presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def resolve(section: ModelSection, vocab: int) -> ModelConfig:
    """The preset under the section's overrides; `vocab` is the data's vocabulary size, used where none is set.

    Raises:
        UsageError: no such preset, or fields that do not fit together.
    """
    import tomllib

    if section.preset not in presets():
        raise UsageError(f"model.preset: no preset {section.preset!r}{nearest(section.preset, presets())}")
    file = resources.files("gristmill.trainer.model").joinpath("presets", f"{section.preset}.toml")
    values = {"vocab": vocab, **tomllib.loads(file.read_text(encoding="utf-8"))}
    overrides = {key: value for key, value in dataclasses.asdict(section).items() if key != "preset"}
    values |= {key: value for key, value in overrides.items() if value is not None}
    return from_mapping(ModelConfig, values, f"preset {section.preset}")
