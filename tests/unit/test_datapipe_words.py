"""Splitting words: English as spaCy has it, Unicode's standard boundaries, and lists from elsewhere."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import hostile
from tests.support.real_texts import real_texts
from tests.support.word_lists import words_from_lists

from gristmill.datapipe.text import english, standard
from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.words import LETTER, MARKS, Words


def split(text: str) -> list[str]:
    """Our words, read back from the text by their lengths: they stand in its order, white space between them."""
    words, at = [], 0
    for length in english.split(text_of(pa.array([text]))).items["length"].tolist():
        while text[at].isspace():
            at += 1
        words.append(text[at : at + length])
        at += length
    assert not text[at:].strip()
    return words


def equal(ours: Words, theirs: Words) -> bool:
    return ours.offsets.tolist() == theirs.offsets.tolist() and (ours.items == theirs.items).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, world!", "Hello|,|world|!"),
        ("The U.S. and e.g. Mr. Smith.", "The|U.S.|and|e.g.|Mr.|Smith|."),
        ("I can't, don’t, won't; cannot. It's Bob's", "I|ca|n't|,|do|n’t|,|wo|n't|;|can|not|.|It|'s|Bob|'s"),
        ("They'd've gone", "They|'d|'ve|gone"),
        ("state-of-the-art 3-4 well--done", "state|-|of|-|the|-|art|3|-|4|well|--|done"),
        ("see http://foo-bar.com/a=b?c (me@example.org).", "see|http://foo-bar.com/a=b?c|(|me@example.org|)|."),
        ("end.Next and/or either/or x=y a:b", "end|.|Next|and/or|either|/|or|x|=|y|a|:|b"),
        ("10km 5GB $3.50 50% US$5 9am", "10|km|5|GB|$|3.50|50|%|US$|5|9|am"),
        ("wait...what? no… yes.", "wait|...|what|?|no|…|yes|."),
        ("(((“quoted”)))", "(|(|(|“|quoted|”|)|)|)"),
        ("foo_bar __init__ :)", "foo_bar|_|_|init|_|_|:)"),
        ("漢字 is two", "漢|字|is|two"),
        ("", ""),
        (" \t\n", ""),
    ],
)
def test_english(text: str, words: str) -> None:
    assert split(text) == [word for word in words.split("|") if word]


def test_real_english_is_split_as_spacy_does() -> None:
    spacy = pytest.importorskip("spacy")
    tokenizer = spacy.blank("en").tokenizer
    ours = theirs = common = 0
    for text in real_texts(20):
        mine, peers = split(text), [token.text for token in tokenizer(text) if token.text.strip()]
        ends, theirs_ends = set(_ends(mine)), set(_ends(peers))
        ours, theirs, common = ours + len(ends), theirs + len(theirs_ends), common + len(ends & theirs_ends)
    assert common > 0.995 * max(ours, theirs)


def _ends(words: list[str]) -> list[int]:
    ends, at = [], 0
    for word in words:
        at += len(word)
        ends.append(at)
    return ends


@settings(max_examples=300)
@given(st.text(alphabet="aAé'’.,-–(:/$1k …\"漢ß\n_@+%°", max_size=40) | st.text(max_size=40))
def test_words_are_all_of_the_text_but_white_space(text: str) -> None:
    words = split(text)
    assert "".join(words) == "".join(text.split())
    assert equal(english.split(text_of(pa.array([text]))), words_from_lists([words]))


@settings(max_examples=200)
@given(st.lists(st.lists(st.text(max_size=8), max_size=8), max_size=4))
def test_words_from_lists(lists: list[list[str]]) -> None:
    words = words_from_lists(lists)
    flat = [word for words in lists for word in words]
    assert words.offsets.tolist() == [sum(map(len, lists[:n])) for n in range(len(lists) + 1)]
    assert words.items["length"].tolist() == [len(word) for word in flat]
    assert words.items["size"].tolist() == [len(word.encode()) for word in flat]
    assert [bool(flags & LETTER) for flags in words.items["flags"]] == [any(c.isalpha() for c in w) for w in flat]
    assert not any(flags & MARKS for flags, word in zip(words.items["flags"], flat, strict=True) if word.isalnum())
    assert len(set(zip(words.items["hash"].tolist(), flat, strict=True))) == len(set(words.items["hash"].tolist()))


@pytest.mark.parametrize("splitter", [english.split, standard.split])
def test_hostile_bytes_stay_inside_their_document(splitter) -> None:
    texts = hostile(7, [b"don't", b"a.b", b"http://", b"'s", b"\xe2\x80\xa6", b"$", b"-", b"...", b"5km"])
    words = splitter(text_of(texts))
    assert len(words) == len(texts)
    sizes = [words.items["size"][start:end].sum() for start, end in zip(words.offsets, words.offsets[1:])]
    assert all(size <= len(blob.as_buffer() or b"") for size, blob in zip(sizes, texts.cast(pa.large_binary())))
