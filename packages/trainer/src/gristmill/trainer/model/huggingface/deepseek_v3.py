"""DeepSeek-V3 (arXiv 2412.19437), and models of its shape such as Moonlight: latent attention, sigmoid scores with a
bias, shared experts, first layers dense."""

from __future__ import annotations

from typing import Any

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.huggingface import _config, _names

ARCHITECTURE = "DeepseekV3ForCausalLM"
NAMES = _names.OUTER | _names.LATENT | _names.EXPERTS | _names.BIASED_AND_SHARED | _names.DENSE
# mla.X is qk_Y, in the names of each; yarn_X is a field of rope_parameters.
WIDTHS = {
    "q_lora": "q_lora_rank", "kv_lora": "kv_lora_rank", "nope_dim": "qk_nope_head_dim", "rope_dim": "qk_rope_head_dim",
    "value_dim": "v_head_dim",
}  # fmt: skip
SILENT = {
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3,
}  # fmt: skip
YARN = {
    "yarn_factor": "factor", "yarn_original": "original_max_position_embeddings", "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow", "yarn_mscale": "mscale", "yarn_mscale_all_dim": "mscale_all_dim",
}  # fmt: skip


def foreign(values: _config.Values) -> list[str]:
    """Fields of config.json that this model cannot do."""
    _, kind, scaling = _config.rope(values)
    unlike = {
        "rope_interleave": not values.get("rope_interleave", True),
        "rope_parameters.attention_factor": "attention_factor" in scaling,
        "rope_parameters.factor": kind == "yarn" and not scaling.get("factor"),
        "rope_parameters.mscale": bool(scaling.get("mscale")) != bool(scaling.get("mscale_all_dim")),
        "rope_parameters.original_max_position_embeddings": (
            kind == "yarn" and "original_max_position_embeddings" not in scaling
        ),
        "rope_parameters.truncate": not scaling.get("truncate", True),
    }
    own = [name for name, other in unlike.items() if other]
    return _config.foreign(values, ("default", "yarn")) + own + _config.foreign_sigmoid(values)


def from_config(values: _config.Values) -> dict[str, Any]:
    """Fields of ModelConfig."""
    rope = _config.rope(values)
    options = {f"mla.{ours}": values.get(theirs, 0) for ours, theirs in WIDTHS.items()}
    if rope.kind == "yarn":
        options |= {f"mla.{ours}": rope.scaling[theirs] for ours, theirs in YARN.items() if rope.scaling.get(theirs)}
    about = _config.sigmoid(values, SILENT)
    head_dim = values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
    common = _config.common(values) | {"head_dim": head_dim, "kv_heads": values["num_attention_heads"]}
    return common | about | {
        "attention": ("mla",), "options": options | about["options"], "rope_theta": rope.theta,
    }  # fmt: skip


def unsaid(config: ModelConfig) -> list[str]:
    """Fields of ours that this family has no word for."""
    unlike = {"attention": set(config.attention) != {"mla"}}
    if not unlike["attention"]:
        temperature = _config.attention_options(config)
        weights = (temperature.yarn_mscale, temperature.yarn_mscale_all_dim)
        # Theirs reads the two together, and where one is 0 takes (1, 0).
        unlike["mla.yarn_mscale"] = not all(weights) and weights != (1, 0)
    own = [name for name, other in unlike.items() if other]
    return _config.unsaid(config) + own + _config.unlike_sigmoid(config)


def to_config(config: ModelConfig, sequence: int) -> dict[str, Any]:
    attention = _config.attention_options(config)
    values = _config.to_common(config, sequence)
    if attention.yarn_factor > 1:
        yarn = {theirs: getattr(attention, ours) for ours, theirs in YARN.items()}
        values["rope_parameters"] |= {"rope_type": "yarn"} | yarn
    widths = {theirs: getattr(attention, ours) for ours, theirs in WIDTHS.items()}
    return values | _config.to_sigmoid(config) | widths | {
        "q_lora_rank": attention.q_lora or None,
        "num_key_value_heads": config.heads,
        "num_nextn_predict_layers": 0,
        "rope_interleave": True,
    }  # fmt: skip
