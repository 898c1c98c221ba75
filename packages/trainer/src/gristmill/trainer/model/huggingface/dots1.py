"""dots.llm1 (arXiv 2506.05767): grouped-query attention with norms on queries and keys, over everything or a window by
layer; experts as in DeepSeek-V3: sigmoid scores with a bias, shared experts, first layers dense."""

from __future__ import annotations

from typing import Any

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.huggingface import _config, _names

ARCHITECTURE = "Dots1ForCausalLM"
NAMES = (
    _names.OUTER | _names.GROUPED_QUERY | _names.QUERY_KEY_NORMS | _names.EXPERTS | _names.BIASED_AND_SHARED
    | _names.DENSE
)  # fmt: skip
SILENT = {
    "norm_topk_prob": False, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0,
}  # fmt: skip


def foreign(values: _config.Values) -> list[str]:
    """Fields of config.json that this model cannot do."""
    mixed = "sliding_attention" in _layer_types(values) and "full_attention" in _layer_types(values)
    return _config.foreign(values) + _config.foreign_sigmoid(values) + (["layer_types"] if mixed else [])


def from_config(values: _config.Values) -> dict[str, Any]:
    """Fields of ModelConfig."""
    window = values["sliding_window"] if "sliding_attention" in _layer_types(values) else None
    about, attention = _config.sigmoid(values, SILENT), _config.grouped_query(window, True)
    options = attention["options"] | about["options"]
    theta = _config.rope(values).theta
    return _config.common(values) | attention | about | {"options": options, "rope_theta": theta}


def unsaid(config: ModelConfig) -> list[str]:
    """Fields of ours that this family has no word for."""
    return _config.unsaid(config) + _config.unlike_grouped_query(config, True) + _config.unlike_sigmoid(config)


def to_config(config: ModelConfig, sequence: int) -> dict[str, Any]:
    window = _config.window(config)
    return _config.to_common(config, sequence) | _config.to_sigmoid(config) | {
        "head_dim": config.head_dim,
        "layer_types": ["sliding_attention" if window else "full_attention"] * config.layers,
        "max_window_layers": 0 if window else config.layers,
        "sliding_window": window,
    }  # fmt: skip


def _layer_types(values: _config.Values) -> list[str]:
    """Of each layer; as transformers has it where config.json does not say."""
    layers = values["num_hidden_layers"]
    first = values.get("max_window_layers", layers) if values.get("sliding_window") else layers
    default = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    return values.get("layer_types") or default
