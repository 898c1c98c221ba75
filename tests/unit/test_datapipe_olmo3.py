"""OLMo 3's document rules, against plain Python written after the Rust of allenai/datamap-rs (src/map_fxn.rs)."""

from __future__ import annotations

import re
from collections import defaultdict

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.float32 import rounded
from tests.support.real_texts import real_texts
from tests.support.word_lists import words_from_lists

from gristmill.datapipe.filters.gopher import STOP_WORDS
from gristmill.datapipe.filters.olmo3 import olmo3
from gristmill.datapipe.filters.repetition import olmo3_repetition
from gristmill.datapipe.text.features import featurise

WORDS = st.lists(st.sampled_from(["a", "aa", "b", "é", "漢"]), max_size=60)
PIECES = ["the", "The", "of", "a1", "#", "...", ". . .", ".", "…", "●", "•", "*", "-", "é", *"  \n\t", "\r\n"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


def repeated_share(elements: list[str], size: int, weighted: bool) -> float:
    """_rep_counter_fraction: of several n-grams as frequent and as long, the first."""
    grams: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at in range(len(elements) - size + 1):
        grams[tuple(elements[at : at + size])].append(at)
    number, total = len(elements) - size + 1, sum(len(element.encode()) for element in elements)
    if number <= 0:
        return 1.0 if size == 1 else 0.0
    if number == 1:
        return 0.0
    repeated = {gram: places for gram, places in grams.items() if len(places) > 1}
    if size == 1 and not weighted:
        return sum(map(len, repeated.values())) / len(elements)
    if 1 < size <= 4 and repeated:
        best = max(repeated, key=lambda gram: (len(repeated[gram]), sum(len(word.encode()) for word in gram)))
        repeated = {best: repeated[best]}
    covered = {at + step for places in repeated.values() for at in places for step in range(size)}
    return sum(len(elements[at].encode()) for at in covered) / total


def expected_repetition(text: str, words: list[str]) -> dict[str, float]:
    text = re.sub(r"\n{3,}", "\n\n", text)  # newline_removal_modifier stands before
    values: dict[str, float] = {}
    for name, elements in (("line", text.split("\n")), ("paragraph", text.split("\n\n"))):
        elements = [element for element in elements if element]
        values[f"olmo3_repetition_{name}s"] = repeated_share(elements, 1, False)
        values[f"olmo3_repetition_{name}_bytes"] = repeated_share(elements, 1, True)
    for size in range(2, 11):
        kind = "top" if size <= 4 else "duplicate"
        values[f"olmo3_repetition_{kind}_{size}_gram"] = repeated_share(words, size, True)
    return values


def expected_quality(text: str) -> dict[str, float | None]:
    words = [word for word in re.split(r"[^\S\x1c-\x1f]+", text) if word]
    merged = [word for word in re.split(r"[^\S\x1c-\x1f]+", text.replace(". . .", "...")) if word]
    symbols = sum(text.count(symbol) for symbol in ("#", "...", ". . .", "…"))
    lines = [line for line in (line.removesuffix("\r") for line in (text + "\n").split("\n")[:-1]) if line]
    bullets = text.split("\n")
    return {
        "olmo3_mean_word_length": sum(len(word.encode()) for word in words) / len(words) if words else None,
        "olmo3_symbols": symbols / max(len(merged), 1),
        "olmo3_bullet_lines": sum(line.startswith(("●", "•", "*", "-")) for line in bullets) / len(bullets),
        "olmo3_ellipsis_lines": sum(line.endswith(("...", ". . .", "…")) for line in lines) / max(len(lines), 1),
        "olmo3_other_words": sum(not any(map(str.isalpha, w)) for w in words) / len(words) if words else None,
        "olmo3_stop_words": sum(word.lower() in STOP_WORDS for word in words),
    }


def check(text: str, words: list[str]) -> None:
    features = featurise(pa.array([text]))
    got = pa.table(olmo3_repetition(features, words_from_lists([words]))).to_pylist()[0]
    assert got == rounded(expected_repetition(text, words))
    quality = pa.table(olmo3(features)).to_pylist()[0]
    if text.isascii():
        assert quality["olmo3_words"] == len(re.findall("[A-Za-z0-9]+", text))
    del quality["olmo3_words"]
    assert quality == rounded(expected_quality(text))


@settings(max_examples=300)
@given(WORDS)
def test_ngrams(words: list[str]) -> None:
    check(" ".join(words), words)


@settings(max_examples=300)
@given(TEXTS)
def test_lines_and_quality(text: str) -> None:
    check(text, text.split())


def test_real_texts() -> None:
    for text in real_texts(10)[::4]:
        check(text, text.split())


def test_words_of_other_scripts_are_those_of_the_standard() -> None:
    texts = pa.array(["it's 3.14 foo_bar", "it’s 3.14 foo_bar", "漢字 ok"])
    assert olmo3(featurise(texts))["olmo3_words"].to_pylist() == [6, 3, 3]
