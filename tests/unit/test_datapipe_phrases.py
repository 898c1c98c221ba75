"""Searching for many phrases at once, against Python's `in` and `re`."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.datapipe.text.buffers import Text, text_of
from gristmill.datapipe.text.characters import tables
from gristmill.datapipe.text.phrases import Phrases, counts, occurrences

ALPHABET = "abAé漢 _-1\n"
TEXTS = st.lists(st.text(alphabet=ALPHABET, max_size=40), min_size=1, max_size=5)
LISTS = st.lists(st.text(alphabet="abé漢 -", min_size=1, max_size=5), min_size=1, max_size=8, unique=True)


def fold(text: str) -> str:
    _, folded = tables()
    return "".join(chr(folded[ord(character)]) for character in text)


def ends(text: str, phrases: list[str], whole: bool) -> list[tuple[int, int]]:
    """(start, end) in characters of the longest phrase at each place where one ends."""
    folded, found = fold(text), []
    for end in range(1, len(folded) + 1):
        for phrase in sorted(phrases, key=len, reverse=True):
            start = end - len(phrase)
            apart = re.fullmatch(r"\W?", folded[max(0, start - 1) : max(0, start)]) and re.match(r"\W|$", folded[end:])
            if start >= 0 and folded[start:end] == phrase and (not whole or apart):
                found.append((start, end))
                break
    return found


@settings(max_examples=300)
@given(TEXTS, LISTS, st.booleans())
def test_places_are_those_of_a_plain_search(texts: list[str], phrases: list[str], whole: bool) -> None:
    automaton, text = Phrases.of(phrases), text_of(pa.array(texts))
    document, phrase, start, end = occurrences(automaton, text, whole)
    expected = [
        (row, len(body[:first].encode()), len(body[:last].encode()), fold(body[first:last]))
        for row, body in enumerate(texts)
        for first, last in ends(body, [fold(item) for item in phrases], whole)
    ]
    names = [automaton.phrases[index] for index in phrase]
    assert list(zip(document.tolist(), start.tolist(), end.tolist(), names)) == expected
    assert counts(automaton, text, whole).tolist() == np.bincount(document, minlength=len(texts)).tolist()


@settings(max_examples=200)
@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=6))
def test_any_unicode(text: str, phrases: list[str]) -> None:
    phrases = [phrase for phrase in phrases if "\ufffd" not in phrase] or ["a"]
    found = counts(Phrases.of(phrases), text_of(pa.array([text])))[0] > 0
    assert found == any(fold(phrase) in fold(text) for phrase in phrases)


def test_real_text_has_the_words_that_a_regular_expression_finds() -> None:
    text = Path(re.__file__).with_name("_parser.py").read_text() + Path(__file__).read_text()
    words = ["the", "if", "self", "character", "é漢", "a b", "re", "def __init__"]
    pattern = re.compile(r"(?:(?<=\W)|^)(" + "|".join(map(re.escape, words)) + r")(?:(?=\W)|$)")
    assert counts(Phrases.of(words), text_of(pa.array([text])), whole_words=True)[0] == len(
        pattern.findall(text.lower())
    )


def test_groups_number_phrases_through_and_share_them() -> None:
    phrases = Phrases.of(["Ab", "b"], ["b", "cab"])
    assert phrases.phrases == ("ab", "b", "cab")
    automaton = phrases.automaton
    bits = {automaton.longest[index]: int(automaton.groups[index]) for index in range(len(automaton.longest))}
    assert bits == {0: 0b11, 1: 0b11, 2: 0b11}  # "b" ends wherever the others end, and is in both groups


@pytest.mark.parametrize("phrases", [[""], ["a", "\ufffd"]])
def test_what_cannot_be_searched_for_is_refused(phrases: list[str]) -> None:
    with pytest.raises(ValueError, match="cannot be searched for"):
        Phrases.of(phrases)
    with pytest.raises(ValueError, match="from 1 to 64"):
        Phrases.of()


@settings(max_examples=200)
@given(st.binary(max_size=80), st.booleans())
def test_bytes_that_are_no_text_are_searched_too(data: bytes, whole: bool) -> None:
    text = Text(np.frombuffer(data + b"ab", np.uint8), np.array([0, len(data) // 2, len(data) + 2], np.int64))
    _, _, start, end = occurrences(Phrases.of(["ab", "\x00", "é", "漢字", "a"]), text, whole)
    assert (start >= 0).all() and (start < end).all() and (end <= len(data) + 2).all()


def test_repeats_cost_linear_time() -> None:
    phrases = Phrases.of(["a" * size for size in range(1, 40)] + ["b" + "a" * 30 + "b"])

    def seconds(size: int) -> float:
        text, best = text_of(pa.array(["a" * size])), sys.float_info.max
        for _ in range(3):
            start = time.process_time()
            assert counts(phrases, text, whole_words=True)[0] == 0
            best = min(best, time.process_time() - start)
        return best

    seconds(100)  # compiles
    assert seconds(1 << 20) < 64 * seconds(1 << 16) + 0.05
