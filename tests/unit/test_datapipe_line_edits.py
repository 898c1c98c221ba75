"""OLMo 3's line edits against a plain transcription of datamap-rs's steps, one after another."""

from __future__ import annotations

import re
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.datapipe.filters.line_edits import line_edits
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.standard import count_words, word_kinds

COUNTER = re.compile(
    r"^\W*\d(?:,|\.|\d)*(?:K|k|M|m|B|b)?\s+"
    r"(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views|followers)\W*\Z"
)


def words(text: str) -> int:
    return count_words(np.frombuffer(text.encode() + b"x", np.uint8), 0, len(text.encode()), word_kinds())


def collapsed(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text)


def rust_lines(text: str) -> list[str]:
    lines = text.split("\n")
    last = lines.pop()
    return [line.removesuffix("\r") for line in lines] + ([last] if last else [])


def share(line: str, count: int) -> np.float32:
    return np.float32(count) / np.float32(len(line.encode()))


def olmo3(text: str) -> tuple[str, float | None]:
    """The text after every edit, and the share of words removed."""
    text = collapsed(text)
    before = words(text)
    for check, bound in ((str.isupper, 0.5), (lambda c: c in "0123456789", 0.999999)):
        text = "\n".join(
            line for line in text.split("\n") if not line or share(line, sum(map(check, line))) <= np.float32(bound)
        )
    text = "\n".join(line for line in text.split("\n") if not COUNTER.match(line.lower()))
    text = "\n".join(line for line in text.split("\n") if not line or words(line) >= 2)
    for pattern, space in ((r"\s?(?:items in cart)\s?", " "), (r"\s?(?:Read more...)\Z", ""), (r"^(?:Sign-in)\s?", "")):
        edited = [(line, re.sub(pattern, space, line)) for line in rust_lines(text)]
        text = "\n".join(new for line, new in edited if not line or new.strip())
    return collapsed(text), (before - words(text)) / before if before else None


PIECES = [
    "a", "Two words", "UPPER CASE", "Üb ÄÖ", "12", "1,234", "12.5k likes", "♥ 7 Shares!", "3 M views", "9 views more",
    "one", "items in cart", "3 items in cart", " items in cart ", "Read more...", "Read more now", "and Read more...",
    "Sign-in", "Sign-in here", "Sign-in ", " ", "  ", "\n", "\n", "\n", "\n\n\n", "\r\n", "\r", "漢字", "١ likes",
    "x y z",
]  # fmt: skip


@settings(max_examples=600)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@example("a b\n\n\n\n\n")
@example("a b\n\nRead more...\n\nSign-in\n\n items in cart\n")
@example("\n\n\n")
@example("items in cart items in cart a\nSign-in x Read more...\r\n\r\nc d\r\n")
def test_text_and_share_are_those_of_the_steps(text: str) -> None:
    check(text)


def check(text: str) -> None:
    columns = line_edits(pa.array([text]))
    expected, removed = olmo3(text)
    left = spans.apply(pa.array([text]), [(columns["olmo3_cut"], "")])[0].as_py()
    if "items in cart" in text:  # a space that the peer puts in its place may not be there to be kept
        left, expected = re.sub("[ \r]", "", left), re.sub("[ \r]", "", expected)
    assert left == expected
    assert columns["olmo3_words_removed"][0].as_py() == (None if removed is None else pytest.approx(removed, abs=1e-6))


def test_real_text() -> None:
    folder = Path(sysconfig.get_paths()["purelib"])
    for file in [*sorted(folder.glob("*/METADATA"))[:60], Path(__file__), Path(re.__file__)]:
        text = file.read_text(errors="replace")
        check(text)
        check(text.replace("\n", "\r\n"))


def test_lines_that_went_whole_are_counted() -> None:
    texts = ["ok ok\nNO NO\n\none\nRead more...\nitems in cart", "", "fine here", "\n\n\n\n"]
    columns = line_edits(pa.array(texts))
    assert columns["olmo3_lines_cut"].tolist() == [4, 0, 0, 0]
    assert columns["olmo3_words_removed"].to_pylist()[1:] == [None, 0, None]
    assert columns["olmo3_cut"].to_pylist()[1:3] == [[], []]


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=3), st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_any_bytes_and_any_unicode(blobs: list[bytes], texts: list[str]) -> None:
    data, ends = b"".join(blobs), np.cumsum([0, *map(len, blobs)], dtype=np.int64)
    hostile = pa.Array.from_buffers(pa.large_string(), len(blobs), [None, pa.py_buffer(ends), pa.py_buffer(data)])
    columns = line_edits(hostile)
    assert len(spans.apply(hostile, [(columns["olmo3_cut"], "")])) == len(blobs)
    columns = line_edits(pa.array(texts))
    for text in spans.apply(pa.array(texts), [(columns["olmo3_cut"], "")]).to_pylist():
        assert "\n\n\n" not in text


@pytest.mark.parametrize(
    "piece", ["a b\n\n", "items in cart ", "1", "1,", "\r", "\u0301a:", "Read more...\n", "12 likes\n"]
)
def test_repeats_cost_linear_time(piece: str) -> None:
    def seconds(size: int) -> float:
        text, best = pa.array([piece * (size // len(piece))]), sys.float_info.max
        for _ in range(3):
            start = time.process_time()
            line_edits(text)
            best = min(best, time.process_time() - start)
        return best

    seconds(100)  # compiles
    assert seconds(1 << 21) < 64 * seconds(1 << 17) + 0.05
