"""A dataset that is larger than the disk: the same batches, never more on the disk than agreed."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.support.small_shards import S, mixture, write

from gristmill.base.errors import GristmillError, UsageError
from gristmill.shards import transfer
from gristmill.shards.loader import Batches
from gristmill.shards.reader import open_dataset
from gristmill.shards.resolve import plan

BATCH = 8 * S


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "whole")


@pytest.fixture
def partial(whole: Path, tmp_path: Path) -> Path:
    transfer.pull(whole, tmp_path / "partial", only=lambda dataset: {})
    return tmp_path / "partial"


def on_disk(folder: Path) -> int:
    """Bytes of train shards; a file may go while we look."""
    total = 0
    for path in folder.glob("sources/*/*/*/*"):
        if path.suffix in (".u16", ".u32") and path.parts[-3] in ("tokens", "ends"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
    return total


def test_the_same_batches_within_the_limit(whole: Path, partial: Path) -> None:
    complete, small = open_dataset(whole), open_dataset(partial)
    order = plan(mixture(), complete, S, tokens=2400 * S)
    expected = list(Batches(order, complete, BATCH))
    everything = complete.bytes_of(order.touched())
    limit = everything // 2
    most, count = 0, 0
    for batch, other in zip(Batches(order, small, BATCH, disk_bytes=limit), expected, strict=True):
        assert np.array_equal(batch.tokens_BS, other.tokens_BS)
        assert np.array_equal(batch.cu_seqlens, other.cu_seqlens)
        most, count = max(most, on_disk(partial)), count + 1
    assert count == 300 and 0 < most <= limit
    again = Batches(order, open_dataset(partial), BATCH, disk_bytes=limit)  # and on from the middle, from another start
    again.load_state_dict(again.state_dict() | {"next_sequence": 1600})
    assert all(np.array_equal(a.tokens_BS, b.tokens_BS) for a, b in zip(again, expected[200:], strict=True))


def test_a_limit_that_one_step_exceeds_is_refused(partial: Path) -> None:
    dataset = open_dataset(partial)
    order = plan(mixture(), dataset, S, tokens=2400 * S)
    with pytest.raises(UsageError, match=r"one step reads of shards of .* limit is 100: raise it"):
        next(iter(Batches(order, dataset, BATCH, disk_bytes=100)))


def test_what_cannot_be_fetched_ends_it_with_its_reason(whole: Path, partial: Path) -> None:
    dataset = open_dataset(partial)
    order = plan(mixture(), dataset, S, tokens=2400 * S)
    limit = dataset.bytes_of(order.touched()) // 2
    batches = iter(Batches(order, dataset, BATCH, disk_bytes=limit))
    next(batches)
    shutil.rmtree(whole / "sources")
    with pytest.raises(GristmillError, match=r"\.u(16|32)"):
        for _ in batches:
            pass


def test_a_complete_dataset_is_never_evicted(whole: Path) -> None:
    dataset = open_dataset(whole)
    before = on_disk(whole)
    order = plan(mixture(), dataset, S, tokens=400 * S)
    assert len(list(Batches(order, dataset, BATCH, disk_bytes=100))) == 50
    assert not dataset.evict({}, 0) and on_disk(whole) == before
