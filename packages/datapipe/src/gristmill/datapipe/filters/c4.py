"""C4's rules (Raffel et al. 2020, 2.2) as datatrove 0.10.1 has them: which lines stay, and why the others go.

Nothing is rewritten: `c4_cut` holds the bytes whose removal leaves the text that datatrove would have written, lines
and sentences are counted, and what makes datatrove stop at a document is said, with which of its causes came first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.buffers import decode, text_of
from gristmill.datapipe.text.characters import DECIMAL, LINE_BREAK, SPACING, properties
from gristmill.datapipe.text.kernel import kernel
from gristmill.datapipe.text.phrases import Automaton, Phrases, groups
from gristmill.datapipe.text.sentences import Rules, rules, sentence_starts

POLICY_PHRASES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip
"""datatrove, c4_filters.py; tensorflow_datasets, c4_utils.py"""
_JAVASCRIPT, _POLICY, _LOREM = (np.uint64(1 << group) for group in range(3))
_CITATIONS = np.frombuffer(b"[edit][citation needed]", np.uint8)
_CITATION_STARTS = np.array([0, 6, 23])

COLUMNS = (
    "c4_lines", "c4_lines_kept", "c4_sentences", "c4_lines_long_word", "c4_lines_no_terminal", "c4_lines_few_words",
    "c4_lines_javascript", "c4_lines_policy", "c4_lorem_ipsum", "c4_curly_bracket", "c4_stop", "c4_long_lines",
)  # fmt: skip
(
    _LINES, _KEPT, _SENTENCES, _LONG_WORD, _NO_TERMINAL, _FEW_WORDS, _WITH_JAVASCRIPT, _WITH_POLICY, _WITH_LOREM,
    _WITH_CURLY, _STOP, _LONG_LINES,
) = range(12)  # fmt: skip
_STOPS = (None, "lorem_ipsum", "curly_bracket")


@dataclass(frozen=True)
class C4Config:
    """datatrove's C4QualityFilter, what decides about lines; defaults are its own. -1 switches a bound off."""

    split: Literal["lines", "sentences"] = "lines"
    """What is kept or dropped, and counted as lines; sentences (not in the paper) are joined by spaces."""
    citations: bool = True
    """Cut [1], [edit] and [citation needed]."""
    terminal: bool = True
    """Drop lines that do not end in . ? ! or a quotation mark, or that end in an ellipsis."""
    min_words: int = 3
    max_word_length: int = 1000
    javascript: bool = True
    policy: bool = True
    long_line: int = 200
    """Characters of a line that counts in c4_long_lines: mC4 (Xue et al. 2021, 3.1) asks for three of them."""

    def __post_init__(self) -> None:
        check_range("measure.heuristics.c4.min_words", self.min_words, -1)
        check_range("measure.heuristics.c4.max_word_length", self.max_word_length, -1)
        check_range("measure.heuristics.c4.long_line", self.long_line)


class _Tables(NamedTuple):
    flags: NDArray[np.uint16]
    phrases: Automaton
    rules: Rules


class _Limits(NamedTuple):
    sentences: bool
    citations: bool
    terminal: bool
    min_words: int
    max_word_length: int
    dropped: np.uint64
    """Groups of phrases whose lines are dropped."""


def c4(texts: pa.ChunkedArray | pa.Array, config: C4Config | None = None) -> dict[str, Any]:
    """One value a document: COLUMNS and c4_cut.

    c4_lines, c4_lines_kept, and c4_lines_* by the cause for which a line was dropped, the first in datatrove's order;
    c4_sentences of the kept lines by spaCy's rules for English (an empty line is one); c4_long_lines. c4_lorem_ipsum
    and c4_curly_bracket: whether a line that no earlier rule had dropped holds it; c4_stop: which of both came first
    (null: neither), where datatrove drops the document. The other columns are as if it had not stopped.

    c4_cut (list<int32>, see text.spans) leaves datatrove's text: kept lines, stripped, one newline between them. Where
    two kept lines have none between them in the original (but \\r or U+2028, say), their first separator stays instead;
    with split="sentences", any white space between them where there is no space, and nothing where there is none.
    """
    config = config or C4Config()
    text = text_of(texts)
    dropped = (_JAVASCRIPT if config.javascript else np.uint64(0)) | (_POLICY if config.policy else np.uint64(0))
    limits = _Limits(
        config.split == "sentences", config.citations, config.terminal, config.min_words,
        config.max_word_length if config.max_word_length != -1 else np.iinfo(np.int64).max, dropped,
    )  # fmt: skip
    values = np.zeros((len(text), len(COLUMNS)), np.int32)
    offsets = np.zeros(len(text) + 1, np.int64)
    bounds = _measure(text.data, text.offsets, _tables(), limits, values, offsets)
    _count_long_lines(text.data, text.offsets, config.long_line, values[:, _LONG_LINES])
    columns: dict[str, Any] = dict(zip(COLUMNS, values.T.copy()))
    columns |= {name: columns[name].astype(bool) for name in ("c4_lorem_ipsum", "c4_curly_bracket")}
    stops = pa.array(_STOPS).take(pa.array(columns["c4_stop"]))
    return columns | {"c4_stop": stops, "c4_cut": spans.column(bounds, offsets)}


@functools.cache
def _tables() -> _Tables:
    return _Tables(properties(), Phrases.of(["javascript"], POLICY_PHRASES, ["lorem ipsum"]).automaton, rules())


@numba.njit(cache=True)
def _measure(data, offsets, tables, limits, values, cut_offsets):
    """Fills values and cut_offsets, returns the bounds of all cuts."""
    longest = np.int64(0)
    for document in range(len(offsets) - 1):
        longest = max(longest, offsets[document + 1] - offsets[document])
    line = np.empty(longest, np.uint8)  # one that had citations, without them
    kept = np.empty(64, np.int64)  # start, end of what stays of a document
    starts = np.empty(longest if limits.sentences else 0, np.int64)
    cuts, cut = np.empty(1024, np.int32), 0
    for document in range(len(offsets) - 1):
        begin, end = offsets[document], offsets[document + 1]
        units = sentence_starts(data, begin, end, tables.rules, starts) if limits.sentences else 0
        used, unit, last = 0, 0, np.int64(-1)
        at = begin
        while at < end or (limits.sentences and unit < units):
            if limits.sentences:
                stop = after = starts[unit] if unit + 1 < units else end
            else:
                stop, after = _line_end(data, at, end, tables.flags)
            unit += 1
            first, stop = _stripped(data, at, stop, tables.flags)
            values[document, _LINES] += 1
            keeps, sentences = _judge(data, first, stop, tables, limits, line, starts, values[document])
            if keeps:
                values[document, _KEPT] += 1
                values[document, _SENTENCES] += sentences
                if last >= 0:
                    kept, used = _keep_joint(data, last, first, tables.flags, limits.sentences, kept, used)
                kept, used = _keep_line(data, first, stop, tables.flags, limits.citations, kept, used)
                last = stop
            at = after
        used = _without_last_spaces(data, kept, used, tables.flags)
        cuts, cut = spans.push_rest(kept, used, begin, end, cuts, cut)
        cut_offsets[document + 1] = cut
    return cuts[:cut]


@kernel
def _judge(data, at, stop, tables, limits, line, starts, values):
    """(whether the stripped line data[at:stop] stays, its sentences); counts in `values` why it does not."""
    flags, symbols = tables.flags, tables.phrases.symbols
    following, accepting = tables.phrases.following, tables.phrases.accepting
    start, citation, copied = at, at, np.int64(-1)  # `line` holds `copied` bytes once a citation was found
    words, longest, characters_in_word = 0, 0, 0
    state, found, curly = np.int64(0), np.uint64(0), False
    last, second, third = np.int64(0), np.int64(0), np.int64(0)
    while at < stop:
        byte = data[at]
        if byte < 0x80:
            code, after = np.int64(byte), at + 1
        else:
            code, after = decode(data, at, stop)
        if flags[code] & SPACING:
            characters_in_word = 0
        else:
            words += characters_in_word == 0
            characters_in_word += 1
            longest = max(longest, characters_in_word)
        if code == 0x5B and at >= citation and limits.citations:
            citation = max(at, _citation_end(data, at, stop, flags))
            if citation > at and copied < 0:
                copied = np.int64(0)
                for index in range(start, at):
                    line[copied] = data[index]
                    copied += 1
        if at >= citation:
            if copied >= 0:
                for index in range(at, after):
                    line[copied] = data[index]
                    copied += 1
            state = np.int64(following[state + symbols[code]])
            if state >= accepting:
                found |= groups(tables.phrases, state)
            curly |= code == 0x7B
            last, second, third = code, last, second
        at = after
    ended = last in (0x2E, 0x3F, 0x21, 0x22, 0x27) and not (last == second == third == 0x2E)  # . ? ! " '
    if longest > limits.max_word_length:
        values[_LONG_WORD] += 1
    elif limits.terminal and not ended:
        values[_NO_TERMINAL] += 1
    elif words < limits.min_words:
        values[_FEW_WORDS] += 1
    else:
        if found & _LOREM:
            values[_WITH_LOREM] = 1
            values[_STOP] = values[_STOP] or 1
        if found & limits.dropped & _JAVASCRIPT:
            values[_WITH_JAVASCRIPT] += 1
            return False, 0
        if curly:
            values[_WITH_CURLY] = 1
            values[_STOP] = values[_STOP] or 2
        if found & limits.dropped & _POLICY:
            values[_WITH_POLICY] += 1
            return False, 0
        if limits.sentences:
            return True, 1
        if copied >= 0:
            return True, sentence_starts(line, 0, copied, tables.rules, starts)
        return True, sentence_starts(data, start, stop, tables.rules, starts)
    return False, 0


@kernel
def _citation_end(data, at, stop, flags):
    """Where the citation ends that starts with the bracket at `at`; `at` itself if none does."""
    begin, at = at, at + 1
    while at < stop:
        code, after = decode(data, at, stop)
        if not flags[code] & DECIMAL:
            break
        at = after
    if at < stop and data[at] == 0x5D:
        return at + 1
    for number in range(len(_CITATION_STARTS) - 1):
        first, size = _CITATION_STARTS[number], _CITATION_STARTS[number + 1] - _CITATION_STARTS[number]
        same = begin + size <= stop
        step = 0
        while same and step < size:
            same = data[begin + step] == _CITATIONS[first + step]
            step += 1
        if same:
            return begin + size
    return begin


@kernel
def _line_end(data, at, end, flags):
    """(where the line ends, where the next starts), as in str.splitlines."""
    while at < end:
        byte = data[at]
        if byte < 0x80:
            code, after = np.int64(byte), at + 1
        else:
            code, after = decode(data, at, end)
        if flags[code] & LINE_BREAK:
            both = code == 0x0D and after < end and data[after] == 0x0A
            return at, after + both
        at = after
    return end, end


@kernel
def _stripped(data, at, stop, flags):
    """data[at:stop] without white space at its ends, as in str.strip."""
    at = _first_visible(data, at, stop, flags)
    return at, _last_visible(data, at, stop, flags)


@kernel
def _last_visible(data, at, stop, flags):
    while stop > at:
        before = stop - 1
        while before > at and before > stop - 4 and data[before] & 0xC0 == 0x80:
            before -= 1
        code, after = decode(data, before, stop)
        if after != stop or not flags[code] & SPACING:
            break
        stop = before
    return stop


@kernel
def _first_visible(data, at, stop, flags):
    while at < stop:
        code, after = decode(data, at, stop)
        if not flags[code] & SPACING:
            break
        at = after
    return at


@numba.njit(cache=True)
def _keep_joint(data, last, first, flags, sentences, kept, used):
    """Keep what separates two kept lines, of data[last:first]: the first newline (or space), or the first like it."""
    joint, kind = (np.int64(0x20), SPACING) if sentences else (np.int64(0x0A), LINE_BREAK)
    start = end = np.int64(-1)
    at = last
    while at < first:
        code, after = decode(data, at, first)
        if code == joint:
            start, end = at, after
            break
        if start < 0 and flags[code] & kind:
            start, end = at, after
        at = after
    if start >= 0 and used:
        kept = spans.push(kept, used, start, end)
        used += 2
    return kept, used


@numba.njit(cache=True)
def _keep_line(data, at, stop, flags, citations, kept, used):
    """Keep data[at:stop] without its citations; nothing that begins a text may be white space."""
    start = at
    while start < stop:
        end = after = stop
        for at in range(start if citations else stop, stop):
            if data[at] == 0x5B:
                after = _citation_end(data, at, stop, flags)
                if after > at:
                    end = at
                    break
                after = stop
        first = start if used else _first_visible(data, start, end, flags)
        if first < end:
            kept = spans.push(kept, used, first, end)
            used += 2
        start = after
    return kept, used


@kernel
def _without_last_spaces(data, kept, used, flags):
    while used:
        kept[used - 1] = _last_visible(data, kept[used - 2], kept[used - 1], flags)
        if kept[used - 1] > kept[used - 2]:
            break
        used -= 2
    return used


@kernel
def _count_long_lines(data, offsets, characters, counts):
    for document in range(len(offsets) - 1):
        length = 0
        for at in range(offsets[document], offsets[document + 1]):
            if data[at] == 0x0A:
                counts[document] += length >= characters
                length = 0
            else:
                length += data[at] & 0xC0 != 0x80
        counts[document] += length >= characters
