"""Files of conversations (SFT data) as tokens with a loss mask: learnt from is what the assistant says, and that it
stops there. How they are written is a form's matter: turns.py, or the model's own chat template.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError
from gristmill.shards.importers import turns as fixed
from gristmill.shards.importers.chat_template import ChatTemplate
from gristmill.shards.importers.conversation import Bad, Turn, read
from gristmill.shards.importers.flat import Found
from gristmill.shards.importers.rendering import Form

BATCH_CHARACTERS = 2**21


def load_form(tokenizer_file: Path, eos_id: int, chat_template: Path | None = None) -> Form:
    """The chat template's form, or the fixed one that the tokenizer has the tokens for."""
    if chat_template is None:
        return fixed.load(tokenizer_file, eos_id)
    return ChatTemplate(chat_template, tokenizer_file, eos_id)


def find(
    path: Path, name: str, tokenizer_file: Path, eos_id: int, quarantine: IO[str], chat_template: Path | None = None
) -> Found:
    """Read every line once; those that are no conversation go to `quarantine` as JSON: file, row, reason, detail."""
    form = load_form(tokenizer_file, eos_id, chat_template)
    good = bad = 0
    for row, turns in read(path):
        if not isinstance(turns, Bad):
            turns = form.refused(turns) or turns
        if isinstance(turns, Bad):
            record = {"file": name, "row": row, "reason": turns.reason, "detail": turns.detail}
            quarantine.write(json.dumps(record) + "\n")
            bad += 1
        else:
            good += 1
    return Found((path,), {name: ChatPart(path, name, tokenizer_file, eos_id, chat_template)}, good, bad)


@dataclasses.dataclass(frozen=True)
class ChatPart:
    """Renders the good rows of one file; `row` is the line, from 1."""

    path: Path
    name: str
    tokenizer_file: Path
    eos_id: int
    chat_template: Path | None = None

    def __call__(self) -> Iterator[pa.Table]:
        form = load_form(self.tokenizer_file, self.eos_id, self.chat_template)
        rows: list[int] = []
        held: list[list[Turn]] = []
        characters = 0
        for row, turns in read(self.path):
            if isinstance(turns, Bad) or form.refused(turns):
                continue  # find() has put it into quarantine
            rows.append(row)
            held.append(turns)
            characters += sum(len(turn.content) for turn in turns)
            if characters >= BATCH_CHARACTERS:
                yield self._table(rows, held, form)
                rows, held, characters = [], [], 0
        if rows:
            yield self._table(rows, held, form)

    def _table(self, rows: list[int], conversations: list[list[Turn]], form: Form) -> pa.Table:
        ids, learnt, lengths, set_here = form.render(conversations)
        if int(np.isin(ids, list(form.control)).sum()) != set_here:
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
                "loss": pa.LargeListArray.from_arrays(offsets, pa.array(learnt)),
            }
        )
