"""What the families share of config.json: fields that mean the same in all, and what this model has not, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gristmill.base.errors import DataError
from gristmill.trainer.model import attention, kinds
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe import router

Values = Mapping[str, Any]
SEQUENCE_LOSS = 0.0001  # DeepSeek-V3's alpha (arXiv 2412.19437, section 4.2): its published config.json does not say
SIGMOID = {
    "normalise": "norm_topk_prob", "scale": "routed_scaling_factor", "groups": "n_group", "groups_kept": "topk_group",
}  # fmt: skip
"""sigmoid.X is Y."""


class Kind(NamedTuple):
    """What a field of config.json may be."""

    told: str
    fits: Callable[[Any], bool]


LARGEST = 1e30  # infinity, NaN and integers that no float holds are no numbers of a model


def _whole(least: int) -> Kind:
    return Kind(f"a whole number from {least}", lambda value: type(value) is int and least <= value < 2**31)


def _number(fits: Callable[[float], bool], told: str = "") -> Kind:
    return Kind(f"a number{told}", lambda value: type(value) in (int, float) and abs(value) < LARGEST and fits(value))


_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_FIELDS = {
    **dict.fromkeys(
        (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "max_position_embeddings", "intermediate_size", "moe_intermediate_size", "num_experts_per_tok",
            "num_experts", "num_local_experts", "n_routed_experts", "n_group", "topk_group", "decoder_sparse_step",
            "sliding_window", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        ),
        _whole(1),
    ),
    **dict.fromkeys(("first_k_dense_replace", "n_shared_experts", "q_lora_rank", "max_window_layers"), _whole(0)),
    **dict.fromkeys(
        ("rms_norm_eps", "aux_loss_alpha", "router_aux_loss_coef"), _number(lambda value: value >= 0, " from 0")
    ),
    **dict.fromkeys(("rope_theta", "routed_scaling_factor"), _number(lambda value: value > 0, " above 0")),
    **dict.fromkeys(
        (
            "attention_bias", "mlp_bias", "norm_topk_prob", "rope_interleave", "tie_word_embeddings",
            "use_sliding_window",
        ),
        _FLAG,
    ),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _OBJECT),
    "layer_types": Kind(
        "a list of words", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)
    ),
    "mlp_only_layers": Kind(
        "a list of whole numbers", lambda value: isinstance(value, list) and all(type(item) is int for item in value)
    ),
}  # fmt: skip
_ROPE_FIELDS = {
    **dict.fromkeys(("rope_theta", "factor"), _number(lambda value: value > 0, " above 0")),
    **dict.fromkeys(("beta_fast", "beta_slow"), _number(lambda value: value >= 0, " from 0")),
    **dict.fromkeys(("mscale", "mscale_all_dim", "attention_factor"), _number(lambda _: True)),
    "original_max_position_embeddings": _whole(1),
    "truncate": _FLAG,
}


def checked(values: Values, where: Path) -> dict[str, Any]:
    """config.json without its nulls, which say no more than a field that is absent.

    Raises:
        DataError: a field that the families read is of another type, or out of its range; says which.
    """
    values = _checked(values, _FIELDS, f"{where}: ")
    for section in {"rope_parameters", "rope_scaling"} & values.keys():
        values[section] = _checked(values[section], _ROPE_FIELDS, f"{where}: {section}.")
    return values


def _checked(values: Values, kinds_of: Mapping[str, Kind], where: str) -> dict[str, Any]:
    said = {name: value for name, value in values.items() if value is not None}
    for name, kind in kinds_of.items():
        if name in said and not kind.fits(said[name]):
            raise DataError(
                f"{where}{name} is {said[name]!r:.60}, wanted {kind.told}; mend it, or fetch the file again"
            )
    return said


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
        "attention_bias": values.get("attention_bias", False),
        "mlp_bias": values.get("mlp_bias", False),
        "quantization_config": "quantization_config" in values,
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
        "kv_heads": values.get("num_key_value_heads", heads),
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
    """Fields of ours that keep a model from having the same such attention in all layers."""
    unlike = []
    if len(set(config.attention)) > 1 or config.attention[0] not in ("gqa", "swa"):
        unlike.append("attention")
    elif attention_options(config).qk_norm != qk_norm:
        unlike.append(f"{config.attention[0]}.qk_norm")
    return unlike


def unlike_softmax(config: ModelConfig) -> list[str]:
    """Fields of ours that keep a model from having a plain softmax router, and routed experts alone."""
    if config.router != "softmax":
        return ["router"]
    options = router_options(config)
    unlike = {
        "softmax.scale": options.scale != 1,
        "softmax.groups_kept": options.groups_kept < options.groups,
        "shared_experts": config.shared_experts > 0,
    }
    return [name for name, other in unlike.items() if other]


def foreign_sigmoid(values: Values) -> list[str]:
    """Fields that ask for other experts than DeepSeek-V3's: a sigmoid router with a bias, shared experts, first layers
    dense."""
    unlike = {
        "scoring_func": values.get("scoring_func", "sigmoid") != "sigmoid",
        "topk_method": values.get("topk_method", "noaux_tc") != "noaux_tc",
        "moe_layer_freq": values.get("moe_layer_freq", 1) != 1,
        "n_shared_experts": not values.get("n_shared_experts"),
    }
    return [name for name, other in unlike.items() if other]


def sigmoid(values: Values, silent: Values) -> dict[str, Any]:
    """Fields of ours for such experts, the options of the router among them. silent: what transformers takes where
    config.json does not say."""
    values = {**silent, **values}
    return {
        "router": "sigmoid",
        "options": {f"sigmoid.{ours}": values[theirs] for ours, theirs in SIGMOID.items()},
        "experts": values["n_routed_experts"],
        "expert_width": values["moe_intermediate_size"],
        "shared_experts": values["n_shared_experts"],
        "dense_layers": min(values["first_k_dense_replace"], values["num_hidden_layers"]),
        "dense_width": values["intermediate_size"],
        "balance_loss": 0.0,
        "sequence_loss": values.get("aux_loss_alpha", SEQUENCE_LOSS),
        "z_loss": 0.0,
    }


def unlike_sigmoid(config: ModelConfig) -> list[str]:
    unlike = {
        "router": config.router != "sigmoid",
        "moe_every": config.moe_every > 1,
        "shared_experts = 0": not config.shared_experts,
    }
    # Theirs ranks every group by its two best experts, and so cannot run with groups of one.
    if config.router == "sigmoid" and config.experts // router_options(config).groups < 2:
        unlike["sigmoid.groups of one expert"] = True
    return [name for name, other in unlike.items() if other]


def to_sigmoid(config: ModelConfig) -> dict[str, Any]:
    options = router_options(config)
    return {theirs: getattr(options, ours) for ours, theirs in SIGMOID.items()} | {
        "aux_loss_alpha": config.sequence_loss,
        "first_k_dense_replace": config.dense_layers,
        "intermediate_size": config.hidden_width,
        "moe_intermediate_size": config.expert_width,
        "n_routed_experts": config.experts,
        "n_shared_experts": config.shared_experts,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


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
