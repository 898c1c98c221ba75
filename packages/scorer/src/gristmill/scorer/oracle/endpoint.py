"""The oracle behind any OpenAI-compatible endpoint: many requests in flight, retries, level probabilities where given.

Failures that retries do not mend become a status on their row; the other rows are kept.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from gristmill.base.errors import GristmillError, UsageError
from gristmill.scorer.oracle.engine import Reply
from gristmill.scorer.oracle.prompt import FileTokenizer, Prompt, RoughTokenizer, Tokenizer

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class EndpointConfig:
    """url: up to and including /v1. key_variable: the environment variable that holds the key, where one is needed."""

    url: str
    model: str
    style: Literal["completion", "chat"] = "chat"
    tokenizer: Path | None = None  # a folder with tokenizer.json; without it tokens are estimated, on the high side
    key_variable: str = "ORACLE_API_KEY"
    concurrency: int = 16
    attempts: int = 5
    first_wait: float = 0.5  # seconds before the second attempt; doubled for each one after
    timeout: float = 120.0
    top_logprobs: int = 20
    separator: str = ""  # completion style: " " for models whose tokenizer splits digits off


class EndpointEngine:
    """oracle.engine.Engine over HTTP."""

    def __init__(self, config: EndpointConfig) -> None:
        from openai import OpenAI

        if not config.url.startswith(("http://", "https://")):
            raise UsageError(f"endpoint {config.url!r}: give a URL such as http://localhost:8000/v1")
        self._config = config
        self._client = OpenAI(
            base_url=config.url,
            api_key=os.environ.get(config.key_variable, "none"),
            timeout=config.timeout,
            max_retries=0,
        )
        self.tokenizer: Tokenizer = FileTokenizer(config.tokenizer) if config.tokenizer else RoughTokenizer()
        self.style = config.style
        self.name = f"endpoint:{config.model}:{config.style}"

    def grade(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One reply per prompt, in order.

        Raises:
            GristmillError: every single prompt failed, so the endpoint itself must be wrong.
        """
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            replies = list(pool.map(self._one, prompts))
        if replies and all(reply.status.startswith("request failed") for reply in replies):
            raise GristmillError(
                f"{self._config.url}: all {len(replies)} requests failed; the last: {replies[-1].status}"
            )
        return replies

    def close(self) -> None:
        self._client.close()

    def _one(self, prompt: Prompt) -> Reply:
        import openai

        wait, reason = self._config.first_wait, ""
        for attempt in range(self._config.attempts):
            if attempt:
                time.sleep(wait)
                wait *= 2
            try:
                return self._chat(prompt) if self.style == "chat" else self._complete(prompt)
            except openai.APIStatusError as error:
                reason = f"HTTP {error.status_code}"
                if error.status_code not in RETRIED:
                    break
            except openai.APIConnectionError as error:  # timeouts too
                reason = type(error).__name__
        return Reply("", status=f"request failed: {reason}")

    def _chat(self, prompt: Prompt) -> Reply:
        answer: Any = self._client.chat.completions.create(
            model=self._config.model, messages=cast(Any, prompt.messages), temperature=0.0, max_tokens=2, logprobs=True,
            top_logprobs=self._config.top_logprobs,
        )  # fmt: skip
        choice = answer.choices[0]
        content = choice.logprobs.content if choice.logprobs else None
        top = {item.token: item.logprob for item in content[0].top_logprobs} if content else {}
        return Reply(choice.message.content or "", level_logprobs(top, prompt.levels))

    def _complete(self, prompt: Prompt) -> Reply:
        answer: Any = self._client.completions.create(
            model=self._config.model, prompt=prompt.completion + self._config.separator, temperature=0.0, max_tokens=1,
            logprobs=self._config.top_logprobs,
        )  # fmt: skip
        choice = answer.choices[0]
        top = (choice.logprobs.top_logprobs or [{}])[0] if choice.logprobs else {}
        return Reply(choice.text or "", level_logprobs(top or {}, prompt.levels))


def level_logprobs(top: dict[str, float], levels: Sequence[int]) -> dict[int, float]:
    """Log-probability of each level among the tokens reported; "3" and " 3" are the same level and add up."""
    found: dict[int, float] = {}
    for token, logprob in top.items():
        text = token.strip()
        if len(text) == 1 and text.isdecimal() and text.isascii() and int(text) in levels:
            level = int(text)
            found[level] = math.log(math.exp(found.get(level, -math.inf)) + math.exp(logprob))
    return found
