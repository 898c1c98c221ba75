"""Qwen3-MoE (arXiv 2505.09388): grouped-query attention with norms on queries and keys, softmax top-k, dense layers.

What Gristmill's own presets are written as: vLLM and transformers know it.
"""

from __future__ import annotations

from typing import Any

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.huggingface import _config, _names

ARCHITECTURE = "Qwen3MoeForCausalLM"
NAMES = _names.OUTER | _names.GROUPED_QUERY | _names.QUERY_KEY_NORMS | _names.EXPERTS | _names.DENSE


def foreign(values: _config.Values) -> list[str]:
    """Fields of config.json that this model cannot do."""
    mixed = values.get("use_sliding_window") and values.get("max_window_layers")  # a window in some layers alone
    scattered = _config.spacing(_sparse(values), values["num_hidden_layers"]) is None
    unlike = {"max_window_layers": bool(mixed), "mlp_only_layers": scattered}
    return _config.foreign(values) + [name for name, other in unlike.items() if other]


def from_config(values: _config.Values) -> dict[str, Any]:
    """Fields of ModelConfig."""
    spacing = _config.spacing(_sparse(values), values["num_hidden_layers"])
    assert spacing is not None, "foreign() refuses it"
    dense_layers, moe_every = spacing
    about = _config.grouped_query(values.get("sliding_window") if values.get("use_sliding_window") else None, True)
    normalise = {} if values.get("norm_topk_prob", False) else {"softmax.normalise": False}
    return _config.common(values) | about | {
        "options": about["options"] | normalise,
        "rope_theta": _config.rope(values).theta,
        "experts": values["num_experts" if "num_experts" in values else "num_local_experts"],
        "expert_width": values["moe_intermediate_size"],
        "dense_layers": dense_layers,
        "moe_every": moe_every,
        "dense_width": values["intermediate_size"] if dense_layers or moe_every > 1 else 0,
        "balance_loss": values.get("router_aux_loss_coef", 0.001),
        "sequence_loss": 0.0,
        "z_loss": 0.0,
    }  # fmt: skip


def unsaid(config: ModelConfig) -> list[str]:
    """Fields of ours that this family has no word for."""
    return _config.unsaid(config) + _config.unlike_grouped_query(config, True) + _config.unlike_softmax(config)


def to_config(config: ModelConfig, sequence: int) -> dict[str, Any]:
    window = _config.window(config)
    return _config.to_common(config, sequence) | {
        "decoder_sparse_step": 1,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_width,
        "mlp_only_layers": [layer for layer in range(config.layers) if not config.experts_of(layer)],
        "moe_intermediate_size": config.expert_width,
        "norm_topk_prob": _config.router_options(config).normalise,
        "num_experts": config.experts,
        "router_aux_loss_coef": config.balance_loss,
        "sliding_window": window,
        "use_sliding_window": window is not None,
    }


def _sparse(values: _config.Values) -> list[int]:
    """The layers that have experts."""
    step, dense = values.get("decoder_sparse_step", 1), values.get("mlp_only_layers", [])
    return [n for n in range(values["num_hidden_layers"]) if n not in dense and (n + 1) % step == 0]
