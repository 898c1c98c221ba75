"""C4's rules against datatrove's: the same verdict, the same reason, the same text for what is kept."""

from __future__ import annotations

import email.message
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4ParagraphFilter, C4QualityFilter
from datatrove.utils.text import split_into_sentences
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.datapipe.filters.c4 import C4Config, c4
from gristmill.datapipe.text import spans

PIECES = [
    "a", "word", "Two words here.", "More words end!", "lorem ipsum", "LOREM ipsum dolor.", "Java", "script",
    "JavaScript", "{", "}", "[1]", "[12", "]", "[", "[edit]", "[citation needed]", "٣", "[٣]", " ", "  ", "\t", "\n",
    "\n\n", "\r\n", "uses cookies", "Privacy Policy", "terms of use", ".", "?", "!", '"', "'", "...", "…", "é", "漢字",
    "Mr.", "e.g.", "x" * 30, "Is it so?", "It is. It was.",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
SEPARATORS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


def peer(config: C4Config) -> C4QualityFilter:
    return C4QualityFilter(
        split_paragraph=config.split == "lines", remove_citations=config.citations,
        filter_no_terminal_punct=config.terminal, min_words_per_line=config.min_words,
        max_word_length=config.max_word_length, filter_javascript=config.javascript, filter_policy=config.policy,
    )  # fmt: skip


def ours(texts: Sequence[str], config: C4Config) -> tuple[list[dict[str, Any]], list[str]]:
    columns = c4(pa.array(texts, pa.string()), config)
    rows = pa.table(columns).to_pylist()
    return rows, spans.apply(pa.array(texts, pa.string()), [(columns["c4_cut"], "")]).to_pylist()


def verdict(row: dict[str, Any], sentences: int) -> bool | tuple[bool, str]:
    """What datatrove answers, from our values and a count of sentences."""
    if row["c4_stop"]:
        return False, row["c4_stop"]
    return (False, "too_few_sentences") if sentences < 5 else True


LINES = {
    "line-total": "c4_lines", "line-kept": "c4_lines_kept", "line-filter-too_long_word": "c4_lines_long_word",
    "line-filter-no_terminal_punc": "c4_lines_no_terminal", "line-filter-too_few_words": "c4_lines_few_words",
    "line-filter-javascript": "c4_lines_javascript", "line-filter-policy": "c4_lines_policy",
}  # fmt: skip


def check(text: str, config: C4Config, exact: bool = True) -> None:
    (row,), (left,) = ours([text], config)
    block, counted = peer(config), Counter[str]()
    block.stat_update = lambda *names, **_: counted.update(names)  # type: ignore[method-assign]
    answer = block.filter(Document(text=text, id="0"))
    if row["c4_stop"]:
        assert answer == (False, row["c4_stop"])
        return
    assert {name: counted[name] for name in LINES} == {name: row[column] for name, column in LINES.items()}
    if config.split == "sentences":
        assert answer == verdict(row, row["c4_sentences"])
        return
    block.min_num_sentences = 0  # now the peer keeps it whatever its sentences
    kept = Document(text=text, id="0")
    assert block.filter(kept) is True
    if not exact:
        assert left.split() == kept.text.split()
        return
    assert left == kept.text
    lines = kept.text.split("\n")
    if len(lines) == row["c4_lines_kept"] and not config.citations:  # else white space at the text's ends may be gone
        assert answer == verdict(row, sum(len(split_into_sentences(line)) for line in lines))


@settings(max_examples=400)
@given(TEXTS)
@example("A line of words. [1]\n Another [2] one here.[3]  \n")
@example("[1] one two three.\n[edit]\nfour five six![citation needed]")
@example("java[1]script is here now.\nlorem [2]ipsum is here.\n{ and a bracket now.")
@example("with a { bracket now.\nlorem ipsum is here.")
@example("javascript and { in a line.\n lorem ipsum and javascript now.")
def test_lines_verdict_and_text_are_the_peers(text: str) -> None:
    check(text, C4Config())


@settings(max_examples=300)
@given(
    TEXTS, st.booleans(), st.booleans(), st.sampled_from([-1, 0, 2, 5]), st.sampled_from([-1, 5, 1000]), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_every_flag(
    text: str, citations: bool, terminal: bool, words: int, length: int, js: bool, policy: bool
) -> None:
    check(text, C4Config("lines", citations, terminal, words, length, js, policy))


@settings(max_examples=300)
@given(st.text(max_size=60), st.lists(st.sampled_from([*PIECES, *SEPARATORS]), max_size=20).map("".join))
def test_other_separators_and_any_unicode_leave_the_same_words(text: str, more: str) -> None:
    check(text + more, C4Config(terminal=False, min_words=1), exact=False)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 450), max_size=6), st.sampled_from(["\n", "\r\n", "é\n"]))
def test_paragraphs_of_mc4(lengths: list[int], separator: str) -> None:
    text = separator.join("é" * length for length in lengths)
    (row,), _ = ours([text], C4Config())
    assert (row["c4_long_lines"] >= 3) == C4ParagraphFilter().paragraph_filter(text)


def real_texts() -> list[str]:
    """English prose and code that ships with Python and its packages."""
    folder = Path(sysconfig.get_paths()["purelib"])
    files = [*sorted(folder.glob("*/METADATA"))[:150], *sorted(Path(email.message.__file__).parent.glob("*.py"))]
    texts = [file.read_text(errors="replace") for file in files]
    return [*texts, *(body for text in texts[::3] for body in text.split("\n\n")[::5])]


@pytest.mark.parametrize("config", [C4Config(citations=False), C4Config(terminal=False, citations=False)])
def test_real_text(config: C4Config) -> None:
    texts = real_texts()
    for text in texts[::3]:
        check(text, config)


@pytest.mark.parametrize("config", [C4Config(), C4Config(terminal=False), C4Config("sentences")])
def test_our_own_sentences_decide_alike(config: C4Config) -> None:
    texts = real_texts()
    rows, left = ours(texts, config)
    for text, row, rest in zip(texts, rows, left, strict=True):
        document = Document(text=text, id="0")
        answer = peer(config).filter(document)
        assert answer == verdict(row, row["c4_sentences"])
        if answer is True and config.split == "lines":
            assert rest == document.text
