"""Mixtures, plans and batches: exact shares, each window once per epoch, one order for any world size and budget."""

import dataclasses
import hashlib
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gristmill.base.errors import DataError, UsageError
from gristmill.shards.loader import Batches
from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.mixture import Mixture, load_mixture, plan
from gristmill.shards.plan import Plan, PlannedSource
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

TOKENIZER = TokenizerInfo(name="ids", sha256=hashlib.sha256(b"ids").hexdigest(), vocab_size=50_000, eos_id=0)
U16_LIST = pa.list_(pa.uint16())
DOCUMENTS = {"web": 400, "code": 150, "wiki": 60}
S = 32  # tokens of a window


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Three sources whose documents of 5..300 tokens hold their own number: bounds can be seen in the tokens."""
    root = tmp_path_factory.mktemp("dataset")
    for number, (name, count) in enumerate(DOCUMENTS.items()):
        draw = np.random.default_rng(number)
        rows = {
            "id": [f"{name}-{i}" for i in range(count)],
            "tokens": pa.array(
                [[10 + i] * int(n) for i, n in enumerate(draw.integers(5, 300, count))], pa.list_(pa.uint16())
            ),
            "file": [f"{name}.jsonl"] * count,
            "row": list(range(count)),
        }
        spec = SourceSpec(name, TOKENIZER, salt="s", valid_fraction=0.05)
        write_source(root, spec, [pa.table(rows)], shard_tokens=8_000, ramp=(1_000, 1_000, 2_000, 4_000))
    write_manifest(root)
    return open_dataset(root)


def mixture(**changes) -> Mixture:
    return Mixture(**({"name": "test", "weights": {"web": 40, "code": 20, "wiki": 15}} | changes))


def windows_of(dataset: Dataset, name: str) -> int:
    return sum((shard.token_count - 1) // S for shard in dataset.sources[name].split("train").shards)


def test_each_window_comes_once_per_epoch(dataset: Dataset) -> None:
    per_epoch = windows_of(dataset, "web")
    whole = plan(mixture(weights={"web": 3}), dataset, S, seed=1, tokens=3 * per_epoch * S)
    windows = whole.sequences(np.arange(3 * per_epoch))
    everything = {
        (shard, start * S)
        for shard, entry in enumerate(dataset.sources["web"].split("train").shards)
        for start in range((entry.token_count - 1) // S)
    }
    orders = []
    for epoch in range(3):
        rows = windows.epoch_B == epoch
        order = list(zip(windows.shard_B[rows].tolist(), windows.start_B[rows].tolist()))
        assert len(order) == len(everything) and set(order) == everything
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    assert whole.epochs() == {"web": 3.0}
    assert whole.sequence(7) == ("web", int(windows.shard_B[7]), int(windows.start_B[7]))


def test_shares_hold_at_every_prefix_and_are_counted_in_closed_form(dataset: Dataset) -> None:
    whole = plan(mixture(), dataset, S, tokens=1500 * S)
    source = whole.sequences(np.arange(1500)).source_B
    for k in (0, 1, 2, 3, 50, 777, 1500):
        counts = whole.counts(k)
        for index, planned in enumerate(whole.sources):
            assert counts[planned.name] == (source[:k] == index).sum()
            assert abs(counts[planned.name] - k * planned.weight / 75) < 1
    assert [row["share"] for row in whole.summary()] == [20 / 75, 40 / 75, 15 / 75]


def test_a_smaller_budget_is_a_prefix_and_a_seed_changes_it(dataset: Dataset) -> None:
    small, large = (plan(mixture(), dataset, S, tokens=n * S) for n in (100, 1000))
    assert small.sha == large.sha
    a, b = small.sequences(np.arange(100)), large.sequences(np.arange(1000))
    for field in dataclasses.fields(a):
        assert np.array_equal(getattr(a, field.name), getattr(b, field.name)[:100])
    other = plan(mixture(), dataset, S, seed=9, tokens=100 * S)
    assert other.sha != small.sha
    assert not np.array_equal(other.sequences(np.arange(100)).start_B, a.start_B)
    with pytest.raises(UsageError, match="not all among the plan's 100"):
        small.sequences(np.array([100]))


def test_adding_a_source_leaves_the_order_of_the_others(dataset: Dataset) -> None:
    two = plan(mixture(weights={"web": 1, "code": 1}), dataset, S, tokens=200 * S)
    three = plan(mixture(weights={"web": 1, "code": 1, "wiki": 1}), dataset, S, tokens=300 * S)
    for name in ("web", "code"):
        orders = []
        for p in (two, three):
            w = p.sequences(np.arange(p.sequence_count))
            rows = w.source_B == [s.name for s in p.sources].index(name)
            orders.append(list(zip(w.shard_B[rows].tolist(), w.start_B[rows].tolist())))
        assert orders[0] == orders[1]


def test_the_same_batches_for_any_world_and_after_any_stop(dataset: Dataset) -> None:
    whole = plan(mixture(), dataset, S, tokens=205 * S)
    expected = list(Batches(whole, dataset, 10, prefetch=0))
    assert len(expected) == len(Batches(whole, dataset, 10)) == 20
    for world in (1, 2, 3):
        ranks = [list(Batches(whole, dataset, 10, rank=rank, world=world)) for rank in range(world)]
        for step, batch in enumerate(expected):
            assert np.array_equal(np.concatenate([r[step].tokens_BS for r in ranks]), batch.tokens_BS)
            assert np.array_equal(np.concatenate([r[step].sequence_B for r in ranks]), batch.sequence_B)
    for stop in (0, 1, 7, 20):
        first = Batches(whole, dataset, 10, prefetch=3)
        iterator = iter(first)
        for _ in range(stop):
            next(iterator)
        state = first.state()
        assert state == {"v": 1, "plan": whole.sha, "next_sequence": stop * 10}
        second = Batches(whole, dataset, 10)
        second.load_state(state)
        rest = list(second)
        assert len(rest) == 20 - stop
        for batch, other in zip(expected[stop:], rest):
            assert np.array_equal(batch.tokens_BS, other.tokens_BS) and np.array_equal(
                batch.cu_seqlens, other.cu_seqlens
            )


def test_a_state_loaded_while_iterating_moves_the_iterator(dataset: Dataset) -> None:
    batches = Batches(plan(mixture(), dataset, S, tokens=200 * S), dataset, 10, prefetch=4)
    iterator = iter(batches)
    next(iterator)
    batches.load_state(batches.state() | {"next_sequence": 55})
    assert sorted(next(iterator).sequence_B.tolist()) == list(range(55, 65))


def test_tokens_are_those_of_the_shard_and_keep_their_dtype(dataset: Dataset) -> None:
    whole = plan(mixture(), dataset, S, tokens=40 * S)
    seen = []
    for batch in Batches(whole, dataset, 8):
        assert batch.tokens_BS.dtype == np.uint16 and batch.tokens_BS.shape == (8, S + 1)
        for row, k in enumerate(batch.sequence_B.tolist()):
            name, shard, start = whole.sequence(k)
            assert whole.sources[batch.source_B[row]].name == name
            expected = dataset.sources[name].split("train").tokens(shard)[start : start + S + 1]
            assert np.array_equal(batch.tokens_BS[row], expected)
            seen.append(k)
    assert sorted(seen) == list(range(40))


def test_document_bounds_come_from_the_ends(dataset: Dataset) -> None:
    whole = plan(mixture(), dataset, S, tokens=600 * S)
    starts = 0
    for batch in Batches(whole, dataset, 100):
        after_eos = batch.tokens_BS[:, :-1] == TOKENIZER.eos_id  # here EOS stands at ends only
        assert np.array_equal(batch.loss_mask_BS, ~after_eos)
        expected = np.zeros((100, S), np.int32)
        for column in range(1, S):
            expected[:, column] = np.where(after_eos[:, column - 1], 0, expected[:, column - 1] + 1)
        assert np.array_equal(batch.positions_BS, expected)
        assert np.array_equal(batch.cu_seqlens, [*np.flatnonzero(expected.ravel() == 0), 100 * S])
        assert batch.cu_seqlens.dtype == np.int32
        starts += len(batch.start_row)
    assert starts > 50


def test_a_state_of_another_plan_is_refused(dataset: Dataset) -> None:
    whole = plan(mixture(), dataset, S, tokens=100 * S)
    state = Batches(plan(mixture(), dataset, S, seed=5, tokens=100 * S), dataset, 10).state()
    batches = Batches(whole, dataset, 10)
    with pytest.raises(DataError, match="another dataset, mixture, seed"):
        batches.load_state(state)
    with pytest.raises(DataError, match="version 2"):
        batches.load_state(batches.state() | {"v": 2})
    with pytest.raises(DataError, match="next_sequence"):
        batches.load_state(batches.state() | {"next_sequence": 101})
    changed = dataclasses.replace(whole.sources[0], content_id="0" * 64)
    with pytest.raises(DataError, match="source code is not the one"):
        Batches(dataclasses.replace(whole, sources=(changed, *whole.sources[1:])), dataset, 10)
    with pytest.raises(UsageError, match="rank 2 of 2"):
        Batches(whole, dataset, 10, rank=2, world=2)


def test_an_exhausted_source_is_an_error_that_says_by_how_much(dataset: Dataset) -> None:
    windows = windows_of(dataset, "wiki")
    once = mixture(weights={"web": 1, "wiki": 1}, max_epochs={"default": 9, "wiki": 1})
    plan(once, dataset, S, tokens=2 * windows * S)
    with pytest.raises(
        UsageError, match=rf"wiki runs out: 50.0% .* {10 * S:,} short. Lower the budget to about {2 * windows * S:,}"
    ):
        plan(once, dataset, S, tokens=2 * (windows + 10) * S)
    repeated = plan(dataclasses.replace(once, on_exhausted="repeat"), dataset, S, tokens=4 * windows * S)
    assert repeated.epochs()["wiki"] == 2.0


def test_redistribution_holds_caps_and_keeps_the_rest_in_proportion(dataset: Dataset) -> None:
    size = {name: windows_of(dataset, name) for name in DOCUMENTS}
    asked = mixture(weights={"web": 2, "code": 1, "wiki": 3}, max_epochs={"default": 1}, on_exhausted="redistribute")
    budget = 4 * size["wiki"]
    got = plan(asked, dataset, S, tokens=budget * S)
    counts = got.counts()
    assert counts["wiki"] <= size["wiki"] and counts["wiki"] > 0.99 * size["wiki"]
    assert abs(counts["web"] / counts["code"] - 2) < 0.02 and sum(counts.values()) == budget
    unchanged = plan(asked, dataset, S, tokens=size["wiki"] * S)
    assert [s.weight for s in unchanged.sources] == [1, 2, 3]
    with pytest.raises(UsageError, match="all sources together hold"):
        plan(asked, dataset, S, tokens=(sum(size.values()) + 1) * S)


def test_a_star_is_all_other_sources_in_proportion(dataset: Dataset) -> None:
    tokens = {name: dataset.sources[name].split("train").token_count for name in DOCUMENTS}
    for weights, free in (({"*": 1}, 1.0), ({"*": 80, "code": 20}, 0.8)):
        got = plan(mixture(weights=weights), dataset, S, tokens=100 * S)
        shares = {str(row["source"]): row["share"] for row in got.summary()}
        named = set(weights) - {"*"}
        rest = sum(tokens[name] for name in tokens if name not in named)
        for name in shares:
            expected = 0.2 if name in named else free * tokens[name] / rest
            assert shares[name] == pytest.approx(expected, abs=1e-4)


def test_unmeetable_requests_are_refused(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="no source books, docs; it has code, web, wiki"):
        plan(mixture(weights={"web": 1, "books": 1, "docs": 1}), dataset, S, tokens=100 * S)
    with pytest.raises(UsageError, match="no train shard of source"):
        plan(mixture(), dataset, 10**6, tokens=10**7)
    with pytest.raises(UsageError, match="holds no sequence"):
        plan(mixture(), dataset, S, tokens=S - 1)


def test_mixture_files(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shipped = load_mixture("web40_code20", [Path(__file__).parents[2] / "pipelines/mixtures"])
    assert shipped.weights["web"] == 40 and shipped.epochs_of("wiki") == 8 and shipped.epochs_of("web") == 4
    path = tmp_path / "m.toml"
    path.write_text('[mixture]\nname = "web40_code20"\n[mixture.weights]\nweb = 35\ncode = 20\nwiki = 45\n')
    with pytest.warns(UserWarning, match=r"web 40 %, its weight gives 35\.0 %"):
        load_mixture(path)
    path.write_text('[mixture]\nname = "m"\nwieghts = {}\n')
    with pytest.raises(UsageError, match="did you mean 'weights'"):
        load_mixture(path)
    path.write_text('[mixture]\nname = "m"\nweights = { web = 0 }\n')
    with pytest.raises(UsageError, match=r"whole number from 1 up \(web\)"):
        load_mixture(path)
    with pytest.raises(UsageError, match="no mixture 'n'; known: m"):
        load_mixture("n", [tmp_path])


def test_the_stream_is_pinned() -> None:
    """The whole stream as one hash: a change of numpy, of a platform or of the code must not move published orders."""
    ramp, full = (63, 63, 127, 255, 511), (1023,) * 60
    web = PlannedSource("web", "a" * 64, 40, ramp + full)
    code = PlannedSource("code", "b" * 64, 20, (*ramp, 7_000))
    pinned = Plan("pinned", 3, 1024, 10**12, (web, code))
    windows = pinned.sequences(np.concatenate([np.arange(100_000), np.arange(10**11, 10**11 + 1000)]))
    stream = np.stack([windows.source_B, windows.shard_B, windows.start_B, windows.epoch_B]).astype("<i8")
    assert hashlib.sha256(stream.tobytes()).hexdigest()[:16] == "53a0040ff79ad8f2"
