"""The shape of a model. No torch here.

One idea: a preset is a TOML file of these fields; a run names a preset and overrides single fields. What only one kind
of attention or router reads stands in that kind's file, as its `Options`, and is given in `options`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import tomllib
import typing
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any

import tyro.conf

from gristmill.base.config import check_range, from_mapping, nearest
from gristmill.base.errors import UsageError


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder whose layers are attention and a feed-forward part: experts behind a router, or one dense."""

    vocab: int
    """Tokens of the vocabulary."""
    width: int
    """Of the residual stream."""
    layers: int
    """Blocks."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key-value heads; a divisor of heads."""
    head_dim: int
    """Width of a head."""
    experts: int
    """Routed experts of a layer."""
    top_k: int
    """Experts per token."""
    expert_width: int
    """Hidden width of one expert."""
    attention: tuple[str, ...] = ("gqa",)
    """Kinds of attention, repeated over the layers: swa swa swa gqa has every fourth layer look at everything."""
    router: str = "softmax"
    """Kind of router."""
    options: dict[str, int | float | bool | str] = field(default_factory=dict)
    """What only one kind reads, as kind.option: swa.window 512."""
    rope_theta: float = 10_000.0
    """Base of the rotary angles."""
    tie_embeddings: bool = True
    """The output head is the embedding table."""
    norm_eps: float = 1e-6
    """Added to the mean square under the root."""
    pyramid: tuple[int, ...] = ()
    """Experts of each layer that has a router, where they are not all alike (PR-MoE, arXiv 2201.05596)."""
    shared_experts: int = 0
    """Experts that every token goes through (DeepSeekMoE, arXiv 2401.06066)."""
    dense_layers: int = 0
    """The first so many layers have one dense network instead of experts."""
    moe_every: int = 1
    """Of the layers after those, every so-manieth has experts; the others are dense (moe_layer_frequency)."""
    dense_width: int = 0
    """Hidden width of the dense layers, and of residual's network; 0: top_k times expert_width."""
    residual: bool = False
    """A dense network beside the experts, and a learnt share of each per token (PR-MoE, arXiv 2201.05596)."""
    capacity: float = 0.0
    """In training, an expert takes at most so many times its even share of tokens, and drops the rest; 0: all."""
    capacity_eval: float = 0.0
    """The same outside training."""
    balance_loss: float = 0.0
    """Coefficient of the load-balance loss over a micro-batch (Switch, arXiv 2101.03961, eq. 4)."""
    sequence_loss: float = 0.01
    """Coefficient of the load-balance loss within each sequence (DeepSeek-V3, arXiv 2412.19437, eq. 17)."""
    z_loss: float = 0.001
    """Coefficient of the router's z-loss (ST-MoE, arXiv 2202.08906, eq. 5)."""
    adapt: bool = False
    """Coefficients of the router's losses rise while load or gradient norm is outside its band (options adapt.*)."""
    embedding_scale: float = 1.0
    """Embeddings times this; 10.667 in the small-model recipe."""
    logit_scale: float = 1.0
    """Logits times this; 0.125 in the small-model recipe."""
    bungee: float = 0.0
    """Initial value of a learnt scalar on the experts' output; 0: none. 2.0 in the small-model recipe."""
    output_norm: bool = False
    """A norm on what the feed-forward part adds to the residual stream."""
    base_width: int = 0
    """Width at which the learning rate was tuned: rates of hidden matrices, and the logits, scale by base_width / width
    (muP, arXiv 2203.03466, table 8); 0: they do not."""

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "experts", "top_k", "expert_width"):
            if getattr(self, name) < 1:
                raise UsageError(f"model.{name} must be at least 1 (got {getattr(self, name)})")
        if self.heads % self.kv_heads:
            raise UsageError(f"model.heads ({self.heads}) must be a multiple of model.kv_heads ({self.kv_heads})")
        if self.top_k > min(self.pyramid or (self.experts,)):
            raise UsageError(
                f"model.top_k ({self.top_k}) must not exceed model.experts ({min(self.pyramid or (self.experts,))})"
            )
        if self.head_dim % 2:
            raise UsageError(f"model.head_dim ({self.head_dim}) must be even: rotary positions turn pairs")
        for name in ("width", "expert_width", "dense_width"):  # grouped_mm wants rows of a multiple of 16 bytes
            if getattr(self, name) % 8:
                raise UsageError(f"model.{name} must be a multiple of 8 (got {getattr(self, name)})")
        for name in ("shared_experts", "dense_width", "base_width", "capacity", "capacity_eval", "bungee"):
            check_range(f"model.{name}", getattr(self, name))
        for name in ("balance_loss", "sequence_loss", "z_loss"):
            check_range(f"model.{name}", getattr(self, name))
        check_range("model.rope_theta", self.rope_theta, 2)  # below, angles grow with the pair, or are not defined
        check_range("model.norm_eps", self.norm_eps, 0, 1)
        for name in ("embedding_scale", "logit_scale"):
            check_range(f"model.{name}", getattr(self, name), 1e-6)
        check_range("model.moe_every", self.moe_every, 1)
        check_range("model.dense_layers", self.dense_layers, 0, self.layers)
        if self.dense_layers < self.layers and not self.moe_layers:
            raise UsageError(
                f"model.moe_every ({self.moe_every}): none of the {self.layers - self.dense_layers} layers after the "
                f"dense ones would have experts; for a dense model set model.dense_layers {self.layers}"
            )
        if self.bungee and self.output_norm:
            raise UsageError(
                "model.bungee: model.output_norm right after it takes its scale away; leave one of them out"
            )
        if not self.attention:
            raise UsageError("model.attention is empty; name at least one kind, such as gqa")
        if self.pyramid and len(self.pyramid) != len(self.moe_layers):
            raise UsageError(
                f"model.pyramid names {len(self.pyramid)} layers, and {len(self.moe_layers)} of the "
                f"{self.layers} have experts"
            )

    @property
    def moe_layers(self) -> list[int]:
        """The layers that have experts."""
        return list(range(self.dense_layers + self.moe_every - 1, self.layers, self.moe_every))

    def experts_of(self, layer: int) -> int:
        """Routed experts of a layer; 0 in a dense one."""
        where = self.moe_layers
        if layer not in where:
            return 0
        return self.pyramid[where.index(layer)] if self.pyramid else self.experts

    @property
    def output_scale(self) -> float:
        """Of the logits: logit_scale, and with base_width muP's output multiplier."""
        return self.logit_scale * (self.base_width / self.width if self.base_width else 1.0)

    @property
    def hidden_width(self) -> int:
        """Of dense networks."""
        return self.dense_width or self.top_k * self.expert_width


def _help(cls: type) -> dict[str, str]:
    """The strings that stand under a class's fields."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        named.target.id: " ".join(told.value.value.split())
        for named, told in itertools.pairwise(definition.body)
        if isinstance(named, ast.AnnAssign) and isinstance(named.target, ast.Name)
        and isinstance(told, ast.Expr) and isinstance(told.value, ast.Constant) and isinstance(told.value.value, str)
    }  # fmt: skip


if TYPE_CHECKING:

    @dataclass(frozen=True)
    class ModelOverrides:
        """Fields of a model that differ from a preset."""

        def __init__(self, **overrides: Any) -> None: ...

    @dataclass(frozen=True)
    class ModelSection:
        """What a run says of its model: a preset, and the fields that differ."""

        preset: str = "tiny"

        def __init__(self, preset: str = "tiny", **overrides: Any) -> None: ...
else:  # every field of ModelConfig, none of them given
    _told, _types = _help(ModelConfig), typing.get_type_hints(ModelConfig)
    _overrides = [
        (name, Annotated[kind | None, tyro.conf.arg(help=_told[name])], None) for name, kind in _types.items()
    ]
    _preset = ("preset", Annotated[str, tyro.conf.arg(help="A preset; other fields override its own.")], "tiny")
    _here = {"__module__": __name__}
    ModelOverrides = dataclasses.make_dataclass("ModelOverrides", _overrides, frozen=True, namespace=_here)
    ModelSection = dataclasses.make_dataclass("ModelSection", [_preset, *_overrides], frozen=True, namespace=_here)


def name_of(section: ModelSection) -> str:
    """What to call the model: its preset, or what it differs from."""
    differs = any(getattr(section, field.name) is not None for field in dataclasses.fields(ModelConfig))
    return f"own model (from {section.preset})" if differs else section.preset


def presets() -> list[str]:
    folder = resources.files("gristmill.trainer.model").joinpath("presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def resolve(section: ModelSection, vocab: int | None = None) -> ModelConfig:
    """The preset under the section's overrides; options are joined. `vocab` is the data's vocabulary size: it stands
    where neither sets one.

    Raises:
        UsageError: no such preset, or fields that do not fit together.
    """
    if section.preset not in presets():
        raise UsageError(f"model.preset: no preset {section.preset!r}{nearest(section.preset, presets())}")
    file = resources.files("gristmill.trainer.model").joinpath("presets", f"{section.preset}.toml")
    values = tomllib.loads(file.read_text(encoding="utf-8"))
    given = {name: value for name, value in dataclasses.asdict(section).items() if value is not None}
    if vocab is not None:
        values = {"vocab": vocab} | values
    elif "vocab" not in values | given:
        raise UsageError(f"preset {section.preset} takes its vocabulary from the data; give --model.vocab N")
    options = values.get("options", {}) | given.pop("options", {})
    del given["preset"]
    return from_mapping(ModelConfig, values | given | {"options": options}, f"preset {section.preset}")
