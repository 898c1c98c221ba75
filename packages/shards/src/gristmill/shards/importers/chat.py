"""Conversations (SFT data) as tokens with a loss mask: learnt from is what the assistant says, and that it stops there.

Rendered as ChatML where the tokenizer has <|im_start|> and <|im_end|>, without a newline after the last turn:

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\nHi<|im_end|>

and else with the end-of-document token after each turn, `user:\\nHello</s>\\nassistant:\\nHi</s>`. Control tokens are
set by id and the rest is encoded as text, so what a user writes never becomes one: "<|im_end|>" stays ten letters.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError
from gristmill.shards.importers.conversation import Bad, Turn, read
from gristmill.shards.importers.flat import Found
from gristmill.shards.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHATML = ("<|im_start|>", "<|im_end|>")
BATCH_CHARACTERS = 2**21


@dataclasses.dataclass(frozen=True)
class Template:
    """How a turn is written: `start` (an id, if there is one), the header as text, the content, `end` (an id)."""

    name: str
    start: int | None
    header: str
    end: int
    separator: str = "\n"


def find(path: Path, name: str, tokenizer_file: Path, eos_id: int, quarantine: IO[str]) -> Found:
    """Read every line once; those that are no conversation go to `quarantine` as JSON: file, row, reason, detail."""
    template, tokenizer = load_template(tokenizer_file, eos_id)
    good = bad = 0
    for row, turns in read(path):
        if not isinstance(turns, Bad):
            turns = _refused(turns, template, tokenizer, eos_id) or turns
        if isinstance(turns, Bad):
            record = {"file": name, "row": row, "reason": turns.reason, "detail": turns.detail}
            quarantine.write(json.dumps(record) + "\n")
            bad += 1
        else:
            good += 1
    return Found((path,), {name: ChatPart(path, name, tokenizer_file, eos_id)}, good, bad)


@dataclasses.dataclass(frozen=True)
class ChatPart:
    """Renders the good rows of one file; `row` is the line, from 1."""

    path: Path
    name: str
    tokenizer_file: Path
    eos_id: int

    def __call__(self) -> Iterator[pa.Table]:
        template, tokenizer = load_template(self.tokenizer_file, self.eos_id)
        rows: list[int] = []
        held: list[list[Turn]] = []
        characters = 0
        for row, turns in read(self.path):
            if isinstance(turns, Bad) or _refused(turns, template, tokenizer, self.eos_id):
                continue  # find() has put it into quarantine
            rows.append(row)
            held.append(turns)
            characters += sum(len(turn.content) for turn in turns)
            if characters >= BATCH_CHARACTERS:
                yield self._table(rows, held, template, tokenizer)
                rows, held, characters = [], [], 0
        if rows:
            yield self._table(rows, held, template, tokenizer)

    def _table(
        self, rows: list[int], conversations: list[list[Turn]], template: Template, tokenizer: Tokenizer
    ) -> pa.Table:
        ids, masks, lengths = render(conversations, template, tokenizer, self.eos_id)
        control = np.isin(ids, [self.eos_id, template.end, *([] if template.start is None else [template.start])])
        set_here = sum(
            len(turns) * (1 + (template.start is not None)) - (template.end == self.eos_id) for turns in conversations
        )
        if int(control.sum()) != set_here:
            raise DataError(
                f"{self.path}: some text between lines {rows[0]} and {rows[-1]} becomes a control token with "
                f"{self.tokenizer_file}, whose normalizer rewrites it; take those lines out"
            )
        offsets = pa.array(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
        return pa.table(
            {
                "id": [f"{self.name}:{row}" for row in rows],
                "tokens": pa.LargeListArray.from_arrays(offsets, pa.array(ids)),
                "file": pa.repeat(self.name, len(rows)),
                "row": pa.array(rows, pa.int64()),
                "loss": pa.LargeListArray.from_arrays(offsets, pa.array(masks)),
            }
        )


def load_template(tokenizer_file: Path, eos_id: int) -> tuple[Template, Tokenizer]:
    """The template that the tokenizer has the tokens for, and the tokenizer, for text that may spell them."""
    tokenizer = load_tokenizer(tokenizer_file, CHATML)
    start, end = (tokenizer.token_to_id(token) for token in CHATML)
    if start is None or end is None:
        return Template("plain", None, "{role}:\n", eos_id), tokenizer
    return Template("chatml", start, "{role}\n", end), tokenizer


def render(
    conversations: list[list[Turn]], template: Template, tokenizer: Tokenizer, eos_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, loss mask, length of each conversation); less the last token where it is EOS, which the writer sets."""
    contents = [turn.content for turns in conversations for turn in turns]
    encoded = iter(tokenizer.encode_batch_fast(contents, add_special_tokens=False))
    start = [] if template.start is None else [template.start]
    headers: dict[tuple[str, bool], list[int]] = {}  # what stands before the content of a role, at first and later
    ids: list[int] = []
    runs: list[tuple[int, int]] = []  # (0 or 1, how many tokens)
    lengths: list[int] = []
    for turns in conversations:
        began = len(ids)
        for index, turn in enumerate(turns):
            which = (turn.role, index > 0)
            if which not in headers:
                between = _plain(tokenizer, template.separator) if index else []
                headers[which] = [*between, *start, *_plain(tokenizer, template.header.format(role=turn.role))]
            content = next(encoded).ids
            ids += [*headers[which], *content, template.end]
            runs += [(0, len(headers[which])), (int(turn.learnt), len(content) + 1)]
        if template.end == eos_id:
            ids.pop()
            runs[-1] = (runs[-1][0], runs[-1][1] - 1)
        lengths.append(len(ids) - began)
    learnt, counts = np.array(runs, np.int64).reshape(-1, 2).T
    return np.array(ids, np.uint32), np.repeat(learnt.astype(np.uint8), counts), np.array(lengths, np.int64)


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _refused(turns: list[Turn], template: Template, tokenizer: Tokenizer, eos_id: int) -> Bad | None:
    """Text that spells a control token, where the tokenizer makes that token of it all the same."""
    control = {i: tokenizer.id_to_token(i) or "" for i in (template.start, template.end, eos_id) if i is not None}
    for index, turn in enumerate(turns):
        spelled = [token for token in control.values() if token and token in turn.content]
        if spelled and not control.keys().isdisjoint(_plain(tokenizer, turn.content)):
            return Bad("forges a control token", f"message {index} spells {', '.join(spelled)}")
    return None
