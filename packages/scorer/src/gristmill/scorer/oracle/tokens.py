"""How many tokens a text is, and where they lie: by the oracle's own tokenizer, or by a cautious estimate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from gristmill.base.errors import UsageError

# Control strings of common chat formats that do not look like <|...|>, which is stripped whatever the tokenizer.
USUAL_CONTROLS = (
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<s>", "</s>",
    "<unk>", "<pad>", "<think>", "</think>",
)  # fmt: skip


class Tokenizer(Protocol):
    """Where tokens lie in a text, and the control strings that would be read as tokens of their own."""

    @property
    def special(self) -> tuple[str, ...]: ...

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character span of every token of `text`, in order. A character of several tokens has several spans."""
        ...


class FileTokenizer:
    """The tokenizer.json of a model folder."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Loaded

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UsageError(f"{path}: no such file; give a model folder that holds tokenizer.json")
        self._tokenizer = Loaded.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder().values()
        # Some models leave <think> and the like unmarked; runs of spaces, which others add, are no controls.
        self.special = tuple(sorted(token.content for token in added if token.special or _in_brackets(token.content)))

    def spans(self, text: str) -> list[tuple[int, int]]:
        return self._tokenizer.encode(text, add_special_tokens=False).offsets


class RoughTokenizer:
    """For endpoints whose tokenizer is unknown. Counts high rather than low: up to four ASCII letters a token, other
    characters by themselves, and those that byte-level vocabularies split as two or four."""

    special = USUAL_CONTROLS

    def spans(self, text: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for match in re.finditer(r"[A-Za-z]{1,4}|\s{1,4}|.", text, re.DOTALL):
            code = ord(match[0][0])
            found += [match.span()] * (1 if code < 0x80 else 2 if code < 0x10000 else 4)
        return found


def _in_brackets(text: str) -> bool:
    return text[:1] + text[-1:] in ("<>", "[]") and len(text) > 2
