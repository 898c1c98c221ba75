"""Our weights as Hugging Face Qwen3MoE, and back, with equal logits. Needs neither transformers nor its code.

The files hold one tensor per expert, as Qwen's own releases do; our stacked weights are cut and stacked again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gristmill.base.errors import DataError
from gristmill.base.files import atomic_path, read_json, write_json
from gristmill.trainer.model.config import ModelConfig

_OUTER = {"embedding_VD": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head_VD": "lm_head.weight"}
_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "attention.query_norm.weight": "self_attn.q_norm.weight",
    "attention.key_norm.weight": "self_attn.k_norm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn.router.weight": "mlp.gate.weight",
}
_EXPERTS = {"ffn.experts.gate_up_EFD": ("gate_proj", "up_proj"), "ffn.experts.down_EDF": ("down_proj",)}


def export(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    sequence: int,
    eos: int,
    tokenizer: Path | None,
) -> None:
    """Write config.json, generation_config.json, model.safetensors and, if given, the tokenizer's files into `folder`.

    `sequence` is the training window; `eos` ends documents, and stands before each one's first token.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(to_huggingface(config, weights), temporary, metadata={"format": "pt"})
    ids = {"bos_token_id": eos, "eos_token_id": eos}
    write_json(folder / "generation_config.json", ids)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
        from tokenizers import Tokenizer

        token = Tokenizer.from_file(str(tokenizer)).id_to_token(eos)
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": token, "eos_token": token}
        write_json(folder / "tokenizer_config.json", about | {"model_max_length": sequence})
    write_json(folder / "config.json", _config(config, sequence) | ids)


def load(folder: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """A Hugging Face Qwen3MoE folder as our configuration and weights (whatever number of safetensors files it has).

    Raises:
        DataError: another architecture, or parts that this model has not (dense layers, biases, scaled positions).
    """
    where = folder / "config.json"
    values = read_json(where)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    unlike = {
        "model_type": values.get("model_type") != "qwen3_moe",
        "norm_topk_prob": not values.get("norm_topk_prob", False),
        "attention_bias": values.get("attention_bias", False),
        "use_sliding_window": values.get("use_sliding_window", False),
        "mlp_only_layers": values.get("mlp_only_layers", []),
        "decoder_sparse_step": values.get("decoder_sparse_step", 1) != 1,
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "hidden_act": values.get("hidden_act", "silu") != "silu",
    }
    if any(unlike.values()):
        names = ", ".join(f"{name} = {values.get(name)!r}" for name, other in unlike.items() if other)
        raise DataError(
            f"{where}: not a model of this shape ({names}); only Qwen3MoE with experts in every layer can be read"
        )
    theta = values.get("rope_theta", rope.get("rope_theta", 10_000.0))
    heads = values["num_attention_heads"]
    config = ModelConfig(
        vocab=values["vocab_size"],
        width=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=heads,
        kv_heads=values.get("num_key_value_heads", heads),
        head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        experts=values.get("num_experts") or values["num_local_experts"],
        top_k=values["num_experts_per_tok"],
        expert_width=values["moe_intermediate_size"],
        rope_theta=float(theta),
        tie_embeddings=values.get("tie_word_embeddings", False),
        norm_eps=values["rms_norm_eps"],
        balance_loss=values.get("router_aux_loss_coef", 0.001),
    )
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return config, from_huggingface(config, tensors, str(folder))


def to_huggingface(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict under Hugging Face's names, one tensor per expert and map."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if match is None:
            result[_OUTER[name]] = tensor.contiguous()
        elif match[2] in _LAYER:
            result[f"model.layers.{match[1]}.{_LAYER[match[2]]}"] = tensor.contiguous()
        else:
            parts = _EXPERTS[match[2]]
            for expert, stacked in enumerate(tensor):
                for part, piece in zip(parts, stacked.chunk(len(parts))):
                    result[_expert(match[1], expert, part)] = piece.clone(memory_format=torch.contiguous_format)
    return result


def from_huggingface(config: ModelConfig, tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Hugging Face's tensors as our state dict, in fp32."""

    def take(name: str) -> torch.Tensor:
        if name not in tensors:
            raise DataError(f"{where}: tensor {name!r} is missing; the download may be incomplete")
        return tensors[name].float()

    result = {ours: take(theirs) for ours, theirs in _OUTER.items() if ours != "head_VD" or not config.tie_embeddings}
    for layer in range(config.layers):
        result |= {f"blocks.{layer}.{ours}": take(f"model.layers.{layer}.{theirs}") for ours, theirs in _LAYER.items()}
        for ours, parts in _EXPERTS.items():
            stacked = [
                torch.cat([take(_expert(layer, expert, part)) for part in parts]) for expert in range(config.experts)
            ]
            result[f"blocks.{layer}.{ours}"] = torch.stack(stacked)
    return result


def _expert(layer: int | str, expert: int, part: str) -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"


def _config(config: ModelConfig, sequence: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "dtype": "float32",
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "initializer_range": 0.02,
        "intermediate_size": config.expert_width * config.top_k,  # of dense layers, of which there are none
        "max_position_embeddings": sequence,
        "mlp_only_layers": [],
        "moe_intermediate_size": config.expert_width,
        "norm_topk_prob": True,
        "num_attention_heads": config.heads,
        "num_experts": config.experts,
        "num_experts_per_tok": config.top_k,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "router_aux_loss_coef": config.balance_loss,
        "sliding_window": None,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab,
    }
