"""Best fit: every token in one row, once; no more rows than the plain algorithm; nearly nothing wasted."""

import bisect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.shards import packing

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=120)


def plain_best_fit_decreasing(sizes: list[int], length: int) -> int:
    """The textbook's, one piece at a time."""
    rooms: list[int] = []
    rows = 0
    for size in sorted(sizes, reverse=True):
        place = bisect.bisect_left(rooms, size)
        room = rooms.pop(place) if place < len(rooms) else length
        rows += room == length
        if room > size:
            bisect.insort(rooms, room - size)
    return rows


@given(LENGTHS, st.integers(1, 90), st.booleans())
def test_every_token_is_in_one_row_once(lengths: list[int], length: int, first_continues: bool) -> None:
    ends = np.cumsum(lengths).astype(np.uint32)
    rows = packing.best_fit(ends, length, first_continues)
    assert np.add.reduceat(rows.length, rows.bounds[:-1]).max() <= length and rows.length.min() >= 1
    covered = np.concatenate([np.arange(start, start + size) for start, size in zip(rows.start, rows.length)])
    assert np.array_equal(np.sort(covered), np.arange(sum(lengths)))
    begins = {0, *ends[:-1].tolist()} - ({0} if first_continues else set())
    for start, size, continues in zip(rows.start.tolist(), rows.length.tolist(), rows.continues.tolist()):
        assert continues == (start not in begins)
        inside = np.searchsorted(ends, [start, start + size - 1], "right")
        assert inside[0] == inside[1]  # of one document


@given(LENGTHS, st.integers(1, 90))
def test_as_many_rows_as_the_textbook_and_as_the_manifest_says(lengths: list[int], length: int) -> None:
    ends = np.cumsum(lengths)
    pieces = [size for n in lengths for size in [length] * (n // length) + [n % length] * (n % length > 0)]
    expected = plain_best_fit_decreasing(pieces, length)
    assert len(packing.best_fit(ends, length).bounds) - 1 == expected
    assert packing.row_counts(ends, (length,)) == {str(length): expected}


def test_a_document_that_fits_is_never_cut() -> None:
    lengths = np.random.default_rng(0).integers(1, 65, 5_000)
    rows = packing.best_fit(np.cumsum(lengths), 64)
    assert not rows.continues.any() and len(rows.length) == len(lengths)


@pytest.mark.parametrize("length", [1024, 2048, 4096])
def test_less_than_a_thousandth_is_wasted(length: int) -> None:
    lengths = np.clip(np.random.default_rng(1).lognormal(6.3, 1.1, 20_000), 5, 10**5).astype(np.int64)
    rows = packing.row_counts(np.cumsum(lengths), (length,))[str(length)]
    assert lengths.sum() / (rows * length) > 0.999


def test_best_fit_of_nothing() -> None:
    assert len(packing.best_fit(np.zeros(0, np.uint32), 8).bounds) == 1
    assert packing.row_counts(np.zeros(0, np.uint32), (8,)) == {"8": 0}
