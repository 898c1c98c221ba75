"""DeepSeek-V3 (arXiv 2412.19437), and models of its shape such as Moonlight: latent attention, sigmoid scores with a
bias, shared experts, first layers dense."""

from __future__ import annotations

from typing import Any

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.huggingface import _config, _names

ARCHITECTURE = "DeepseekV3ForCausalLM"
NAMES = _names.OUTER | _names.LATENT | _names.EXPERTS | _names.DENSE | {
    "ffn.router.bias_E": ("mlp.gate.e_score_correction_bias",),
    "ffn.shared.gate_up.weight": ("mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight"),
    "ffn.shared.down.weight": ("mlp.shared_experts.down_proj.weight",),
}  # fmt: skip
SEQUENCE_LOSS = 0.0001  # the paper's alpha (section 4.2): the published config.json does not say
# mla.X is qk_Y, in the names of each; yarn_X is a field of rope_parameters.
WIDTHS = {
    "q_lora": "q_lora_rank", "kv_lora": "kv_lora_rank", "nope_dim": "qk_nope_head_dim", "rope_dim": "qk_rope_head_dim",
    "value_dim": "v_head_dim",
}  # fmt: skip
YARN = {
    "yarn_factor": "factor", "yarn_original": "original_max_position_embeddings", "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow", "yarn_mscale": "mscale", "yarn_mscale_all_dim": "mscale_all_dim",
}  # fmt: skip
ROUTER = {
    "normalise": "norm_topk_prob", "scale": "routed_scaling_factor", "groups": "n_group", "groups_kept": "topk_group",
}  # fmt: skip


def foreign(values: _config.Values) -> list[str]:
    """Fields of config.json that this model cannot do."""
    _, kind, scaling = _config.rope(values)
    unlike = {
        "rope_interleave": not values.get("rope_interleave", True),
        "scoring_func": values.get("scoring_func", "sigmoid") != "sigmoid",
        "topk_method": values.get("topk_method", "noaux_tc") != "noaux_tc",
        "moe_layer_freq": values.get("moe_layer_freq", 1) != 1,
        "n_shared_experts": not values.get("n_shared_experts"),
        "rope_parameters.attention_factor": scaling.get("attention_factor") is not None,
        "rope_parameters.factor": kind == "yarn" and not scaling.get("factor"),
        "rope_parameters.mscale": bool(scaling.get("mscale")) != bool(scaling.get("mscale_all_dim")),
        "rope_parameters.truncate": not scaling.get("truncate", True),
    }
    return _config.foreign(values, ("default", "yarn")) + [name for name, other in unlike.items() if other]


def from_config(values: _config.Values) -> ModelConfig:
    rope = _config.rope(values)
    options = {f"mla.{ours}": values.get(theirs) or 0 for ours, theirs in WIDTHS.items()}
    if rope.kind == "yarn":
        options |= {f"mla.{ours}": rope.scaling[theirs] for ours, theirs in YARN.items() if rope.scaling.get(theirs)}
    options |= {f"sigmoid.{ours}": values.get(theirs) or 1 for ours, theirs in ROUTER.items() if ours != "normalise"}
    options["sigmoid.normalise"] = bool(values.get("norm_topk_prob", True))
    head_dim = values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
    return ModelConfig(
        **_config.common(values) | {"head_dim": head_dim, "kv_heads": values["num_attention_heads"]},
        attention=("mla",),
        router="sigmoid",
        options=options,
        rope_theta=rope.theta,
        experts=values["n_routed_experts"],
        expert_width=values["moe_intermediate_size"],
        shared_experts=values["n_shared_experts"],
        dense_layers=min(values.get("first_k_dense_replace") or 0, values["num_hidden_layers"]),
        dense_width=values["intermediate_size"],
        balance_loss=0.0,
        sequence_loss=values.get("aux_loss_alpha", SEQUENCE_LOSS),
        z_loss=0.0,
    )


def unsaid(config: ModelConfig) -> list[str]:
    """Fields of ours that this family has no word for."""
    unlike = {
        "attention": set(config.attention) != {"mla"},
        "router": config.router != "sigmoid",
        "moe_every": config.moe_every > 1,
        "shared_experts": not config.shared_experts,
    }
    if not unlike["attention"]:
        temperature = _config.attention_options(config)
        one_of_two = bool(temperature.yarn_mscale) != bool(temperature.yarn_mscale_all_dim)
        unlike["mla.yarn_mscale"] = one_of_two and (temperature.yarn_mscale, temperature.yarn_mscale_all_dim) != (1, 0)
    return _config.unsaid(config) + [name for name, other in unlike.items() if other]


def to_config(config: ModelConfig, sequence: int) -> dict[str, Any]:
    attention, router = _config.attention_options(config), _config.router_options(config)
    values = _config.to_common(config, sequence)
    if attention.yarn_factor > 1:
        yarn = {theirs: getattr(attention, ours) for ours, theirs in YARN.items()}
        values["rope_parameters"] |= {"rope_type": "yarn"} | yarn
    return values | {
        **{theirs: getattr(attention, ours) for ours, theirs in WIDTHS.items()},
        **{theirs: getattr(router, ours) for ours, theirs in ROUTER.items()},
        "q_lora_rank": attention.q_lora or None,
        "num_key_value_heads": config.heads,
        "aux_loss_alpha": config.sequence_loss,
        "first_k_dense_replace": config.dense_layers,
        "intermediate_size": config.hidden_width,
        "moe_intermediate_size": config.expert_width,
        "n_routed_experts": config.experts,
        "n_shared_experts": config.shared_experts,
        "num_nextn_predict_layers": 0,
        "rope_interleave": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }
