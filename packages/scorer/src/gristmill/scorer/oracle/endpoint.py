"""The oracle behind any OpenAI-compatible endpoint: many requests in flight, retries, limits, level probabilities where
given.

A failure that retries do not mend becomes a status on its row, and the other rows are kept. An endpoint that answers
nothing any more, or refuses the key, ends the grading instead.
"""

from __future__ import annotations

import ipaddress
import os
import queue
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from gristmill.base.config import check_range
from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import fingerprint
from gristmill.base.terminal import shown
from gristmill.scorer.oracle.engine import FAILED, Reply, Tokens, reply_logprobs
from gristmill.scorer.oracle.prompt import Prompt
from gristmill.scorer.oracle.rate_limit import RateLimit
from gristmill.scorer.oracle.tokens import FileTokenizer, RoughTokenizer, Tokenizer
from gristmill.scorer.rubric import symbols

ONE_ROW = {400, 403, 413, 422}  # about this prompt: too long, or refused for what it says
NOBODYS = {401, 404}  # no prompt would be answered
MESSAGE = 200  # characters of a server's error that are kept
BATCH_PER_THREAD = 64


@dataclass(frozen=True)
class EndpointConfig:
    """url: up to and including /v1. key_variable: the environment variable that holds the key, where one is needed."""

    url: str
    model: str
    style: Literal["completion", "chat"] = "chat"
    tokenizer: Path | None = None
    """A folder with tokenizer.json; without it tokens are estimated, on the high side."""
    key_variable: str = "ORACLE_API_KEY"
    server: Literal["auto", "vllm", "other"] = "auto"
    """vllm: answers are constrained to the levels. auto asks the server what it is."""
    concurrency: int = 16
    requests_per_minute: int = 0
    """Retries count too. 0: no limit."""
    tokens_per_minute: int = 0
    """Of prompts and answers, by upper estimates. 0: no limit."""
    attempts: int = 8
    """After a refusal or a timeout the wait doubles from half a second to eight, or is what Retry-After says, to two
    minutes (openai's own retries)."""
    timeout: float = 120.0
    """Seconds for one attempt."""
    top_logprobs: int = 20
    """0 for endpoints that give none: the score is then the level said."""
    thinking_tokens: int = 0
    """Room for a model that thinks before it answers."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """More fields of each request, as { reasoning_effort = "low" }."""


class EndpointEngine:
    """oracle.engine.Engine over HTTP; its replies come one by one.

    The model's name is all that is known of it: a server that changes the model behind a name should change the name.
    """

    def __init__(self, config: EndpointConfig) -> None:
        """Find out what server it is.

        Raises:
            UsageError: not a URL, or settings out of range.
            GristmillError: nothing answers there.
        """
        from openai import DefaultHttpxClient, OpenAI

        _check(config)
        self._config = config
        self._limit = RateLimit(config.requests_per_minute, config.tokens_per_minute)
        self._own = threading.local()
        key = os.environ.get(config.key_variable) or "none"
        self._secret = key if key != "none" else ""
        self._client = OpenAI(
            base_url=config.url, api_key=key, timeout=config.timeout, max_retries=config.attempts - 1,
            # The hook sees every attempt, so that retries keep to the limits too.
            http_client=DefaultHttpxClient(timeout=config.timeout, event_hooks={"request": [self._pace]}),
        )  # fmt: skip
        self.context = 0
        self._vllm = config.server == "vllm"
        if config.server == "auto":
            self._look()
        self.tokenizer: Tokenizer = FileTokenizer(config.tokenizer) if config.tokenizer else RoughTokenizer()
        self.style = config.style
        self.batch = BATCH_PER_THREAD * config.concurrency
        settings = fingerprint([self._vllm, config.top_logprobs, config.thinking_tokens, config.extra_body])
        self.name = f"endpoint:{config.model}:{config.style}:{settings[:8]}"

    def grade(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One reply per prompt, in order.

        Raises:
            GristmillError: the endpoint answers nobody: a wrong key or model, or so many failures one after another.
        """
        replies: dict[int, Reply] = {}
        self.grade_each(prompts, replies.__setitem__)
        return [replies[position] for position in range(len(prompts))]

    def grade_each(self, prompts: Sequence[Prompt], keep: Callable[[int, Reply], None]) -> None:
        """See oracle.engine.EachEngine; raises as grade() does."""
        positions = queue.SimpleQueue[int]()
        for position in range(len(prompts)):
            positions.put(position)
        ended = queue.SimpleQueue[BaseException | None]()
        stopped, failures = threading.Event(), _Failures(self._config)

        def work() -> None:
            failed: BaseException | None = None
            try:
                while not stopped.is_set():
                    position = positions.get_nowait()
                    reply = self._ask(prompts[position])
                    keep(position, reply)
                    failures.note(reply.status)
            except queue.Empty:
                pass
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits, which must hear of it
                failed = error
            ended.put(failed)

        # Threads that nobody waits for: a command that is interrupted must not sit out a wait of two minutes.
        threads = [
            threading.Thread(target=work, daemon=True) for _ in range(min(self._config.concurrency, len(prompts)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                if (error := ended.get()) is not None:
                    raise error
        finally:
            stopped.set()

    def close(self) -> None:
        self._client.close()

    def _ask(self, prompt: Prompt) -> Reply:
        import openai

        self._own.tokens = prompt.most_tokens(self.tokenizer) if self._config.tokens_per_minute else 0
        try:
            return self._chat(prompt) if self.style == "chat" else self._complete(prompt)
        except openai.APIStatusError as error:
            said = self._said(error)
            if error.status_code in NOBODYS:
                raise GristmillError(f"{self._config.url}: {said}; is ${self._config.key_variable} right?") from None
            kind = "refused" if error.status_code in ONE_ROW else FAILED
            return Reply("", status=f"{kind}: {said}")
        except openai.APIConnectionError as error:  # timeouts too
            return Reply("", status=f"{FAILED}: {type(error).__name__}")
        except openai.APIError:  # an answer of 200 that is none
            return Reply("", status=f"{FAILED}: not an answer of this API")

    def _chat(self, prompt: Prompt) -> Reply:
        body: dict[str, Any] = dict(self._config.extra_body)
        if prompt.form == "json":
            form = {"name": "grades", "strict": True, "schema": prompt.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self._vllm:
            body["structured_outputs"] = {"choice": list(_answers(prompt, ""))}
        started = time.monotonic()
        most = self._config.top_logprobs
        answer: Any = self._client.chat.completions.create(
            model=self._config.model, messages=cast(Any, prompt.messages), extra_body=body, **self._settings(prompt),
            **({"logprobs": True, "top_logprobs": most} if most else {}),
        )  # fmt: skip
        choice = answer.choices[0]
        content = (choice.logprobs.content if choice.logprobs else None) or ()
        tokens = [(item.token, {top.token: top.logprob for top in (item, *item.top_logprobs)}) for item in content]
        return self._reply(prompt, choice.message.content, tokens, answer.usage, started)

    def _complete(self, prompt: Prompt) -> Reply:
        body: dict[str, Any] = dict(self._config.extra_body)
        if self._vllm:
            body["structured_outputs"] = (
                {"json": prompt.schema} if prompt.form == "json" else {"choice": list(_answers(prompt, " "))}
            )
        started = time.monotonic()
        answer: Any = self._client.completions.create(
            model=self._config.model, prompt=prompt.completion, logprobs=self._config.top_logprobs or None,
            extra_body=body, **self._settings(prompt),
        )  # fmt: skip
        choice = answer.choices[0]
        found = choice.logprobs
        pairs = zip(found.tokens or (), found.top_logprobs or ()) if found else ()
        tokens = [(token, top or {}) for token, top in pairs]
        return self._reply(prompt, choice.text, tokens, answer.usage, started)

    def _settings(self, prompt: Prompt) -> dict[str, Any]:
        most = prompt.most_reply_tokens + self._config.thinking_tokens
        settings: dict[str, Any] = {"temperature": prompt.temperature, "max_tokens": most}
        return settings | {"seed": prompt.repeat} if prompt.temperature else settings

    def _reply(self, prompt: Prompt, text: str | None, tokens: Tokens, usage: Any, started: float) -> Reply:
        said = (text or "").encode("utf-8", "replace").decode()  # half a surrogate pair could not be stored
        logprobs, dimensions = reply_logprobs(prompt, said, tokens)
        # A server that reports no usage is taken at our own upper estimate.
        asked = usage.prompt_tokens if usage else prompt.most_tokens(self.tokenizer) - prompt.most_reply_tokens
        replied = usage.completion_tokens if usage else max(len(tokens), len(self.tokenizer.spans(said)))
        return Reply(
            said, logprobs, "ok", dimensions, constrained=self._vllm or prompt.form == "json", prompt_tokens=asked,
            reply_tokens=replied, seconds=round(time.monotonic() - started, 3),
        )  # fmt: skip

    def _pace(self, _request: Any) -> None:
        self._limit.wait(getattr(self._own, "tokens", 0))

    def _look(self) -> None:
        """Whether it is vLLM, and then the context of the model."""
        import openai

        try:
            models = self._client.with_options(max_retries=1).models.list().data
        except openai.APIConnectionError as error:
            raise GristmillError(
                f"{self._config.url}: no answer ({type(error).__name__}); is the server up, and the address right?"
            ) from None
        except openai.APIError:  # a server need not list its models
            return
        for model in models:
            if model.id == self._config.model and model.owned_by == "vllm":
                self._vllm = True
                self.context = int(getattr(model, "max_model_len", 0) or 0)

    def _said(self, error: Any) -> str:
        """The status, and of the server's message what may be kept: short, printable, without the key."""
        body = error.body if isinstance(error.body, dict) else {}
        message = body.get("message") if error.status_code not in (401, 403) else None  # these like to repeat the key
        said = str(message or "")
        if self._secret:
            said = said.replace(self._secret, "***")
        return shown(f"HTTP {error.status_code} {said[:MESSAGE]}".strip())


class _Failures:
    """Ends the asking once the endpoint has failed on as many requests one after another as say that it is gone."""

    def __init__(self, config: EndpointConfig) -> None:
        self._url, self._most = config.url, 2 * config.concurrency
        self._row, self._lock = 0, threading.Lock()

    def note(self, status: str) -> None:
        with self._lock:
            self._row = self._row + 1 if status.startswith(FAILED) else 0
            if self._row >= self._most:
                raise GristmillError(
                    f"{self._url}: {self._row} requests in a row failed, the last: {status}; the same command goes on "
                    "from here once it answers"
                )


def _answers(prompt: Prompt, before: str) -> list[str]:
    return [f"{before}{symbol}" for symbol in symbols(prompt.levels)]


def _check(config: EndpointConfig) -> None:
    url = urllib.parse.urlsplit(config.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"endpoint {config.url!r}: give a URL such as http://localhost:8000/v1")
    check_range("concurrency", config.concurrency, 1, 1024)
    check_range("attempts", config.attempts, 1, 100)
    check_range("requests_per_minute", config.requests_per_minute)
    check_range("tokens_per_minute", config.tokens_per_minute)
    if url.scheme == "http" and not _is_this_machine(url.hostname):
        print(f"oracle: {config.url} is not encrypted: documents and the key can be read on the way", file=sys.stderr)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
