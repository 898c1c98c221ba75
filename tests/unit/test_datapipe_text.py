"""The shared views of a batch: counts and folded words, against plain Python that is slow and obviously right."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import hostile

from gristmill.datapipe.filters.fineweb import fineweb
from gristmill.datapipe.filters.gopher import gopher
from gristmill.datapipe.filters.length import length
from gristmill.datapipe.filters.olmo3 import olmo3
from gristmill.datapipe.filters.repetition import olmo3_repetition, repetition
from gristmill.datapipe.text.characters import DIGIT, IDEOGRAPH, LETTER, NEWLINE, SPACE, tables
from gristmill.datapipe.text.counts import CLASSES
from gristmill.datapipe.text.features import Features, featurise

ODD = st.text(alphabet="ab Ä\u0308é1漢字\n\t\r.,-•…😀\u2028\x1cไทย", max_size=60)
TEXTS = st.lists(ODD | st.text(max_size=40), min_size=1, max_size=6)
MEASURES: tuple[Callable[[Features], dict[str, pa.Array]], ...] = (
    length, gopher, fineweb, repetition, olmo3, olmo3_repetition,
)  # fmt: skip


def folded_words(text: str) -> list[str]:
    classes, _ = tables()
    words, word = [], ""
    for character in unicodedata.normalize("NFC", text):
        kind = classes[ord(character)]
        if kind in (LETTER, DIGIT):
            word += character.lower() if len(character.lower()) == 1 else character
            continue
        if word:
            words.append(word)
            word = ""
        if kind == IDEOGRAPH:
            words.append(character)
    return [*words, word] if word else words


@settings(max_examples=200)
@given(TEXTS)
def test_folded_words_are_those_of_a_plain_reading(texts: list[str]) -> None:
    features = featurise(pa.array(texts))
    by_hash: dict[int, str] = {}
    for document, text in enumerate(texts):
        start, end = features.folded.offsets[document : document + 2]
        for word, key in zip(folded_words(text), features.folded.hashes[start:end].tolist(), strict=True):
            assert by_hash.setdefault(key, word) == word  # equal hashes mean equal words ...
        assert features.counts.words[document] == end - start
    assert len(set(by_hash.values())) == len(by_hash)  # ... and unequal ones unequal words


@settings(max_examples=200)
@given(TEXTS)
def test_counts_are_those_of_a_plain_reading(texts: list[str]) -> None:
    classes, _ = tables()
    counts = featurise(pa.array(texts)).counts
    for document, text in enumerate(texts):
        kinds = np.bincount([classes[ord(character)] for character in text] or [0], minlength=CLASSES)
        kinds[0] -= not text
        assert counts.classes[document].tolist() == kinds.tolist()
        lines = text.splitlines()
        assert counts.split_lines[document] == len(lines)
        assert counts.lines[document] == sum(bool(line.strip()) for line in lines)
        assert counts.bullet_lines[document] == sum(line.strip().startswith(("•", "-")) for line in lines)
        assert counts.ellipsis_lines[document] == sum(line.strip().endswith(("...", "…")) for line in lines)
        assert counts.hashes[document] == text.count("#") and counts.newlines[document] == text.count("\n")
        assert counts.ellipses[document] == text.count("...") + text.count("…")


def test_position_in_the_batch_and_missing_values_change_nothing() -> None:
    alone = featurise(pa.array(["Zwei Wörter"])).folded
    among = featurise(pa.chunked_array([["x y z", None], ["", "Zwei Wörter"]])).folded
    assert among.hashes[3:].tolist() == alone.hashes.tolist()
    assert np.diff(among.offsets).tolist() == [3, 0, 0, 2]
    assert featurise(pa.array(["drop me", "Zwei Wörter"]).slice(1)).folded.hashes.tolist() == alone.hashes.tolist()


def test_measures_do_not_depend_on_the_batch() -> None:
    texts = [
        "One line.\nOne line.\n\nÄ\u0308 漢字 #tag",
        "",
        "- a\r\n- b ...",
        "don't stop, e.g. here: http://a.bc/d-e",
    ]
    whole, sliced = pa.array(texts), pa.array(["before", *texts, "after"]).slice(1, len(texts))
    for measure in MEASURES:
        together = pa.table(measure(featurise(whole))).to_pylist()
        assert together == pa.table(measure(featurise(sliced))).to_pylist()
        assert together == [pa.table(measure(featurise(pa.array([text])))).to_pylist()[0] for text in texts]
        assert pa.table(measure(featurise(pa.array([], pa.string())))).num_rows == 0


def test_identity_ignores_space_and_case_but_not_order() -> None:
    texts = ["Hello, World\n\nagain", "hello,   world again", "again hello, world", "Cafe\u0301", "café"]
    identity = featurise(pa.array(texts)).identity
    assert (identity[0] == identity[1]).all() and (identity[0] != identity[2]).any()
    assert (identity[3] == identity[4]).all()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("now here", "nowhere", False),
        ("1 2 3", "12 3", False),
        ("1 000", "1000", False),
        ("a b", "ab ", False),
        ("a\nb", "a  b", True),
        ("x = -1\n", "x=-1", True),
        ("漢 字\nx", "漢字x", True),
        ("x漢 y", "x 漢y", True),
        ("สวัส ดี", "สวัสดี", True),
        ("a- b", "a -b", True),
        ("", " \n", True),
    ],
)
def test_identity_knows_where_words_end_and_no_more_of_space(one: str, other: str, same: bool) -> None:
    first, second = featurise(pa.array([one, other])).identity
    assert (first == second).tolist() == [same, same]  # in both halves


def spaced(text: str) -> str:
    """The words and symbols in order, one space after each run of letters and digits."""
    classes, folded = tables()
    kinds = dict.fromkeys((LETTER, DIGIT), "a") | dict.fromkeys((SPACE, NEWLINE), " ")
    text = unicodedata.normalize("NFC", text)
    pattern = "".join(kinds.get(classes[ord(character)], ".") for character in text)
    text = "".join(chr(folded[ord(character)]) for character in text)
    runs = re.finditer(r"a+|\.", pattern)
    return "".join(text[run.start() : run.end()] + " " * (run[0][0] == "a") for run in runs)


@settings(max_examples=300)
@given(st.lists(st.lists(st.sampled_from(["a", "a ", "A\n", "漢", "漢 ", " -"]), max_size=3).map("".join), min_size=8))
def test_identities_are_equal_where_words_and_symbols_are(texts: list[str]) -> None:
    identity, forms = featurise(pa.array(texts)).identity, [spaced(text) for text in texts]
    for half in (0, 1):
        by_hash = dict(zip(identity[:, half].tolist(), forms))
        assert [by_hash[value] for value in identity[:, half].tolist()] == forms
        assert len(by_hash) == len(set(forms))


def test_scripts_without_spaces_count_characters_as_words() -> None:
    assert length(featurise(pa.array(["漢字かな", "ab cd", "สวัสดี"])))["words"].to_pylist() == [4, 2, 6]


def test_what_is_undefined_is_null() -> None:
    values = pa.table(length(featurise(pa.array(["", " \n"])))).to_pylist()
    assert values[0]["mean_word_length"] is None and values[0]["whitespace"] is None
    assert values[1]["alphabetic"] is None and values[1]["whitespace"] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_hostile_bytes_give_a_value_or_a_null(seed: int) -> None:
    texts = hostile(
        seed, [b"don't", b"http://a.b", b"...", b"\xe2\x80\xa6", b"U.S.", b"5km", "漢".encode(), "\u0301".encode()]
    )
    for measure in MEASURES:
        table = pa.table(measure(featurise(texts)))
        assert table.num_rows == len(texts)
        for column in table.columns:
            assert np.isfinite(column.drop_null().to_numpy()).all()
    assert len(featurise(texts).identity) == len(texts)


PATTERNS = [
    "a", "a ", "ab\n", "\n", ".", ") ", ")", "'", "a.b,", "-", "a-", "http://", "a@b.c", "1km", "…", "a\n\n", "漢",
    "e\u0301", "the cat sat on the mat. ", "\u2028", "x" * 40 + " ",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_time_is_linear_in_bytes(pattern: str) -> None:
    def seconds(size: int) -> float:
        column, best = pa.array([(pattern * (size // len(pattern.encode()) + 1))[:size]]), 1e9
        for _ in range(3):
            start = time.process_time()
            features = featurise(column)
            for measure in MEASURES:
                measure(features)
            _ = features.identity
            best = min(best, time.process_time() - start)
        return best

    seconds(1000)  # compiles
    assert seconds(4_000_000) < 64 * max(seconds(250_000), 0.005)
