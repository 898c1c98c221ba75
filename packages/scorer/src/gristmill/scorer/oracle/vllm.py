"""The oracle in this process, by vLLM: one token per question, and the probability of every level read exactly.

A batch's answers depend on the batch alone: greedy, fixed threads, and a prefix cache that is emptied between batches.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gristmill.base.errors import UsageError
from gristmill.base.files import fingerprint, sha256_file
from gristmill.scorer.oracle.engine import Reply
from gristmill.scorer.oracle.prompt import FileTokenizer, Prompt


@dataclass(frozen=True)
class VLLMConfig:
    """model: a local folder. threads: of the CPU backend. cache_gb: memory for the KV cache (CPU, in GiB)."""

    model: Path
    style: Literal["completion", "chat"] = "completion"
    threads: int = 1
    max_model_len: int = 2048
    max_num_seqs: int = 64
    cache_gb: int = 1


class VLLMEngine:
    """oracle.engine.Engine on vllm.LLM."""

    def __init__(self, config: VLLMConfig) -> None:
        """Load the model.

        Raises:
            UsageError: vLLM is not installed, or the folder holds no model.
        """
        if not (config.model / "config.json").is_file():
            raise UsageError(f"{config.model}: no config.json; give the folder of a model")
        _environment(config)
        try:
            from vllm import LLM
        except ImportError as error:
            raise UsageError(
                f"vLLM cannot be imported ({error}); install it, or grade with --engine endpoint"
            ) from None
        import torch

        self._config = config
        set_num_threads = torch.set_num_threads
        self._llm: Any = LLM(
            model=str(config.model), dtype="bfloat16", max_model_len=config.max_model_len, enforce_eager=True,
            max_num_seqs=config.max_num_seqs, seed=0, enable_prefix_caching=True, disable_log_stats=True,
        )  # fmt: skip
        # vLLM's CPU worker puts a function that does nothing in its place, for everyone in this process.
        torch.set_num_threads = set_num_threads
        self._tokenizer: Any = self._llm.get_tokenizer()
        self.tokenizer = FileTokenizer(config.model)
        self.style = config.style
        self.name = f"vllm:{config.model.name}:{config.style}:{_weights_sha(config.model)[:12]}"

    def grade(self, prompts: Sequence[Prompt]) -> list[Reply]:
        import torch
        from vllm import SamplingParams

        torch.set_num_threads(self._config.threads)
        self._llm.reset_prefix_cache()
        replies: list[Reply] = [Reply("", status="prompt too long")] * len(prompts)
        rows, inputs, parameters, tokens = [], [], [], []
        for row, prompt in enumerate(prompts):
            separator, level_tokens = self._level_tokens(prompt.levels)
            ids = self._encode(prompt, separator)
            if len(ids) >= self._config.max_model_len:
                continue
            rows.append(row)
            inputs.append({"prompt_token_ids": ids})
            tokens.append(level_tokens)
            parameters.append(
                SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=list(level_tokens.values()))
            )
        for row, level_tokens, output in zip(rows, tokens, self._llm.generate(inputs, parameters, use_tqdm=False)):
            completion = output.outputs[0]
            reported = completion.logprobs[0] if completion.logprobs else {}
            logprobs = {level: reported[token].logprob for level, token in level_tokens.items() if token in reported}
            replies[row] = Reply(completion.text, logprobs)
        return replies

    def close(self) -> None:
        """Free the model; the engine cannot be used afterwards."""
        self._llm = None
        gc.collect()

    def _encode(self, prompt: Prompt, separator: str) -> list[int]:
        if self.style == "completion":
            return self._tokenizer.encode(prompt.completion + separator)
        text = self._tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _level_tokens(self, levels: tuple[int, ...]) -> tuple[str, dict[int, int]]:
        """The separator after the question, and the one token that each level then is.

        Tokenisers that split digits off read ": 3" as ":", " ", "3": there the space belongs to the prompt.
        """
        for separator, before in (("", "" if self.style == "chat" else " "), (" ", "")):
            encoded = [self._tokenizer.encode(f"{before}{level}", add_special_tokens=False) for level in levels]
            if all(len(ids) == 1 for ids in encoded):
                return separator, {level: ids[0] for level, ids in zip(levels, encoded)}
        raise UsageError(f"{self._config.model}: its tokenizer has no single token for each of the levels {levels}")


def _environment(config: VLLMConfig) -> None:
    """Settings that vLLM reads at import. What the caller has set stands."""
    settings = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine in this process: it dies with it, and it is deterministic
        "VLLM_CPU_KVCACHE_SPACE": str(config.cache_gb),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads on a shared machine were 10x slower than one thread
        "GOMP_SPINCOUNT": "0",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TQDM_DISABLE": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _weights_sha(folder: Path) -> str:
    return fingerprint([(path.name, sha256_file(path)) for path in sorted(folder.glob("*.safetensors"))])
