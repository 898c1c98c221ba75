"""Our names of weights, and what Hugging Face's files hold in their place.

One of ours is made of one or more of theirs, joined by rows; where theirs names an {expert}, ours is a stack of all.
Inside a block the names stand behind `blocks.N.` here and `model.layers.N.` there.
"""

from __future__ import annotations

import re

Names = dict[str, tuple[str, ...]]

OUTER: Names = {
    "embedding_VD": ("model.embed_tokens.weight",),
    "norm.weight": ("model.norm.weight",),
    "head_VD": ("lm_head.weight",),
    "attention_norm.weight": ("input_layernorm.weight",),
    "ffn_norm.weight": ("post_attention_layernorm.weight",),
}
GROUPED_QUERY: Names = {
    "attention.query.weight": ("self_attn.q_proj.weight",),
    "attention.key.weight": ("self_attn.k_proj.weight",),
    "attention.value.weight": ("self_attn.v_proj.weight",),
    "attention.output.weight": ("self_attn.o_proj.weight",),
}
QUERY_KEY_NORMS: Names = {
    "attention.query_norm.weight": ("self_attn.q_norm.weight",),
    "attention.key_norm.weight": ("self_attn.k_norm.weight",),
}
LATENT: Names = {
    "attention.query.weight": ("self_attn.q_proj.weight",),
    "attention.query_down.weight": ("self_attn.q_a_proj.weight",),
    "attention.query_norm.weight": ("self_attn.q_a_layernorm.weight",),
    "attention.query_up.weight": ("self_attn.q_b_proj.weight",),
    "attention.key_value_down.weight": ("self_attn.kv_a_proj_with_mqa.weight",),
    "attention.key_value_norm.weight": ("self_attn.kv_a_layernorm.weight",),
    "attention.key_value_up.weight": ("self_attn.kv_b_proj.weight",),
    "attention.output.weight": ("self_attn.o_proj.weight",),
}
EXPERTS: Names = {
    "ffn.router.weight": ("mlp.gate.weight",),
    "ffn.experts.gate_up_EFD": ("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight"),
    "ffn.experts.down_EDF": ("mlp.experts.{expert}.down_proj.weight",),
}
BIASED_AND_SHARED: Names = {
    "ffn.router.bias_E": ("mlp.gate.e_score_correction_bias",),
    "ffn.shared.gate_up.weight": ("mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight"),
    "ffn.shared.down.weight": ("mlp.shared_experts.down_proj.weight",),
}
DENSE: Names = {
    "ffn.network.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "ffn.network.down.weight": ("mlp.down_proj.weight",),
}


def theirs(names: Names, ours: str) -> tuple[str, ...]:
    """What one of our tensors is made of, in full; {expert} is left in."""
    inside = re.fullmatch(r"blocks\.(\d+)\.(.+)", ours)
    if inside is None:
        return names[ours]
    return tuple(f"model.layers.{inside[1]}.{name}" for name in names[inside[2]])
