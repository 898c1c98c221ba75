"""What the oracle is shown: the document between marks that it cannot forge, then one question about it.

The document comes before the question, so the questions about one document share a prefix that the engine caches.
Only the document is ever trimmed, by tokens; the question always reaches the oracle whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from gristmill.base.errors import UsageError
from gristmill.base.files import canonical_json
from gristmill.scorer.rubric import Dimension, Rubric

Windows = Literal["begin", "spread"]
GAP = "\n[...]\n"  # between the windows of a long document
CHARACTERS_PER_TOKEN = 20  # more than any text needs: only so much of a huge document is tokenised


class Tokenizer(Protocol):
    """Where tokens lie in a text, and the control strings that would be read as tokens of their own."""

    @property
    def special(self) -> tuple[str, ...]: ...

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character span of every token of `text`, in order."""
        ...


class FileTokenizer:
    """The tokenizer.json of a model folder."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Loaded

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UsageError(f"{path}: no such file; give a model folder that holds tokenizer.json")
        self._tokenizer = Loaded.from_file(str(path))
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special = tuple(sorted(token.content for token in added if token.special))

    def spans(self, text: str) -> list[tuple[int, int]]:
        return self._tokenizer.encode(text, add_special_tokens=False).offsets


class RoughTokenizer:
    """For endpoints whose tokenizer is unknown: at most four letters a token, so it counts high rather than low."""

    special: tuple[str, ...] = ()

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w{1,4}|[^\w\s]|\s+", text)]


@dataclass(frozen=True)
class Prompt:
    """One question about one document, in the parts that completion and chat engines lay out differently."""

    shared: str
    document: str
    question: str
    levels: tuple[int, ...]

    @property
    def completion(self) -> str:
        """The text to be continued by one level."""
        return f"{self.shared}{self.document}{self.question}:"

    @property
    def messages(self) -> list[dict[str, str]]:
        system = self.shared.strip() or "You grade texts."
        levels = f"{self.levels[0]} to {self.levels[-1]}"
        user = f"{self.document}{self.question}\nReply with one digit, {levels}, and nothing else."
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]


@dataclass(frozen=True)
class Shown:
    """The exact text that the oracle saw, its size in the oracle's tokens, and whether the document went on."""

    text: str
    tokens: int
    truncated: bool


def show(text: str, rubric: Rubric, tokenizer: Tokenizer, max_tokens: int, windows: Windows = "begin") -> Shown:
    """Strip what could be read as markup of the prompt, then trim to `max_tokens`.

    windows: "begin" keeps the beginning; "spread" keeps a third each of beginning, middle and end, joined by GAP.

    Raises:
        UsageError: max_tokens below 1.
    """
    if max_tokens < 1:
        raise UsageError(f"max_document_tokens is {max_tokens}; it must be at least 1")
    text = strip_markup(text, rubric, tokenizer.special)
    limit = max_tokens * CHARACTERS_PER_TOKEN
    head = text[:limit]
    spans = tokenizer.spans(head)
    if len(spans) <= max_tokens and len(head) == len(text):
        return Shown(text, len(spans), False)
    if windows == "begin":
        return Shown(_head(head, tokenizer, max_tokens), min(len(spans), max_tokens), True)
    third = max(1, max_tokens // 3)
    middle = len(text) // 2
    pieces = (
        _head(head, tokenizer, third),
        _head(text[middle : middle + limit], tokenizer, third),
        _tail(text[-limit:], tokenizer, third),
    )
    return Shown(GAP.join(pieces), sum(min(third, len(tokenizer.spans(piece))) for piece in pieces), True)


def strip_markup(text: str, rubric: Rubric, special: Sequence[str]) -> str:
    """Remove our delimiters, chat-template tokens and NUL from a document, until removing makes no new ones."""
    pattern = re.compile(
        "|".join([rf"</?text {nonce(rubric)}>", r"<\|[^|<>\n]{1,40}\|>", "\0", *(re.escape(s) for s in special if s)])
    )
    while True:
        stripped = pattern.sub("", text)
        if stripped == text:
            return text
        text = stripped


def nonce(rubric: Rubric) -> str:
    """Four hex digits that mark the document off. They need not be secret: documents are stripped of them."""
    return rubric.sha[:4]


def prompts(shown: str, rubric: Rubric) -> list[Prompt]:
    """One prompt per dimension, in the rubric's order."""
    shared = f"{rubric.instruction}\n\n" if rubric.instruction else ""
    for example in rubric.examples:
        lines = "".join(f"{question(d)}: {example.scores[d.name]}\n" for d in rubric.dimensions)
        shared += f"{block(example.text, rubric)}{lines}\n"
    document = block(shown, rubric)
    return [Prompt(shared, document, question(d), d.levels) for d in rubric.dimensions]


def block(text: str, rubric: Rubric) -> str:
    mark = nonce(rubric)
    return f"<text {mark}>\n{text}\n</text {mark}>\n\n"


def question(dimension: Dimension) -> str:
    anchors = ", ".join(f"{level} = {meaning}" for level, meaning in sorted(dimension.anchors.items()))
    # The name in front is worth 0.05-0.1 AUC to a small oracle (docs/log.md).
    return f"{dimension.name.capitalize()}: {dimension.question} ({anchors})"


def template_sha(rubric: Rubric, style: str) -> str:
    """sha256 of all that surrounds a document: two labels compare only where this is equal."""
    parts = [[p.shared, p.document, p.question, list(p.levels)] for p in prompts("\0", rubric)]
    return hashlib.sha256(canonical_json([style, parts]).encode()).hexdigest()


def _head(text: str, tokenizer: Tokenizer, tokens: int) -> str:
    spans = tokenizer.spans(text)
    return text[: spans[tokens - 1][1]] if len(spans) > tokens else text


def _tail(text: str, tokenizer: Tokenizer, tokens: int) -> str:
    spans = tokenizer.spans(text)
    return text[spans[-tokens][0] :] if len(spans) > tokens else text
