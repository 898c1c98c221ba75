"""The oracle in this process, by vLLM: levels as one token whose probabilities are read exactly, or JSON by a schema.

A batch's answers depend on the batch alone: greedy, fixed threads, and a prefix cache that is emptied between batches.

Single levels are constrained by the ids of their tokens (allowed_token_ids), not by a grammar (structured outputs,
choice): the answers are the same, but vLLM 0.29 takes log-probabilities before it applies the former and after it
applies the latter, and only from the former can be seen how much of the probability was on the levels at all.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gristmill.base.errors import UsageError
from gristmill.base.files import fingerprint, sha256_file
from gristmill.scorer.oracle.engine import NEVER, Reply, reply_logprobs
from gristmill.scorer.oracle.prompt import Prompt
from gristmill.scorer.oracle.tokens import FileTokenizer
from gristmill.scorer.rubric import symbols

TOP_LOGPROBS = 20  # vLLM's most; in JSON all but the allowed tokens are ruled out, so every level is among them
IDENTITY = ("*.safetensors", "config.json", "tokenizer*.json", "chat_template*", "generation_config.json")
"""The files of a model folder that its answers depend on."""


@dataclass(frozen=True)
class VLLMConfig:
    """model: a local folder. threads: of the CPU backend. cache_gb: memory for the KV cache (CPU, in GiB)."""

    model: Path
    style: Literal["completion", "chat"] = "completion"
    threads: int = 1
    max_model_len: int = 2048
    max_num_seqs: int = 64
    """Requests at work together: 256 or more on a GPU."""
    cache_gb: int = 1
    tensor_parallel_size: int = 1
    """GPUs that share the model."""
    gpu_memory_utilization: float = 0.9
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    answer_prefix: str = ""
    """Chat style: what the answer begins with, as "<think>\\n\\n</think>\\n\\n" for a model that would think first."""


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
        set_num_threads, several = torch.set_num_threads, config.tensor_parallel_size > 1
        self._llm: Any = LLM(
            model=str(config.model), dtype=config.dtype, max_model_len=config.max_model_len, seed=0,
            enforce_eager=not torch.cuda.is_available(), max_num_seqs=config.max_num_seqs, enable_prefix_caching=True,
            disable_log_stats=True, max_logprobs=TOP_LOGPROBS, tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
            # In a Ray actor vLLM would ask Ray for the GPUs that the actor holds already.
            distributed_executor_backend="mp" if several else None,
            # Without it a small model fills the reply with blanks between the braces.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
        )  # fmt: skip
        # vLLM's CPU worker puts a function that does nothing in its place, for everyone in this process.
        torch.set_num_threads = set_num_threads
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._parameters: dict[str, Any] = {}
        self._tokens_of: dict[tuple[int, ...], tuple[str, dict[int, int]]] = {}
        self.tokenizer = FileTokenizer(config.model)
        self.style = config.style
        self.context = config.max_model_len
        self.batch = 8 * config.max_num_seqs
        self.name = f"vllm:{config.model.name}:{config.style}:{_identity(config)[:12]}"

    def grade(self, prompts: Sequence[Prompt]) -> list[Reply]:
        import torch

        torch.set_num_threads(self._config.threads)
        self._llm.reset_prefix_cache()
        replies: list[Reply] = [Reply("", status="prompt too long")] * len(prompts)
        fits = [
            (row, ids)
            for row, (prompt, ids) in enumerate(zip(prompts, self.encode(prompts)))
            if len(ids) + prompt.most_reply_tokens <= self._config.max_model_len
        ]
        inputs = [{"prompt_token_ids": ids} for _, ids in fits]
        started = time.monotonic()
        outputs = self._llm.generate(inputs, [self._sampling(prompts[row]) for row, _ in fits], use_tqdm=False)
        seconds = round((time.monotonic() - started) / max(1, len(fits)), 5)
        for (row, ids), output in zip(fits, outputs):
            replies[row] = self._reply(prompts[row], output.outputs[0], len(ids), seconds)
        return replies

    def close(self) -> None:
        """Free the model; the engine cannot be used afterwards."""
        self._llm = None
        gc.collect()

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The token ids of each request, chat template and all."""
        if not prompts:
            return []
        if self.style == "completion":
            texts = [prompt.completion + self._separator(prompt) for prompt in prompts]
        else:
            render = self._tokenizer.apply_chat_template
            texts = [
                render(prompt.messages, tokenize=False, add_generation_prompt=True) + self._config.answer_prefix
                for prompt in prompts
            ]
        return self._tokenizer(texts, add_special_tokens=self.style == "completion")["input_ids"]

    def _sampling(self, prompt: Prompt) -> Any:
        """One object for all requests of a kind: making one costs more than a short request's share of a batch."""
        kind = fingerprint(
            [list(prompt.levels), prompt.form == "json" and prompt.schema, prompt.temperature, prompt.repeat]
        )
        if kind not in self._parameters:
            self._parameters[kind] = self._new_sampling(prompt)
        return self._parameters[kind]

    def _new_sampling(self, prompt: Prompt) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        seed = prompt.repeat if prompt.temperature else None
        if prompt.form == "json":
            return SamplingParams(
                temperature=prompt.temperature, seed=seed, max_tokens=prompt.most_reply_tokens, logprobs=TOP_LOGPROBS,
                structured_outputs=StructuredOutputsParams(json=prompt.schema),
            )  # fmt: skip
        ids = list(self._level_tokens(prompt.levels)[1].values())
        return SamplingParams(
            temperature=prompt.temperature, seed=seed, max_tokens=1, logprob_token_ids=ids, allowed_token_ids=ids
        )

    def _reply(self, prompt: Prompt, completion: Any, prompt_tokens: int, seconds: float) -> Reply:
        if prompt.form == "level":
            reported = completion.logprobs[0]
            wanted = self._level_tokens(prompt.levels)[1].items()
            known = {level: reported[token].logprob for level, token in wanted if token in reported}
            logprobs = {level: logprob for level, logprob in known.items() if logprob > NEVER}
            return Reply(completion.text, logprobs, prompt_tokens=prompt_tokens, reply_tokens=1, seconds=seconds)
        tokens = [
            (top[token].decoded_token or "", {other.decoded_token or "": other.logprob for other in top.values()})
            for token, top in zip(completion.token_ids, completion.logprobs)
        ]
        _, dimensions = reply_logprobs(prompt, completion.text, tokens)
        return Reply(
            completion.text, {}, "ok", dimensions, constrained=True, prompt_tokens=prompt_tokens,
            reply_tokens=len(completion.token_ids), seconds=seconds,
        )  # fmt: skip

    def _separator(self, prompt: Prompt) -> str:
        return self._level_tokens(prompt.levels)[0] if prompt.form == "level" else ""

    def _level_tokens(self, levels: tuple[int, ...]) -> tuple[str, dict[int, int]]:
        """The separator after the question, and the one token that each level then is.

        Tokenisers that split digits off read ": 3" as ":", " ", "3": there the space belongs to the prompt.
        """
        if levels not in self._tokens_of:
            self._tokens_of[levels] = self._find_level_tokens(levels)
        return self._tokens_of[levels]

    def _find_level_tokens(self, levels: tuple[int, ...]) -> tuple[str, dict[int, int]]:
        names = symbols(levels)
        for separator, before in (("", "" if self.style == "chat" else " "), (" ", "")):
            encoded = [self._tokenizer.encode(f"{before}{name}", add_special_tokens=False) for name in names]
            if all(len(ids) == 1 for ids in encoded):
                return separator, {level: ids[0] for level, ids in zip(names.values(), encoded)}
        raise UsageError(f"{self._config.model}: its tokenizer has no single token for each of {', '.join(names)}")


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


def _identity(config: VLLMConfig) -> str:
    """Hash of the model's files and of all settings that an answer depends on."""
    paths = sorted({path for pattern in IDENTITY for path in config.model.glob(pattern)})
    files = [(path.name, sha256_file(path)) for path in paths]
    return fingerprint([files, config.dtype, config.answer_prefix])
