"""What the families share of config.json: fields that mean the same in all, and what this model has not, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gristmill.trainer.model import attention, kinds
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe import router

Values = Mapping[str, Any]


class Rope(NamedTuple):
    """kind: default, yarn, ...; scaling: the fields that only this kind has."""

    theta: float
    kind: str
    scaling: Mapping[str, Any]


def rope(values: Values, theta: float = 10_000.0) -> Rope:
    """Of either spelling: rope_parameters (transformers 5), or rope_theta beside rope_scaling. `theta` is the family's
    own, where neither says."""
    told = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    kind = told.pop("rope_type", told.pop("type", "default"))
    told.pop("type", None)
    return Rope(float(told.pop("rope_theta", values.get("rope_theta", theta))), kind, told)


def foreign(values: Values, rope_kinds: tuple[str, ...] = ("default",)) -> list[str]:
    """Fields of config.json that ask for what no family here has."""
    unlike = {
        "hidden_act": values.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(values.get("attention_bias")),
        "mlp_bias": bool(values.get("mlp_bias")),
        "quantization_config": values.get("quantization_config") is not None,
        "rope_parameters" if "rope_parameters" in values else "rope_scaling": rope(values).kind not in rope_kinds,
    }
    return [name for name, other in unlike.items() if other]


def common(values: Values) -> dict[str, Any]:
    """Fields of ours that every family has under the same names."""
    heads = values["num_attention_heads"]
    return {
        "vocab": values["vocab_size"],
        "width": values["hidden_size"],
        "layers": values["num_hidden_layers"],
        "heads": heads,
        "kv_heads": values.get("num_key_value_heads") or heads,
        "head_dim": values.get("head_dim") or values["hidden_size"] // heads,
        "top_k": values["num_experts_per_tok"],
        "tie_embeddings": values.get("tie_word_embeddings", False),
        "norm_eps": values["rms_norm_eps"],
    }


def unsaid(config: ModelConfig) -> list[str]:
    """Fields of ours that no family has a word for."""
    unlike = {
        "embedding_scale with tie_embeddings": config.tie_embeddings and config.embedding_scale != 1,
        "output_norm": config.output_norm,
        "residual": config.residual,
        "pyramid": bool(config.pyramid),
        "capacity_eval": bool(config.capacity_eval),
    }
    return [name for name, other in unlike.items() if other]


def to_common(config: ModelConfig, sequence: int) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "initializer_range": 0.02,
        "max_position_embeddings": sequence,
        "num_attention_heads": config.heads,
        "num_experts_per_tok": config.top_k,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "vocab_size": config.vocab,
    }


def attention_options(config: ModelConfig) -> Any:
    """Of the first layer's kind."""
    name = config.attention[0]
    return kinds.options(name, kinds.find(attention.__name__, name, "model.attention").Options, config)


def router_options(config: ModelConfig) -> Any:
    module = kinds.find(router.__name__, config.router, "model.router")
    return kinds.options(config.router, module.Options, config)


def grouped_query(window: int | None, qk_norm: bool) -> dict[str, Any]:
    """Our attention and its options: everything is looked at, or the nearest `window` positions."""
    kind = "swa" if window else "gqa"
    options = {} if qk_norm else {f"{kind}.qk_norm": False}
    return {"attention": (kind,), "options": options | ({"swa.window": window} if window else {})}


def unlike_grouped_query(config: ModelConfig, qk_norm: bool) -> list[str]:
    """Fields of ours that keep a model from having this family's attention and a softmax router's weights."""
    unlike = []
    if len(set(config.attention)) > 1 or config.attention[0] not in ("gqa", "swa"):
        unlike.append("attention")
    elif attention_options(config).qk_norm != qk_norm:
        unlike.append(f"{config.attention[0]}.qk_norm")
    return unlike + unlike_softmax(config)


def unlike_softmax(config: ModelConfig) -> list[str]:
    if config.router != "softmax":
        return ["router"]
    options = router_options(config)
    unlike = {
        "softmax.scale": options.scale != 1,
        "softmax.groups_kept": options.groups_kept < options.groups,
        "shared_experts": config.shared_experts > 0,
    }
    return [name for name, other in unlike.items() if other]


def window(config: ModelConfig) -> int | None:
    return attention_options(config).window if config.attention[0] == "swa" else None


def spacing(sparse: Iterable[int], layers: int) -> tuple[int, int] | None:
    """(dense_layers, moe_every) that put experts into just these layers; None where no such two do."""
    wanted = list(sparse)
    for every in range(1, layers + 1):
        for dense in range(layers + 1):
            if list(range(dense + every - 1, layers, every)) == wanted:
                return dense, every
    return None
