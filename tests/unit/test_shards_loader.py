"""Batches: the same for any world, prefetch and interruption; segments, packing, loss masks; torch's loader."""

import dataclasses
import gc
import hashlib
import itertools
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.support.small_shards import SIZES, TOKENIZER, S, mixture, table, write

from gristmill.base.errors import DataError, UsageError
from gristmill.shards.loader import Batch, Batches
from gristmill.shards.mixture import MixturePhase
from gristmill.shards.phase import SPREAD
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.resolve import plan
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

EOS = TOKENIZER.eos_id


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return open_dataset(write(tmp_path_factory.mktemp("dataset")))


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> Dataset:
    """One source whose even tokens of a document are learnt from, and one without a mask."""
    root = tmp_path_factory.mktemp("masked")
    chats, plain = table("chat", 120, 2, 90), table("web", 100)
    loss = [[place % 2 == 0 for place in range(len(tokens))] for tokens in chats["tokens"].to_pylist()]
    chats = chats.append_column("loss", pa.array(loss, pa.list_(pa.bool_())))
    for name, rows in (("chat", chats), ("web", plain)):
        write_source(root, SourceSpec(name, TOKENIZER), [rows], **SIZES)
    write_manifest(root)
    return open_dataset(root)


def digest(batches: list[Batch]) -> str:
    total = hashlib.sha256()
    for batch in batches:
        for part in (batch.tokens_BS, batch.sequence_B, batch.source_B, batch.cu_seqlens, batch.loss_mask_BS):
            total.update(np.ascontiguousarray(part).tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("pack", ["concat", "bestfit"])
def test_the_same_batches_for_any_world_depth_and_interruption(dataset: Dataset, pack) -> None:
    whole = plan(mixture(), dataset, S, tokens=205 * S, pack=pack)
    expected = list(Batches(whole, dataset, 10 * S, prefetch=0))
    assert len(expected) == len(Batches(whole, dataset, 10 * S)) == 20
    for prefetch in (1, 8):
        assert digest(list(Batches(whole, dataset, 10 * S, prefetch=prefetch))) == digest(expected)
    for world in (2, 3, 7):
        ranks = [list(Batches(whole, dataset, 10 * S, rank=rank, world=world)) for rank in range(world)]
        for step, batch in enumerate(expected):
            assert np.array_equal(np.concatenate([r[step].tokens_BS for r in ranks]), batch.tokens_BS)
            assert np.array_equal(np.concatenate([r[step].sequence_B for r in ranks]), batch.sequence_B)
            assert np.array_equal(np.concatenate([r[step].positions_BS for r in ranks]), batch.positions_BS)
    for stop in (0, 1, 7, 20):
        first = Batches(whole, dataset, 10 * S, prefetch=3)
        iterator = iter(first)
        for _ in range(stop):
            next(iterator)
        state = first.state_dict()
        assert state == {"v": 1, "plan": whole.sha, "next_sequence": stop * 10}
        second = Batches(whole, dataset, 10 * S)
        second.load_state_dict(state)
        rest = list(second)
        assert len(rest) == 20 - stop and digest(rest) == digest(expected[stop:])


def test_a_state_loaded_while_iterating_moves_the_iterator(dataset: Dataset) -> None:
    batches = Batches(plan(mixture(), dataset, S, tokens=200 * S), dataset, 10 * S, prefetch=4)
    iterator = iter(batches)
    next(iterator)
    batches.load_state_dict(batches.state_dict() | {"next_sequence": 55})
    assert sorted(next(iterator).sequence_B.tolist()) == list(range(55, 65))


def test_tokens_are_those_of_the_shard_and_keep_their_dtype(dataset: Dataset) -> None:
    whole = plan(mixture(), dataset, S, tokens=40 * S)
    seen = []
    for batch in Batches(whole, dataset, 8 * S):
        assert batch.tokens_BS.dtype == np.uint16 and batch.tokens_BS.shape == (8, S + 1)
        for row, k in enumerate(batch.sequence_B.tolist()):
            name, shard, start = whole.sequence(k)
            assert whole.sources[batch.source_B[row]].name == name
            expected = dataset.sources[name].split("train").tokens(shard)[start : start + S + 1]
            assert np.array_equal(batch.tokens_BS[row], expected)
            seen.append(k)
    assert sorted(seen) == list(range(40))


@pytest.mark.parametrize("pack", ["concat", "bestfit"])
def test_a_segment_begins_at_the_eos_before_a_document(dataset: Dataset, pack) -> None:
    whole = plan(mixture(), dataset, S, tokens=600 * S, pack=pack)
    starts = 0
    for batch in Batches(whole, dataset, 100 * S):
        is_eos = batch.tokens_BS[:, :-1] == EOS  # here EOS stands at ends only
        expected = np.zeros((100, S), np.int32)
        padding = ~batch.loss_mask_BS
        for column in range(1, S):
            inside = ~is_eos[:, column] | (padding[:, column] & padding[:, column - 1])
            expected[:, column] = np.where(inside, expected[:, column - 1] + 1, 0)
        assert np.array_equal(batch.positions_BS, expected)
        assert np.array_equal(batch.cu_seqlens, [*np.flatnonzero(expected.ravel() == 0), 100 * S])
        assert batch.cu_seqlens.dtype == np.int32
        if pack == "concat":
            assert batch.learnt_BS is None and batch.loss_mask_BS.all()  # every window has S tokens to learn from
        starts += len(batch.segments[0])
    assert starts > 50


@pytest.mark.parametrize("length", [S, 64, 512])
def test_best_fit_teaches_every_token_once_an_epoch(dataset: Dataset, length: int) -> None:
    """Only the first of the pieces of a document that is longer than a row, where it stands behind another, is lost."""
    source = plan(mixture(weights={"wiki": 1}), dataset, length, tokens=length, pack="bestfit").sources[0]
    whole = plan(mixture(weights={"wiki": 1}), dataset, length, tokens=source.windows * length, pack="bestfit")
    learnt: list[np.ndarray] = []
    for batch in Batches(whole, dataset, length):
        learnt.append(batch.tokens_BS[:, 1:][batch.loss_mask_BS])
        for start, stop in zip(batch.cu_seqlens, batch.cu_seqlens[1:]):
            labels = batch.tokens_BS[:, 1:].ravel()[start:stop][batch.loss_mask_BS.ravel()[start:stop]]
            assert len({*labels.tolist()} - {EOS}) <= 1  # a segment holds tokens of one document
    split = dataset.sources["wiki"].split("train")
    everything = np.concatenate([split.tokens(i) for i in range(len(split.shards))])
    counts = [np.bincount(some, minlength=500) for some in (np.concatenate(learnt), everything)]
    lost = counts[1] - counts[0]
    long = sum(int((np.diff(split.ends(i), prepend=0) > length).sum()) for i in range(len(split.shards)))
    assert lost.min() >= 0 and lost.sum() <= long
    if length == 512:
        assert lost.sum() == 0


@pytest.mark.parametrize("pack", ["concat", "bestfit"])
def test_loss_masks_travel_with_their_tokens(masked: Dataset, pack) -> None:
    whole = plan(
        mixture(weights={"chat": 1, "web": 1}, max_epochs={"default": 99}), masked, S, tokens=400 * S, pack=pack
    )
    for batch in Batches(whole, masked, 20 * S):
        for row in range(20):
            name = whole.sources[batch.source_B[row]].name
            learnt, labels = batch.loss_mask_BS[row], batch.tokens_BS[row, 1:]
            if name == "web":
                assert pack == "bestfit" or learnt.all()
                continue
            bounds = [0, *batch.segments[1][batch.segments[0] == row].tolist(), S]
            for start, stop in itertools.pairwise(bounds):
                if start == 0 and batch.tokens_BS[row, 0] != EOS:
                    continue  # the rest of a document: its first tokens are elsewhere
                expected = np.arange(stop - start) % 2 == 0
                expected[0] = learnt[start]  # false where best fit puts the rest of a document behind another
                real = labels[start:stop] != EOS
                assert np.array_equal(learnt[start:stop][real], expected[real])


def test_batches_never_straddle_a_change_of_length(dataset: Dataset) -> None:
    asked = mixture(
        weights={"web": 1}, max_epochs={"default": 99},
        phase=(MixturePhase("long", from_share=0.4, sequence_length=4 * S),),
    )  # fmt: skip
    step = 4 * S * SPREAD
    whole = plan(asked, dataset, S, tokens=3 * step, align=32 * S)
    batches = list(Batches(whole, dataset, 32 * S))
    assert {batch.tokens_BS.shape for batch in batches} == {(32, S + 1), (8, 4 * S + 1)}
    assert len(batches) == len(Batches(whole, dataset, 32 * S)) == whole.tokens // (32 * S)
    odd = plan(asked, dataset, S, tokens=3 * step)
    shapes = [batch.tokens_BS.shape for batch in Batches(odd, dataset, 48 * S)]
    assert len(shapes) == len(Batches(odd, dataset, 48 * S))
    assert sum(rows * (width - 1) for rows, width in shapes) > odd.tokens - 48 * S  # only the very end is dropped
    by_index = Batches(odd, dataset, 48 * S)
    assert digest([by_index[i] for i in range(len(by_index))]) == digest(list(Batches(odd, dataset, 48 * S)))


def test_a_resumed_run_may_change_its_future(dataset: Dataset) -> None:
    asked = mixture(weights={"web": 1, "code": 1})
    first = Batches(plan(asked, dataset, S, tokens=100 * S), dataset, 10 * S)
    iterator = iter(first)
    for _ in range(5):
        next(iterator)
    state = first.state_dict()
    later = dataclasses.replace(asked, phase=(MixturePhase("mid", from_tokens=50 * S, weights={"wiki": 1}),))
    second = Batches(plan(later, dataset, S, tokens=300 * S), dataset, 20 * S)
    second.load_state_dict(state)
    assert next(iter(second)).sequence_B.min() == 50
    earlier = dataclasses.replace(asked, phase=(MixturePhase("mid", from_tokens=49 * S, weights={"wiki": 1}),))
    with pytest.raises(DataError, match="another dataset, mixture, seed"):
        Batches(plan(earlier, dataset, S, tokens=300 * S), dataset, 20 * S).load_state_dict(state)


def test_a_state_of_another_plan_is_refused(dataset: Dataset) -> None:
    whole = plan(mixture(), dataset, S, tokens=100 * S)
    state = Batches(plan(mixture(), dataset, S, seed=5, tokens=100 * S), dataset, 10 * S).state_dict()
    batches = Batches(whole, dataset, 10 * S)
    with pytest.raises(DataError, match="another dataset, mixture, seed"):
        batches.load_state_dict(state)
    with pytest.raises(DataError, match="version 2"):
        batches.load_state_dict(batches.state_dict() | {"v": 2})
    with pytest.raises(DataError, match="next_sequence"):
        batches.load_state_dict(batches.state_dict() | {"next_sequence": 101})
    changed = dataclasses.replace(whole.sources[0], content_id="0" * 64)
    with pytest.raises(DataError, match="source code is not the one"):
        Batches(dataclasses.replace(whole, sources=(changed, *whole.sources[1:])), dataset, 10 * S)
    with pytest.raises(UsageError, match="rank 2 of 2"):
        Batches(whole, dataset, 10 * S, rank=2, world=2)
    with pytest.raises(UsageError, match="too few for 11 ranks"):
        Batches(whole, dataset, 10 * S, rank=2, world=11)


def test_torch_loads_batches_in_processes_of_its_own(dataset: Dataset) -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    whole = plan(mixture(), dataset, S, tokens=205 * S)
    expected = list(Batches(whole, dataset, 10 * S))
    for workers in (0, 2):
        batches = Batches(whole, dataset, 10 * S)
        batches.load_state_dict(batches.state_dict() | {"next_sequence": 30})
        loaded = torch_data.DataLoader(batches, batch_size=None, num_workers=workers)
        assert digest(list(loaded)) == digest(expected[3:])


def test_with_torch_the_last_batch_says_where_a_run_stands(dataset: Dataset) -> None:
    """Its processes run ahead and are started afresh; the object here sees neither."""
    torch_data = pytest.importorskip("torch.utils.data")
    whole = plan(mixture(), dataset, S, tokens=205 * S)
    expected = list(Batches(whole, dataset, 10 * S))
    batches = Batches(whole, dataset, 10 * S)
    loader = torch_data.DataLoader(batches, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    used = list(itertools.islice(loader, 3))
    state = batches.state_dict(after=used[-1])
    assert state["next_sequence"] == 30 and batches.state_dict()["next_sequence"] == 0
    again = Batches(whole, dataset, 10 * S)
    again.load_state_dict(state)
    assert digest(used + list(again)) == digest(expected)


def test_many_sources_stay_at_hand(tmp_path: Path) -> None:
    """What is kept grows with the sources, and goes with the batches."""
    names = [f"s{i:02d}" for i in range(20)]
    for name in names:
        write_source(tmp_path, SourceSpec(name, TOKENIZER), [table(name, 30)], shard_tokens=300, ramp=())
    write_manifest(tmp_path)
    many = open_dataset(tmp_path)
    asked = mixture(weights=dict.fromkeys(names, 1), max_epochs={"default": 99})
    batches = Batches(plan(asked, many, S, tokens=4000 * S), many, 400 * S, prefetch=0)
    for _ in batches:
        pass
    cached = batches._shard.cache_info()
    assert cached.maxsize is not None and cached.maxsize >= 16 * len(names) and cached.currsize == cached.misses
    gone = weakref.ref(batches)
    del batches
    gc.collect()
    assert gone() is None


def test_missing_shards_are_named_before_training(dataset: Dataset, tmp_path: Path) -> None:
    root = write(tmp_path)
    opened = open_dataset(root)
    whole = plan(mixture(), opened, S, tokens=100 * S)
    opened.require(whole.touched())
    shard = opened.sources["web"].split("train").shards[whole.touched()["web"][0]]
    (root / "sources/web" / shard.ends.path).unlink()
    with pytest.raises(DataError, match="no such file"):
        opened.require(whole.touched())
