"""Windows: a document is read from its beginning to its end, whole where it fits, and costs no more than that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gristmill.scorer.backbone.states import Tokens, average_windows, batches, flatten
from gristmill.scorer.backbone.tiny import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny")


def read(folder: Path, text: str | None, window_tokens: int, windows: int) -> tuple[list[str], bool]:
    """The windows of a text in the letters of the tiny tokenizer, whose tokens are bytes."""
    tokens = Tokens(folder, 1, window_tokens, windows)
    (found,), (truncated,) = tokens.cut([text])
    assert all(row.dtype == np.int32 and row[0] == 1 for row in found)
    return [tokens._tokenizer.decode(row[1:].tolist()) for row in found], truncated


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc", ["abc"]),
        ("abcdefgh", ["abcdefgh"]),
        ("abcdefghi", ["abcd", "efghi"]),
        ("abcdefghijklmnopqrstuvwx", ["abcdefgh", "ijklmnop", "qrstuvwx"]),
        ("", []),
        (" \n\t ", []),
        (None, []),
    ],
)
def test_what_fits_is_read_whole_in_windows_of_equal_length(
    folder: Path, text: str | None, expected: list[str]
) -> None:
    assert read(folder, text, 8, 3) == (expected, False)


def test_of_a_longer_text_beginning_middle_and_end_are_read(folder: Path) -> None:
    assert read(folder, "abcdefghijklmnopqrstuvwxy", 8, 3) == (["abcdefgh", "ijklmnop", "rstuvwxy"], True)
    assert read(folder, "a" * 20 + "m" * 21 + "z" * 20, 8, 3) == (["a" * 8, "m" * 8, "z" * 8], True)
    assert read(folder, "a" * 20 + "z" * 20, 8, 1) == (["a" * 8], True)
    assert read(folder, "a" * 20 + "z" * 20, 8, 2) == (["a" * 8, "z" * 8], True)


def test_a_text_of_any_size_is_found_by_characters(folder: Path) -> None:
    text = "a" * 1_000_000 + "m" * 1_000_000 + "z" * 1_000_000
    assert read(folder, text, 8, 3) == (["a" * 8, "m" * 8, "z" * 8], True)
    windows, _ = read(folder, " " * 500_000 + "m" * 400 + " " * 500_000, 8, 3)
    assert windows == [" " * 8, "m" * 8, " " * 8]
    assert read(folder, " " * 1_000_000, 8, 3) == ([], False)


def test_a_document_scores_the_mean_of_its_windows_by_tokens() -> None:
    rows, owner_M = flatten([[np.zeros(4), np.zeros(3)], [], [np.zeros(6)]])
    assert [len(row) for row in rows] == [4, 3, 6] and owner_M.tolist() == [0, 0, 2]
    values_MD = np.array([[1.0, 0.0], [4.0, np.nan], [2.0, 5.0]])
    found_ND = average_windows(values_MD, np.array([3, 2, 5]), owner_M, 4)
    np.testing.assert_allclose(found_ND, [[2.2, np.nan], [np.nan, np.nan], [2.0, 5.0], [np.nan, np.nan]])


def test_windows_of_a_document_stay_in_one_batch() -> None:
    lengths, counts = [9, 9, 5, 0, 30, 5], [3, 2, 1, 0, 3, 2]
    packed = [batch.tolist() for batch in batches(lengths, 36, counts)]
    assert packed == [[4], [0], [1], [2, 5]]  # 2 is much shorter than 1, and would fill more than half
    assert all(len(b) == 1 or sum(counts[i] for i in b) * max(lengths[i] for i in b) <= 36 for b in packed)


def test_a_batch_that_is_half_full_takes_no_much_shorter_row() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 1024).astype(int).clip(1, 2048)
    packed = batches(lengths.tolist(), 16 * 2048)
    assert sorted(np.concatenate(packed).tolist()) == list(range(1024))
    for batch in packed:
        longest = lengths[batch[0]]
        beyond = [lengths[row] for at, row in enumerate(batch) if at and 2 * (at + 1) * longest > 16 * 2048]
        assert len(batch) * longest <= 16 * 2048 and all(length >= 0.97 * longest for length in beyond)
