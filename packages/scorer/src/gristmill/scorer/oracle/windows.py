"""Which part of a document the oracle is shown, trimmed by tokens and without what could pass for the prompt's own.

However long a document is, only a few characters per token that is asked for are ever looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gristmill.base.errors import UsageError
from gristmill.scorer.oracle.prompt import nonce, question
from gristmill.scorer.oracle.tokens import Tokenizer
from gristmill.scorer.rubric import Dimension, Rubric

Windows = Literal["begin", "middle", "end", "spread"]
GAP = "\n[...]\n"  # between the windows of a long document
# Read per token: what most text needs, and, where that is not enough, more than any needs.
CHARACTERS_PER_TOKEN = (6, 20)
STRIPPED = "\n"  # stands where markup was: what is on either side of it cannot grow together into new markup


Clean = Callable[[str], str]


@dataclass(frozen=True)
class Shown:
    """The exact text that the oracle saw, its size in tokens, and which part of the document it is: "whole" or the
    windows asked for. stripped: what could pass for the prompt's own was taken out of the part that was read."""

    text: str
    tokens: int
    window: str
    stripped: bool = False

    @property
    def truncated(self) -> bool:
        return self.window != "whole"


def show(text: str, rubric: Rubric, tokenizer: Tokenizer, max_tokens: int, windows: Windows = "begin") -> Shown:
    """The document, or of a longer one windows of `max_tokens` together.

    windows: "begin", "middle" and "end" are one piece each; "spread" is a third of each, joined by GAP.

    Raises:
        UsageError: max_tokens is below 1, or too few for three pieces.
    """
    gaps = 2 * len(tokenizer.spans(GAP)) if windows == "spread" else 0
    if max_tokens < (least := 1 + gaps + 2 * (gaps > 0)):
        raise UsageError(f"max_document_tokens is {max_tokens}; with windows {windows!r} it must be at least {least}")
    pattern, found = markup(rubric, tokenizer.special), list[bool]()

    def clean(piece: str) -> str:
        stripped = strip_markup(piece, pattern)
        found.append(stripped != piece)
        return stripped

    reach, head, tokens = _beginning(text, clean, tokenizer, max_tokens)
    if len(text) <= reach and tokens <= max_tokens:
        return Shown(head, tokens, "whole", found[-1])
    if windows == "begin":
        shown = _head(head, tokenizer, max_tokens)
    elif windows == "end":
        found.clear()
        shown = _tail(clean(text[-reach:]), tokenizer, max_tokens)
    elif windows == "middle":
        found.clear()
        shown = _middle(text, reach, clean, tokenizer, max_tokens)
    else:
        third = (max_tokens - gaps) // 3
        pieces = (
            _head(head, tokenizer, third),
            _middle(text, reach, clean, tokenizer, third),
            _tail(clean(text[-reach:]), tokenizer, third),
        )
        shown = GAP.join(pieces)
    return Shown(shown, len(tokenizer.spans(shown)), windows, any(found))


def markup(rubric: Rubric, special: Sequence[str]) -> re.Pattern[str]:
    """What must not reach the oracle inside a document: our delimiters and questions, answers in their shape,
    chat-template tokens, NUL, lone surrogates."""
    shapes = [rf"</?text {nonce(rubric)}>", r"<[|｜][^|｜<>\n]{1,40}[|｜]>", "\0", "[\ud800-\udfff]"]
    shapes += [*map(_asked, rubric.dimensions), *dict.fromkeys(map(_answered, rubric.dimensions))]
    return re.compile("|".join([*shapes, *(re.escape(string) for string in special if string)]))


def _asked(dimension: Dimension) -> str:
    """The dimension's question with what the prompt puts around it, or some of that: its name, its anchors, an answer;
    in any case and spacing."""
    anchors = question(dimension).split(f"{dimension.question} ", 1)[1]
    asked, listed = (r"\s+".join(map(re.escape, words.split())) for words in (dimension.question, anchors))
    answer = rf"\s*:\s*[{''.join(dimension.symbols)}]\b"
    named = rf"\b{dimension.name}\s*:\s*{asked}(?:\s*{listed})?(?:{answer})?"
    return rf"(?i:{named}|{asked}(?:\s*{listed}(?:{answer})?|{answer}))"


def _answered(dimension: Dimension) -> str:
    """A scale in brackets and a level behind it, whatever words the levels have: where questions were answered before,
    a small model goes on as they were (docs/oracle.md)."""
    symbol = f"[{''.join(dimension.symbols)}]"
    number = r"[ \t]*\d" if dimension.max > 9 else ""  # letters: "a = 0: bad, b = 1", which no code is
    level = rf"\b{symbol}[ \t]*={number}.{{1,400}}?"  # with brackets inside: of nested scales one pass then takes many
    return rf"(?s:[(\[{{][ \t]*{level}{level}[)\]}}][ \t]*:[ \t]*{symbol}\b)"


def strip_markup(text: str, pattern: re.Pattern[str]) -> str:
    """The text with a line break in place of each match, again until there is none."""
    while True:
        stripped = pattern.sub(STRIPPED, text)
        if stripped == text:
            return text
        text = stripped


def _beginning(text: str, clean: Clean, tokenizer: Tokenizer, max_tokens: int) -> tuple[int, str, int]:
    """How many characters of a text are worth reading, the first of them stripped, and its tokens."""
    reach, head, tokens = 0, "", 0
    for characters in CHARACTERS_PER_TOKEN:
        reach = max_tokens * characters
        head = clean(text[:reach])
        tokens = len(tokenizer.spans(head))
        if tokens > max_tokens or len(text) <= reach:
            break
    return reach, head, tokens


def _middle(text: str, reach: int, clean: Clean, tokenizer: Tokenizer, tokens: int) -> str:
    centre = len(text) // 2
    window = clean(text[max(0, centre - reach // 2) : centre + reach // 2])
    before = _tail(window[: len(window) // 2], tokenizer, tokens // 2)
    return _head(before + window[len(window) // 2 :], tokenizer, tokens)


def _head(text: str, tokenizer: Tokenizer, tokens: int) -> str:
    """The longest beginning that is cut between tokens and, tokenised by itself, has at most so many."""
    spans, most = tokenizer.spans(text), tokens
    while len(spans) > tokens:
        if not most:
            return ""
        # Not through a character of several tokens: those share its span.
        text = text[: min(spans[most - 1][1], spans[most][0])]
        spans, most = tokenizer.spans(text), most - 1
    return text


def _tail(text: str, tokenizer: Tokenizer, tokens: int) -> str:
    spans, most = tokenizer.spans(text), tokens
    while len(spans) > tokens:
        if not most:
            return ""
        text = text[max(spans[-most][0], spans[-most - 1][1]) :]
        spans, most = tokenizer.spans(text), most - 1
    return text
