"""Every answer of an oracle, kept as soon as it is there: nothing is asked twice, and no kill loses what was paid for.

A folder of JSON lines, each line one answer under the hash of all that it depends on: engine and model, the full
prompt, the form, and the number of the repeat. A writer appends to a file of its own, which nobody writes to again, so
that workers need no lock; everyone reads all files. A last line torn by a kill has no line end and is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from gristmill.base.errors import GristmillError, PartialError, UsageError
from gristmill.base.files import canonical_json
from gristmill.scorer.oracle.engine import EachEngine, Engine, Reply
from gristmill.scorer.oracle.prompt import Prompt

SYNC_SECONDS = 1.0
"""So often answers are forced to the disk. A killed process loses none; a machine that loses power, these seconds."""


@dataclass(frozen=True)
class Line:
    key: str
    reply: Reply


LINE = pydantic.TypeAdapter(Line)


class Replies:
    """The answers in a folder, by key. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; the folder is made with the first answer.

        Raises:
            UsageError: there is a file of that name.
        """
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: a file; give a folder for the oracle's replies")
        self.folder = folder
        self.tokens = 0
        """Of all answers that are here, and their prompts: what they have cost."""
        self.damaged = 0
        """Lines that could not be read, of a disk that lost power or of another hand: asked again."""
        self._lines: dict[bytes, bytes] = {}
        self._read_to: dict[str, int] = {}
        self._file: int | None = None
        self._synced = time.monotonic()
        self._lock = threading.Lock()
        self.refresh()

    def __len__(self) -> int:
        return len(self._lines)

    def refresh(self) -> None:
        """Take in what other workers have appended since."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            for path in sorted(self.folder.glob("*.jsonl")):
                self._read(path)

    def get(self, key: str) -> Reply | None:
        line = self._lines.get(bytes.fromhex(key))
        return LINE.validate_json(line).reply if line is not None else None

    def put(self, key: str, reply: Reply) -> None:
        """Append one answer; it is there once this returns, whatever then becomes of the process.

        Raises:
            GristmillError: the folder cannot be written to.
        """
        self.put_all([(key, reply)])

    def put_all(self, answers: Sequence[tuple[str, Reply]]) -> None:
        """The same for answers that came together: they are written together."""
        lines = [(bytes.fromhex(key), LINE.dump_json(Line(key, reply)) + b"\n") for key, reply in answers]
        if not lines:
            return
        with self._lock:
            try:
                self._append(b"".join(line for _, line in lines))
            except OSError as error:
                raise GristmillError(
                    f"{self.folder}: {error.strerror}; mend that, then the same command goes on"
                ) from None
            self._lines.update(lines)
            self.tokens += sum(reply.prompt_tokens + reply.reply_tokens for _, reply in answers)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.fsync(self._file)
                os.close(self._file)
                self._file = None

    def _append(self, data: bytes) -> None:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The time first: names then sort as they were written.
            path = self.folder / f"{time.time_ns():x}-{secrets.token_hex(4)}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
            self._read_to[path.name] = -1  # our own: known already
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.close(self._file)  # it may end in half a line: nothing is appended to that
            self._file = None
            raise
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def _read(self, path: Path) -> None:
        start = self._read_to.get(path.name, 0)
        if start < 0 or path.stat().st_size <= start:
            return
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                start += len(line)
                try:
                    answer = LINE.validate_json(line)
                    self._lines[bytes.fromhex(answer.key)] = line
                except ValueError:
                    self.damaged += 1
                    continue
                self.tokens += answer.reply.prompt_tokens + answer.reply.reply_tokens
        self._read_to[path.name] = start


@dataclass
class Counts:
    """What a StoredEngine did so far. tokens: of prompts and answers, of what was asked."""

    asked: int = 0
    stored: int = 0
    """Answers that were there already."""
    failed: int = 0
    tokens: int = 0


class StoredEngine:
    """oracle.engine.Engine that asks `engine` only what `replies` has no answer to, and stores each answer at once.

    An engine whose replies come one by one has each stored before the thread that got it asks again, so a kill repeats
    at most the requests in flight: those that the server may have answered, but whose answer was not here yet. Of an
    engine that works in batches a kill repeats the batch. Requests that failed are not stored: next time they are asked
    again. The same prompt twice in one call is asked once; a second opinion is another `repeat`.
    """

    def __init__(self, engine: Engine, replies: Replies, budget_tokens: int = 0, of_all: bool = False) -> None:
        """budget_tokens: ask for no more than so many, prompts and answers together; 0 is without limit. of_all: that
        all answers in `replies` have cost, whoever asked, and when; workers that ask at the same time may each go
        beyond it by what the others have under way."""
        self._engine, self._replies, self._budget, self._of_all = engine, replies, budget_tokens, of_all
        self.name, self.style, self.tokenizer = engine.name, engine.style, engine.tokenizer
        self.context, self.batch = getattr(engine, "context", 0), getattr(engine, "batch", 0)
        self.counts = Counts()
        self._lock = threading.Lock()

    def grade(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One reply per prompt, in order.

        Raises:
            PartialError: the budget does not suffice. What was answered is stored.
        """
        self._replies.refresh()
        keys = [key_of(self._engine, prompt) for prompt in prompts]
        replies = {key: reply for key in dict.fromkeys(keys) if (reply := self._replies.get(key)) is not None}
        missing = {key: prompt for key, prompt in zip(keys, prompts) if key not in replies}
        self.counts.stored += len(replies)
        afforded = self._afforded(missing)
        replies |= self._ask({key: missing[key] for key in afforded})
        if len(afforded) < len(missing):
            more = "with a greater one" if self._of_all else "with the same budget again"
            raise PartialError(
                f"the budget of {self._budget:,} tokens is used up: {self._spent:,} tokens, "
                f"{len(self._replies) if self._of_all else self.counts.asked:,} requests; the answers are in "
                f"{self._replies.folder}, and the same command goes on from there {more}"
            )
        return [replies[key] for key in keys]

    @property
    def _spent(self) -> int:
        return self._replies.tokens if self._of_all else self.counts.tokens

    def _afforded(self, missing: dict[str, Prompt]) -> list[str]:
        """The first of them whose upper estimates fit into what is left."""
        if not self._budget:
            return list(missing)
        left, afforded = self._budget - self._spent, list[str]()
        for key, prompt in missing.items():
            left -= prompt.most_tokens(self._engine.tokenizer)
            if left < 0:
                break
            afforded.append(key)
        return afforded

    def _ask(self, missing: dict[str, Prompt]) -> dict[str, Reply]:
        keys, replies = list(missing), dict[str, Reply]()
        if not missing:
            return replies
        if isinstance(self._engine, EachEngine):

            def keep(position: int, reply: Reply) -> None:
                self._count(reply)
                if reply.status == "ok":
                    self._replies.put(keys[position], reply)
                replies[keys[position]] = reply

            self._engine.grade_each(list(missing.values()), keep)
            return replies
        replies = dict(zip(keys, self._engine.grade(list(missing.values()))))
        for reply in replies.values():
            self._count(reply)
        self._replies.put_all([(key, reply) for key, reply in replies.items() if reply.status == "ok"])
        return replies

    def _count(self, reply: Reply) -> None:
        with self._lock:
            self.counts.asked += 1
            self.counts.failed += reply.status != "ok"
            self.counts.tokens += reply.prompt_tokens + reply.reply_tokens


def key_of(engine: Engine, prompt: Prompt) -> str:
    """sha256 (hex) of all that an answer depends on."""
    asked = prompt.messages if engine.style == "chat" else prompt.completion
    form: list[Any] = [list(prompt.levels)] if prompt.form == "level" else [prompt.schema]
    parts = [engine.name, asked, form, prompt.repeat, prompt.temperature, prompt.document_id]
    return hashlib.sha256(canonical_json(parts).encode("utf-8", "surrogatepass")).hexdigest()
