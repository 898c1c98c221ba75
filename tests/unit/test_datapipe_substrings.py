"""Repeated passages: two rounds find what comparing every window with every other finds, in any batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import hostile

from gristmill.base.errors import UsageError
from gristmill.datapipe.dedup.substrings import SubstringConfig, anchors, merged, tidied, windows
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.places import places

SHORT = SubstringConfig(words=6, anchor=3)
Pairs = list[tuple[int, int]]


def two_rounds(column: pa.Array, config: SubstringConfig, batch: int = 3) -> pa.ListArray:
    """What the shuffles do, with dictionaries: the spans to cut of each document."""
    texts = [text_of(column.slice(start, batch)) for start in range(0, len(column), batch)]
    rounds = [anchors(text, config) for text in texts]
    count = Counter(key for found in rounds for key in found.key.tolist())
    seen: set[tuple[int, int]] = set()
    cuts = []
    for text, found in zip(texts, rounds):
        repeated: list[list[int]] = [[] for _ in range(len(text))]
        for document, word, key in zip(found.document.tolist(), found.word.tolist(), found.key.tolist()):
            if count[key] > 1:
                repeated[document].insert(0, word)
        second = windows(text, pa.array(repeated, spans.TYPE), config)
        later = np.zeros(len(second.key), bool)
        for index, (high, low) in enumerate(second.key.tolist()):
            later[index] = (high, low) in seen
            seen.add((high, low))
        across = merged(second.document[later], second.start[later], second.end[later], len(text))
        cuts.append(spans.union([across, second.copies]))
    return pa.concat_arrays(cuts)


def brute_force(column: pa.Array, config: SubstringConfig) -> list[list[int]]:
    """Every window against every earlier one; one that overlaps its document's first is cut behind that."""
    seen: set[tuple[int, ...]] = set()
    rows = []
    for row in range(len(column)):
        text = text_of(column.slice(row, 1))
        found = places(text)
        cut, own = [], {}
        for at in range(len(found.hashes) - config.words + 1):
            key = tuple(found.hashes[at : at + config.words].tolist())
            if key in own:
                cut.append((max(at, own[key] + config.words), at + config.words))
            else:
                own[key] = at
                if key in seen:
                    cut.append((at, at + config.words))
        seen.update(own)
        rows.append(covering([(int(found.starts[a]), int(found.ends[b - 1])) for a, b in cut]))
    return rows


def covering(pairs: Pairs) -> list[int]:
    joined: list[list[int]] = []
    for start, end in sorted(pairs):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return [bound for pair in joined for bound in pair]


def large(texts: Sequence[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


@st.composite
def corpora(draw: st.DrawFn) -> pa.Array:
    """Documents of passages that come again: few words, so that there are runs, periods and overlaps as well."""
    alphabet = draw(st.sampled_from([["a"], ["a", "b"], ["A", "é", "漢"], [f"w{n}" for n in range(40)]]))
    words = st.lists(st.sampled_from(alphabet), max_size=14)
    passages = draw(st.lists(words, min_size=1, max_size=4))
    pieces = st.lists(st.sampled_from(passages) | words, max_size=6)
    documents = draw(st.lists(pieces, max_size=5))
    space = draw(st.sampled_from([" ", ", ", "\n"]))
    return large([space.join(word for piece in document for word in piece) for document in documents])


CONFIGS = st.sampled_from([SHORT, SubstringConfig(6, 6), SubstringConfig(9, 2), SubstringConfig(4, 3)])


@settings(max_examples=400)
@given(corpora(), CONFIGS, st.integers(1, 4))
def test_two_rounds_equal_brute_force(column: pa.Array, config: SubstringConfig, batch: int) -> None:
    if not len(column):
        return
    cut = two_rounds(column, config, batch)
    assert cut.to_pylist() == brute_force(column, config)
    spans.apply(column, [(cut, "")])  # refuses spans off the borders of characters


@settings(max_examples=200)
@given(corpora(), CONFIGS)
def test_equal_windows_each_hold_an_anchor_that_is_repeated(column: pa.Array, config: SubstringConfig) -> None:
    text = text_of(column)
    found, words = anchors(text, config), places(text)
    assert list(zip(found.document, found.word)) == sorted(set(zip(found.document.tolist(), found.word.tolist())))
    assert found.document.dtype == found.word.dtype == np.int32 and found.key.dtype == np.uint64
    count = Counter(found.key.tolist())
    repeated = {
        (document, word)
        for document, word, key in zip(found.document.tolist(), found.word.tolist(), found.key.tolist())
        if count[key] > 1
    }
    everywhere: dict[tuple[int, ...], Pairs] = {}
    for document, (begin, end) in enumerate(pairwise(words.offsets.tolist())):
        for at in range(begin, end - config.words + 1):
            key = tuple(words.hashes[at : at + config.words].tolist())
            everywhere.setdefault(key, []).append((document, at - begin))
    for where in everywhere.values():
        for document, at in where if len(where) > 1 else []:
            assert any((document, at + step) in repeated for step in range(config.words - config.anchor + 1))


def test_a_passage_of_fifty_words_is_found_anywhere_and_one_of_forty_nine_is_not() -> None:
    generator = np.random.default_rng(0)

    def prose(size: int) -> list[str]:
        return [f"w{word}" for word in generator.integers(0, 1_000_000, size)]

    config, passage = SubstringConfig(), prose(50)
    documents = []
    for place in (0, 17, 200):
        words = prose(place) + passage + prose(30)
        documents.append(
            " ".join(words)
            .replace(passage[0], f"<<{passage[0].upper()}")
            .replace(" " + passage[7], "!\n " + passage[7])
        )
    documents += [" ".join(passage[:49] + prose(100)), " ".join(passage)]
    cut = two_rounds(large(documents), config)
    lengths = spans.covered(cut)
    assert lengths[0] == lengths[3] == 0 and lengths[4] == len(documents[4])
    for text, (start, end) in zip(documents[1:3], cut.to_pylist()[1:3]):
        assert text[start:end] == documents[0][documents[0].index(passage[0].upper()) :][: end - start]
        assert text[start - 2 : start] == "<<" and text[:end].endswith(passage[-1])


def test_two_of_twenty_seven_grams_are_chosen() -> None:
    generator = np.random.default_rng(1)
    words = generator.integers(0, 1_000_000, 200_000)
    text = text_of(large([" ".join(map(str, words))]))
    assert len(anchors(text, SubstringConfig()).key) / len(words) == pytest.approx(2 / 27, rel=0.05)


def test_one_word_a_million_times_keeps_the_first_fifty() -> None:
    config, words = SubstringConfig(), 1_000_000
    text = text_of(large(["x " * words]))
    found = anchors(text, config)
    assert len(found.key) < 2.1 * words / 26 and len(set(found.key.tolist())) == 1
    second = windows(text, pa.array([found.word.tolist()], spans.TYPE), config)
    assert second.start.tolist() == [0] and second.end.tolist() == [99]
    assert second.copies.to_pylist() == [[100, 2 * words - 1]]


def test_a_period_keeps_its_first_fifty_words_and_a_copy_of_it_nothing() -> None:
    column = large(["a b c d e f g " * 300, "z " + "a b c d e f g " * 200 + "y"])
    cut = two_rounds(column, SubstringConfig())
    assert cut.to_pylist() == brute_force(column, SubstringConfig())
    left = spans.apply(column, [(cut, "")]).to_pylist()
    assert left == [("a b c d e f g " * 8)[:99] + "  ", "z  y"]


def test_a_million_identical_documents_are_linear() -> None:
    text = " ".join(f"w{n}" for n in range(60))
    column = large([text] * 2000)
    cut = spans.covered(two_rounds(column, SubstringConfig(), 500))
    assert cut[0] == 0 and (cut[1:] == len(text)).all()


def test_hostile_bytes_are_measured_alone_and_cut_on_borders() -> None:
    column = hostile(5, [b"word ", "漢".encode(), "é ".encode(), b"x y x y x y x y "])
    config = SubstringConfig(3, 2)
    cut = two_rounds(column, config, 50)
    assert cut.to_pylist() == brute_force(column, config)
    spans.apply(column, [(cut, "")])


def test_windows_touch_and_overlap_into_one_span_whatever_their_order() -> None:
    document, start, end = np.array([2, 0, 2, 2]), np.array([8, 1, 0, 4]), np.array([9, 3, 5, 8])
    assert merged(document, start, end, 4).to_pylist() == [[1, 3], [], [0, 9], []]
    nothing = np.zeros(0, np.int32)
    assert merged(nothing, nothing, nothing, 2).to_pylist() == [[], []]


def words_in(data: bytes) -> int:
    return len(places(text_of(large([data.decode()]))).hashes)


def tidied_slowly(data: bytes, cut: list[int]) -> list[int]:
    kept = [0, *cut, len(data)]  # start and end of what stays, in turn
    inner = [
        bound for start, end in zip(kept[2:-2:2], kept[3:-1:2]) if words_in(data[start:end]) for bound in (start, end)
    ]
    if not cut:
        return []
    if not inner and not words_in(data[: cut[0]]) and not words_in(data[cut[-1] :]):
        return [0, len(data)]
    return [cut[0], *inner, cut[-1]]


PIECES = st.sampled_from(["a", "É", "漢", "7", "\u0301", " ", "\n", ".", "—", "😀", "\0", "\u200b"])


@settings(max_examples=400)
@given(st.lists(st.lists(st.tuples(PIECES, st.booleans()), max_size=12), min_size=1, max_size=4))
def test_between_spans_and_of_documents_no_scraps_are_left(rows: list[list[tuple[str, bool]]]) -> None:
    """Each piece is cut or stays, whatever it is."""
    cuts = []
    for row in rows:
        ends = np.cumsum([0, *(len(piece.encode()) for piece, _ in row)]).tolist()
        cuts.append(covering([(*span,) for span, (_, gone) in zip(pairwise(ends), row) if gone]))
    texts = ["".join(piece for piece, _ in row) for row in rows]
    column = large(["before", *texts]).slice(1)
    result = tidied(text_of(column), pa.array(cuts, spans.TYPE))
    assert result.type == spans.TYPE
    assert result.to_pylist() == [tidied_slowly(text.encode(), cut) for text, cut in zip(texts, cuts)]
    left = spans.apply(column, [(result, "")])
    before = spans.apply(column, [(pa.array(cuts, spans.TYPE), "")])
    for text, cut, now, then in zip(texts, cuts, left.to_pylist(), before.to_pylist()):
        assert words_in(now.encode()) <= words_in(then.encode()) <= words_in(text.encode())
        assert not cut or now == "" or words_in(now.encode())
    assert tidied(text_of(column), result).to_pylist() == result.to_pylist()


def test_of_a_document_of_two_repeated_passages_nothing_is_left() -> None:
    passage = " ".join(f"w{number}" for number in range(60))
    column = large(
        [passage, f"{passage}.\n\n{passage}!", f". {passage}.", f"New: {passage}. {passage}", "...", "a " + "b. " * 3]
    )
    result = tidied(text_of(column), two_rounds(column, SubstringConfig(50)))
    left = spans.apply(column, [(result, "")]).to_pylist()
    assert left == [passage, "", "", "New: ", "...", "a b. b. b. "]


def test_scraps_of_a_large_document_are_looked_at_once() -> None:
    spread = large([". " * 2_000_000 + "x" + " ." * 2_000_000, "x" + "." * 4_000_000 + "x"])
    cut = pa.array(
        [[number + half for number in range(0, 4_000_000, 40) for half in (0, 1)], [0, 1, 4_000_001, 4_000_002]]
    )
    result = tidied(text_of(spread), cut.cast(spans.TYPE)).to_pylist()
    assert result == [[0, 3_999_961], [0, 4_000_002]]
    assert tidied(text_of(column := hostile(2)), pa.array([[]] * len(column), spans.TYPE)).flatten().to_pylist() == []
    with pytest.raises(ValueError, match="1 texts, but spans for 2"):
        tidied(text_of(large(["a"])), pa.array([[], []], spans.TYPE))


def test_hostile_bytes_around_spans_are_read_within_their_document() -> None:
    column = hostile(7, [b"word ", "漢".encode()])
    text = text_of(column)
    sizes = np.diff(text.offsets).tolist()
    cut = [[0, 0, size, size] for size in sizes]
    result = tidied(text, pa.array(cut, spans.TYPE)).to_pylist()
    found = np.diff(places(text).offsets).tolist()
    assert result == [[0, 0, size, size] if words else [0, size] for size, words in zip(sizes, found)]


def test_empty_documents_nulls_and_what_does_not_fit() -> None:
    text = text_of(pa.array(["", None, "too short", "a b c d e f g"], pa.large_string()))
    assert set(anchors(text, SHORT).document.tolist()) == {3}
    empty = windows(text, pa.array([[], None, [], []], spans.TYPE), SHORT)
    assert len(empty.key) == 0 and empty.copies.to_pylist() == [[], [], [], []]
    assert windows(text, pa.array([[], None, [], [1]], spans.TYPE), SHORT).start.tolist() == [0, 2]
    with pytest.raises(ValueError, match="4 texts"):
        windows(text, pa.array([[]], spans.TYPE), SHORT)
    for bad in ([[], [], [], [5]], [[], [], [0], []], [[], [], [], [-1]]):
        with pytest.raises(ValueError, match="an anchor at a word"):
            windows(text, pa.array(bad, spans.TYPE), SHORT)


@pytest.mark.parametrize(("words", "anchor"), [(2, 2), (3, 2), (10, 5), (50, 25), (500, 250)])
def test_an_anchor_is_half_of_the_words_where_none_is_given(words: int, anchor: int) -> None:
    assert SubstringConfig(words).anchor_words == anchor and SubstringConfig(words, words).anchor_words == words
    text = text_of(large(["a b c d e f g h i j k l m " * 100]))
    np.testing.assert_array_equal(
        anchors(text, SubstringConfig(words)).key, anchors(text, SubstringConfig(words, anchor)).key
    )


@pytest.mark.parametrize(("words", "anchor"), [(50, -1), (50, 51), (50, 1), (1, 1), (501, 25)])
def test_settings_that_make_no_sense_are_refused(words: int, anchor: int) -> None:
    with pytest.raises(UsageError):
        SubstringConfig(words, anchor)
