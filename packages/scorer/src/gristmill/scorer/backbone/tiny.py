"""Tiny random backbones as model folders: every test of staging, scoring and bundles runs on these in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gristmill.base.errors import UsageError

# Those that run in two stages, and one that cannot: gpt2 adds learned positions to inputs_embeds once more.
STAGED = (
    "llama", "qwen2", "qwen3", "mistral", "olmo2", "phi3", "gemma2", "gemma3", "gpt_oss", "qwen3_moe", "gpt_neox",
)  # fmt: skip
ARCHITECTURES = (*STAGED, "gpt2")
SLIDING: dict[str, Any] = {"head_dim": 16, "sliding_window": 8}
OWN: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16},
    "mistral": SLIDING,
    "gemma2": SLIDING,
    "gemma3": SLIDING,
    "gpt_oss": {**SLIDING, "num_experts_per_tok": 2, "num_local_experts": 4},
    "qwen3_moe": {"head_dim": 16, "num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 32},
}


def tiny_config(architecture: str, layers: int = 6, width: int = 64, vocab_size: int = 320) -> Any:
    """A transformers config with random-model sizes; sliding windows, where there are any, are of 8 tokens.

    Raises:
        UsageError: an architecture that is not in ARCHITECTURES.
    """
    from transformers import AutoConfig

    if architecture not in ARCHITECTURES:
        raise UsageError(f"no tiny {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    values: dict[str, Any] = {
        "vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_size": width,
        "intermediate_size": 96, "num_hidden_layers": layers, "num_attention_heads": 4, "max_position_embeddings": 1024,
    }  # fmt: skip
    if architecture not in ("gpt_neox", "gpt2"):
        values["num_key_value_heads"] = 2
    return AutoConfig.for_model(
        "gemma3_text" if architecture == "gemma3" else architecture, **values, **OWN.get(architecture, {})
    )


def tiny_model(architecture: str, seed: int = 0, **sizes: int) -> Any:
    """A random model in float32 whose weights are large enough that every block matters."""
    from transformers import AutoModel

    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = AutoModel.from_config(tiny_config(architecture, **sizes)).float().eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.08)
            elif name.endswith("sinks"):
                torch.nn.init.normal_(parameter, std=1.0)
    finally:
        torch.random.set_rng_state(state)
    return model


def write_tiny(folder: Path, architecture: str = "llama", seed: int = 0, **sizes: int) -> Path:
    """Write a tiny model with a byte-level tokenizer (ids 0..2 special, then the bytes) and return its folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model(architecture, seed, **sizes)
    model.save_pretrained(folder)
    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
