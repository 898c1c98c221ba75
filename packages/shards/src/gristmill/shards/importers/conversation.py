"""Conversations out of JSON lines that may be broken anywhere: each line is a list of turns, or the reason why not."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from gristmill.base.errors import DataError
from gristmill.base.files import limited_lines

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_LINE_BYTES = 32 * 2**20
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}


class Turn(NamedTuple):
    role: str
    content: str
    learnt: bool


class Bad(NamedTuple):
    """`reason` is one of few, so that they can be counted; the particulars are in `detail`."""

    reason: str
    detail: str = ""


def read(path: Path) -> Iterator[tuple[int, list[Turn] | Bad]]:
    """(line number from 1, its conversation) of a .jsonl, .jsonl.gz or .jsonl.zst file; blank lines are passed over.

    Raises:
        DataError: no such file, or a compressed stream that is cut off or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    number = 0
    try:
        with pa.input_stream(str(path), compression=COMPRESSION.get(path.suffix.lower())) as stream:
            for line in limited_lines(io.BufferedReader(stream, 2**20), MAX_LINE_BYTES):
                number += 1
                if isinstance(line, int):
                    yield number, Bad("line too long", f"{line:,} bytes, limit {MAX_LINE_BYTES:,}")
                elif line.strip():
                    yield number, _parse(line)
    except OSError as error:
        raise DataError(f"{path}: nothing after line {number:,} can be read ({error}); get the file again") from None


def _parse(line: bytes) -> list[Turn] | Bad:
    try:
        values = json.loads(line)
    except UnicodeDecodeError as error:
        return Bad("invalid UTF-8", str(error))
    except (ValueError, RecursionError) as error:  # ValueError: an integer of thousands of digits, too
        return Bad("not JSON", str(error))
    if not isinstance(values, dict):
        return Bad("not a JSON object", f"a {type(values).__name__}")
    try:
        messages = _messages(values)
    except RecursionError as error:
        return Bad("not JSON", str(error))
    if messages is None:
        pairs = "prompt and completion, nor instruction or input and output"
        return Bad("no conversation", f"neither messages nor {pairs}; fields: {', '.join(values)[:500]}")
    if not isinstance(messages, list):
        return Bad("messages is no list", f"a {type(messages).__name__}")
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        turn = _turn(message, index)
        if isinstance(turn, Bad):
            return turn
        turns.append(turn)
    if not any(turn.learnt and turn.content.strip() for turn in turns):
        return Bad("nothing to learn", "no assistant message with text in it")
    return turns


def _messages(values: dict[str, Any]) -> Any:
    """Of a conversation, of a pair (texts, objects or messages), or of an instruction with its input (Alpaca's form,
    github.com/tatsu-lab/stanford_alpaca); None if it is none of these."""
    if "messages" in values:
        return values["messages"]
    if "prompt" in values and "completion" in values:
        return [*_side(values["prompt"], "user"), *_side(values["completion"], "assistant")]
    asked = [values[name] for name in ("instruction", "input") if values.get(name) not in (None, "")]
    if "output" in values and asked:
        answer = {"role": "assistant", "content": as_text(values["output"])}
        return [{"role": "user", "content": "\n\n".join(map(as_text, asked))}, answer]
    return None


def _side(value: Any, role: str) -> list[Any]:
    """One half of a prompt and completion pair: text, an object, or messages already."""
    if isinstance(value, list):
        return value
    return [{"role": role, "content": as_text(value) if isinstance(value, dict) else value}]


def as_text(value: Any) -> str:
    """Text as it is; anything else as JSON on one line with sorted keys, so that equal records read alike."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _turn(message: Any, index: int) -> Turn | Bad:
    if not isinstance(message, dict):
        return Bad("message is no object", f"message {index} is a {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        return Bad("unknown role", f"message {index} has role {str(role)[:100]!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        return Bad("content is no text", f"message {index} has content of type {type(content).__name__}")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        return Bad("invalid Unicode", f"message {index} has a lone surrogate at character {error.start}")
    # OpenAI's fine-tuning format: "weight": 0 keeps an assistant message out of the loss
    return Turn(role, content, role == "assistant" and message.get("weight", 1) != 0)
