"""Mixtral (arXiv 2401.04088): grouped-query attention without norms on queries and keys, softmax top-k, experts in
every layer."""

from __future__ import annotations

from typing import Any

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.huggingface import _config, _names

ARCHITECTURE = "MixtralForCausalLM"
_EXPERT = "block_sparse_moe.experts.{expert}"
NAMES = _names.OUTER | _names.GROUPED_QUERY | {
    "ffn.router.weight": ("block_sparse_moe.gate.weight",),
    "ffn.experts.gate_up_EFD": (f"{_EXPERT}.w1.weight", f"{_EXPERT}.w3.weight"),
    "ffn.experts.down_EDF": (f"{_EXPERT}.w2.weight",),
}  # fmt: skip
THETA = 1_000_000.0  # of a config.json that does not say


def foreign(values: _config.Values) -> list[str]:
    """Fields of config.json that this model cannot do."""
    return _config.foreign(values)


def from_config(values: _config.Values) -> dict[str, Any]:
    """Fields of ModelConfig."""
    return _config.common(values) | _config.grouped_query(values.get("sliding_window"), False) | {
        "rope_theta": _config.rope(values, THETA).theta,
        "experts": values["num_local_experts"],
        "expert_width": values["intermediate_size"],
        "balance_loss": values.get("router_aux_loss_coef", 0.001),
        "sequence_loss": 0.0,
        "z_loss": 0.0,
    }  # fmt: skip


def unsaid(config: ModelConfig) -> list[str]:
    """Fields of ours that this family has no word for."""
    unlike = _config.unsaid(config) + _config.unlike_grouped_query(config, False) + _config.unlike_softmax(config)
    if config.router == "softmax" and not _config.router_options(config).normalise:
        unlike.append("softmax.normalise")
    if len(config.moe_layers) < config.layers:
        unlike.append("dense_layers" if config.dense_layers else "moe_every")
    return unlike


def to_config(config: ModelConfig, sequence: int) -> dict[str, Any]:
    return _config.to_common(config, sequence) | {
        "head_dim": config.head_dim,
        "intermediate_size": config.expert_width,
        "num_local_experts": config.experts,
        "router_aux_loss_coef": config.balance_loss,
        "sliding_window": _config.window(config),
    }
