"""The order: a bijection, a blend that holds at every prefix, and values pinned so that no library can change them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.base.errors import UsageError
from gristmill.shards.order import Permutation, Schedule, group_bounds, hash64, scatter, tijdeman


@settings(max_examples=60)
@given(size=st.one_of(st.integers(1, 5000), st.integers(4096, 200_000)), key=st.integers(0, 2**64 - 1))
def test_a_permutation_is_a_bijection(size: int, key: int) -> None:
    image = Permutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(image), np.arange(size))


@settings(max_examples=30)
@given(size=st.integers(2**40, 2**62), key=st.integers(0, 2**64 - 1))
def test_a_huge_permutation_stays_inside_and_apart(size: int, key: int) -> None:
    indices = np.concatenate([np.arange(500), size - 1 - np.arange(500)])
    image = Permutation(size, key)(indices)
    assert image.min() >= 0 and image.max() < size and len(np.unique(image)) == len(indices)


def test_a_permutation_mixes() -> None:
    n = 50_000
    image = Permutation(n, 7)(np.arange(n))
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.02
    assert abs(np.corrcoef(image, Permutation(n, 8)(np.arange(n)))[0, 1]) < 0.02
    batches = (image * 10 // n)[: n // 500 * 500].reshape(-1, 500)
    spread = np.var([(batches == stratum).sum(axis=1) for stratum in range(10)])
    assert 0.7 < spread / (500 * 0.1 * 0.9) < 1.3  # as random sampling has it


@settings(max_examples=150)
@given(weights=st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_every_prefix_is_within_one_of_its_share(weights: list[int]) -> None:
    table = tijdeman(tuple(weights))
    total = sum(weights)
    counts = np.stack([np.cumsum(table == i) for i in range(len(weights))])
    shares = np.outer(weights, np.arange(1, total + 1)) / total
    bound = 1 - 1 / (2 * len(weights) - 2) if len(weights) > 1 else 0
    assert np.abs(counts - shares).max() <= bound + 1e-9
    assert counts[:, -1].tolist() == weights


@settings(max_examples=60)
@given(weights=st.lists(st.integers(1, 60), min_size=1, max_size=6), k=st.integers(0, 10**12))
def test_a_schedule_counts_what_it_gives(weights: list[int], k: int) -> None:
    schedule = Schedule(tuple(weights))
    source, ordinal = schedule(np.arange(k, k + 200))
    before, after = schedule.counts(k), schedule.counts(k + 200)
    for index in range(len(weights)):
        assert ordinal[source == index].tolist() == list(range(before[index], after[index]))


def test_weights_are_checked() -> None:
    with pytest.raises(UsageError, match="positive"):
        tijdeman((1, 0))
    with pytest.raises(UsageError, match="at most"):
        tijdeman((200_000, 1))
    assert Schedule((10**9, 10**9)).period == 2


def test_groups_cover_all_shards_and_grow() -> None:
    bounds = group_bounds(60)
    assert [a for a, _ in bounds[1:]] == [b for _, b in bounds[:-1]] and bounds[0][0] == 0 and bounds[-1][1] == 60
    assert [b - a for a, b in bounds] == [1] * 6 + [2, 4, 8, 16, 16, 8]
    assert group_bounds(0) == []


def test_the_scatter_spreads_sources_over_ranks() -> None:
    source, _ = Schedule((1, 1))(np.arange(64))
    halves = source[scatter(0, 0, 64)].reshape(2, 32).mean(axis=1)
    assert 0.2 < halves[0] < 0.8
    assert not np.array_equal(scatter(0, 0, 64), scatter(0, 64, 64))


def test_the_order_is_pinned() -> None:
    """Published plans depend on these: a change here is a new algorithm id, not a fix."""
    assert hash64(0, "web", 1, 2) != hash64(0, "web", 12)
    assert f"{hash64(0, 'web', 0, 0):016x}" == "8ad2afba4fdabbfe"
    assert Permutation(10, 1)(np.arange(10)).tolist() == [9, 0, 5, 4, 8, 1, 2, 6, 7, 3]
    assert Permutation(10_000, 1)(np.arange(5)).tolist() == [2407, 4909, 4351, 5269, 5235]
    assert tijdeman((4, 2, 1)).tolist() == [0, 1, 0, 0, 2, 0, 1]
