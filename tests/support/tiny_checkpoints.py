"""Random small models of Hugging Face's families, with sizes that do not divide one another and weights that matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.support.byte_tokenizer import byte_tokenizer

from gristmill.trainer import exchange
from gristmill.trainer.checkpoints.tensor_file import InMemory
from gristmill.trainer.model import huggingface, precision
from gristmill.trainer.model.config import ModelConfig, ModelSection, resolve
from gristmill.trainer.model.transformer import Transformer

VOCAB = 257  # bytes and an end of document, 256
_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2,
    "num_experts_per_tok": 2, "max_position_embeddings": 128, "eos_token_id": 256, "bos_token_id": 256,
}  # fmt: skip
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
_QWEN3 = _COMMON | _ROPE | {
    "num_hidden_layers": 4, "head_dim": 16, "num_experts": 5, "moe_intermediate_size": 24, "intermediate_size": 40,
    "norm_topk_prob": True,
}  # fmt: skip
_MIXTRAL = _COMMON | _ROPE | {
    "num_hidden_layers": 2, "head_dim": 16, "num_local_experts": 5, "intermediate_size": 24, "rms_norm_eps": 1e-5,
}  # fmt: skip
_DEEPSEEK = _COMMON | _ROPE | {
    "num_hidden_layers": 3, "num_key_value_heads": 6, "n_routed_experts": 8, "n_shared_experts": 2,
    "moe_intermediate_size": 24, "intermediate_size": 40, "first_k_dense_replace": 1, "q_lora_rank": 20,
    "kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "n_group": 4, "topk_group": 2,
    "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-5, "num_nextn_predict_layers": 0,
}  # fmt: skip
_DOTS1 = _COMMON | _ROPE | {
    "num_hidden_layers": 3, "head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 24,
    "intermediate_size": 40, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "sliding_window": None,
    "norm_topk_prob": True, "routed_scaling_factor": 1.5,
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "beta_fast": 4.0, "beta_slow": 1.0, "mscale": 0.7, "mscale_all_dim": 0.9,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3MoeForCausalLM", _QWEN3),
    "qwen3 with dense layers, tied": (
        "Qwen3MoeForCausalLM", _QWEN3 | {"mlp_only_layers": [0, 1], "tie_word_embeddings": True},
    ),
    "qwen3 with experts in every second layer, weights as they are": (
        "Qwen3MoeForCausalLM", _QWEN3 | {"decoder_sparse_step": 2, "norm_topk_prob": False},
    ),
    "qwen3 with a window": ("Qwen3MoeForCausalLM", _QWEN3 | {"use_sliding_window": True, "sliding_window": 5}),
    "mixtral": ("MixtralForCausalLM", _MIXTRAL),
    "mixtral with a window": ("MixtralForCausalLM", _MIXTRAL | {"sliding_window": 5}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", _DEEPSEEK),
    "deepseek_v3 with yarn": (
        "DeepseekV3ForCausalLM",
        _DEEPSEEK | {"rope_parameters": _YARN, "n_shared_experts": 1, "norm_topk_prob": False},
    ),
    "dots1": ("Dots1ForCausalLM", _DOTS1),
    "dots1 with a window": ("Dots1ForCausalLM", _DOTS1 | {"sliding_window": 5, "max_window_layers": 0}),
    "moonlight": (
        "DeepseekV3ForCausalLM",
        _DEEPSEEK | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 3},
    ),
}  # fmt: skip


def transformers_model(name: str, seed: int = 0) -> Any:
    """A model of MODELS, random, in evaluation mode."""
    import transformers

    architecture, fields = MODELS[name]
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**fields))
    scatter(model, seed)
    return model.eval()


@torch.no_grad()
def scatter(model: torch.nn.Module, seed: int) -> None:
    """Weights far from where they begin: norms away from 1, biases away from 0, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith(("bias_E", "correction_bias")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
        elif tensor.ndim > 1:
            table = "embed" in name
            tensor.copy_(
                torch.randn(tensor.shape, generator=generator) * (1 if table else 1.5 * tensor.shape[-1] ** -0.5)
            )
        elif tensor.ndim == 1:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        else:
            tensor.copy_(torch.rand((), generator=generator) + 1.5)


def ours(config: ModelConfig, seed: int = 0) -> Transformer:
    """A random model of our own, in evaluation mode."""
    model = Transformer(config, precision.build("fp32"))
    model.initialise(seed)
    scatter(model, seed)
    return model.eval()


def preset(name: str, **changed: Any) -> ModelConfig:
    return resolve(ModelSection(preset=name, **changed), VOCAB)


def write_huggingface(model: Transformer, folder: Path, shard_bytes: int = 10**9, sequence: int = 64) -> Path:
    weights = {name: InMemory(tensor) for name, tensor in model.state_dict().items()}
    ids = {"bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1}
    huggingface.write(model.config, weights, folder, sequence=sequence, shard_bytes=shard_bytes, ids=ids)
    return folder


def run_of(model: Transformer, folder: Path) -> Path:
    """A run's folder that holds the model, and a tokenizer of bytes."""
    source = write_huggingface(model, folder.with_name(f"{folder.name}-source"))
    byte_tokenizer(source / "tokenizer.json")
    exchange.import_model(str(source), folder)
    return folder
