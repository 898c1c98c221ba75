"""Mixtures and plans: exact shares, windows once per epoch, one order for every budget, phases that lose nothing."""

import dataclasses
import hashlib
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.small_shards import DOCUMENTS, TOKENIZER, S, mixture, table, write

from gristmill.base.errors import UsageError
from gristmill.shards.mixture import Mixture, MixturePhase, load_mixture
from gristmill.shards.phase import SPREAD, Phase
from gristmill.shards.plan import Plan, PlannedSource, Windows
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.resolve import plan
from gristmill.shards.writer import SourceSpec, write_manifest, write_source


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return open_dataset(write(tmp_path_factory.mktemp("dataset")))


def windows_of(dataset: Dataset, name: str, length: int = S) -> int:
    return sum((shard.token_count - 1) // length for shard in dataset.sources[name].split("train").shards)


def made(weights: dict[str, int], phases: list[tuple[int, int, dict[str, int]]], unit: int, count: int) -> Plan:
    """A plan of sources with 700 windows in shards of 10, 20, 30 ...; phases of (first unit, length, weights)."""
    sources = tuple(PlannedSource(name, name * 64, (10, 20, 30, 40, 100, 200, 300)) for name in sorted(weights))
    stages = [(0, unit if not phases else phases[0][1], weights), *phases[1:]] if phases else [(0, unit, weights)]
    return Plan(
        "made", 5, unit, count, sources,
        tuple(Phase(f"p{i}", f, n, tuple(w.get(s.name, 0) for s in sources)) for i, (f, n, w) in enumerate(stages)),
    )  # fmt: skip


def places(windows: Windows) -> list[tuple[int, ...]]:
    columns = (windows.source_B, windows.epoch_B, windows.shard_B, windows.start_B)
    return list(zip(*(column.tolist() for column in columns)))


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
        counts = whole.token_counts(k)
        for index, planned in enumerate(whole.sources):
            assert counts[planned.name] == (source[:k] == index).sum() * S
            assert abs(counts[planned.name] / S - k * whole.phases[0].weights[index] / 75) < 1
    assert [row["share"] for row in whole.summary()] == [20 / 75, 40 / 75, 15 / 75]


def test_no_prefix_of_a_million_is_off_by_one_sequence() -> None:
    weights = {"a": 4001, "b": 1999, "c": 1000, "d": 700, "e": 300, "f": 1999, "g": 1}
    whole = made(weights, [], 8, 10**6)
    source = whole.sequences(np.arange(10**6)).source_B
    steps = np.arange(1, 10**6 + 1)
    for index, weight in enumerate(whole.phases[0].weights):
        ahead = np.cumsum(source == index) - steps * (weight / 10_000)
        assert np.abs(ahead).max() < 1


def test_a_smaller_budget_is_a_prefix_and_a_seed_changes_it(dataset: Dataset) -> None:
    small, large = (plan(mixture(), dataset, S, tokens=n * S) for n in (100, 1000))
    assert small.sha == large.sha
    a, b = small.sequences(np.arange(100)), large.sequences(np.arange(1000))
    for field in dataclasses.fields(a):
        assert np.array_equal(getattr(a, field.name), getattr(b, field.name)[:100])
    for name, shards in small.touched().items():
        assert set(shards) <= set(large.touched()[name])
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


@settings(max_examples=40)
@given(st.data())
def test_touched_names_the_shards_that_are_read(data) -> None:
    pieces = data.draw(st.sampled_from([1, 4]))
    weights = {"a": data.draw(st.integers(1, 9)), "b": data.draw(st.integers(1, 9))}
    whole = made(weights, [(0, 8 // pieces, weights)], 8, 3000 * pieces)
    first = data.draw(st.integers(0, whole.sequence_count))
    last = data.draw(st.integers(first, whole.sequence_count))
    windows = whole.sequences(np.arange(first, last))
    touched = whole.touched(first, last)
    groups = whole.sources[0].group_shards
    for index, source in enumerate(whole.sources):
        read = set(windows.shard_B[windows.source_B == index].tolist())
        assert read <= set(touched[source.name])
        if pieces == 1:  # and no group more than that
            wanted = {s for low, high in groups.tolist() if read & set(range(low, high)) for s in range(low, high)}
            assert set(touched[source.name]) == wanted


@settings(max_examples=40)
@given(st.data())
def test_phases_lose_and_repeat_nothing(data) -> None:
    """Weights, sources and lengths change on the way; still every token of an epoch is read once before any twice."""
    pieces = data.draw(st.sampled_from([1, 2, 4]))
    unit = 8
    step = SPREAD if pieces > 1 else 1
    weight = st.integers(0, 7)
    phases: list[tuple[int, int, dict[str, int]]] = []
    first = 0
    for number in range(data.draw(st.integers(1, 4))):
        weights = {name: data.draw(weight) for name in "abc"}
        if not any(weights.values()):
            weights["a"] = 1
        length = unit // data.draw(st.sampled_from([1, pieces]))
        phases.append((first, length, weights))
        first += step * data.draw(st.integers(1, 3 if pieces > 1 else 300))
        assert number >= 0
    whole = made(phases[0][2] | {}, phases, unit, 0)
    count = Plan.of_tokens(first * unit, "made", 5, unit, whole.sources, whole.phases).sequence_count
    whole = dataclasses.replace(whole, sequence_count=count)
    assert whole.tokens == first * unit == sum(whole.token_counts().values())
    windows = whole.sequences(np.arange(count))
    lengths = np.array([whole.length_of(k)[0] for k in range(count)])
    for index, source in enumerate(whole.sources):
        rows = np.flatnonzero(windows.source_B == index)
        place = source.window_starts[windows.shard_B[rows]] * unit + windows.start_B[rows]
        covered = np.concatenate([np.arange(p, p + n) for p, n in zip(place, lengths[rows])] or [np.zeros(0, int)])
        read = np.bincount(covered, minlength=source.windows * unit)
        assert read.max() - read.min() <= 1  # nothing twice before everything once
        assert read.sum() == whole.token_counts()[source.name]
    for k in {0, 1, count // 3, count}:
        here = np.array([lengths[:k][windows.source_B[:k] == i].sum() for i in range(len(whole.sources))])
        assert list(whole.token_counts(k).values()) == here.tolist() and whole.tokens_before(k) == here.sum()


def test_a_phase_added_later_leaves_what_came_before(dataset: Dataset) -> None:
    asked = mixture(weights={"web": 1, "code": 1})
    before = plan(asked, dataset, S, tokens=400 * S)
    late = MixturePhase("mid", from_tokens=300 * S - 5, weights={"code": 3, "wiki": 1})
    after = plan(dataclasses.replace(asked, phase=(late,)), dataset, S, tokens=400 * S)
    assert after.phase_starts() == [("pretrain", 0, 0), ("mid", 300, 300 * S)]
    names = [[source.name for source in p.sources] for p in (before, after)]
    assert names == [["code", "web"], ["code", "web", "wiki"]]  # so numbers of sources mean the same in both
    assert places(before.sequences(np.arange(300))) == places(after.sequences(np.arange(300)))
    assert before.identity(300) == after.identity(300) and before.identity(301) != after.identity(301)
    counts = {name: after.token_counts(400)[name] - after.token_counts(300)[name] for name in DOCUMENTS}
    assert counts == {"web": 0, "code": 75 * S, "wiki": 25 * S}


def test_a_long_context_phase_finds_its_text_whole(dataset: Dataset) -> None:
    asked = mixture(
        weights={"web": 1}, max_epochs={"default": 40},
        phase=(MixturePhase("long", from_share=0.5, sequence_length=4 * S),),
    )  # fmt: skip
    step = 4 * S * SPREAD
    got = plan(asked, dataset, S, tokens=4 * step, align=3 * S)
    assert got.unit == 4 * S and got.tokens == 4 * step
    boundary = got.phase_starts()[1]
    assert boundary[2] == 3 * step  # a multiple of batches, too
    assert got.length_of(0) == (S, boundary[1]) and got.length_of(boundary[1]) == (4 * S, got.sequence_count)
    with pytest.raises(UsageError, match="nothing is left of it"):
        plan(asked, dataset, S, tokens=step)
    with pytest.raises(UsageError, match="nothing is left of it"):
        late = MixturePhase("long", from_tokens=3 * step + 1, sequence_length=4 * S)
        plan(dataclasses.replace(asked, phase=(late,)), dataset, S, tokens=4 * step)
    with pytest.raises(UsageError, match="cannot share an order"):
        plan(asked, dataset, S - 1, tokens=4 * step)
    with pytest.raises(UsageError, match="best-fit rows have one length"):
        plan(asked, dataset, S, tokens=4 * step, pack="bestfit")
    with pytest.raises(UsageError, match="not after phase 'long'"):
        two = dataclasses.replace(asked, phase=(*asked.phase, MixturePhase("x", from_share=0.4, sequence_length=S)))
        plan(two, dataset, S, tokens=4 * step)


def test_matched_repetition_reads_a_part_as_often_as_the_whole(dataset: Dataset) -> None:
    target = 40_000 * S
    asked = mixture(target_tokens=target, max_epochs={"default": 1000})
    large = plan(asked, dataset, S, tokens=target)
    small = plan(asked, dataset, S, tokens=target // 10, match_repetition=True)
    for name, epochs in large.epochs().items():
        assert small.epochs()[name] == pytest.approx(epochs, rel=0.05)
    parts = [set(places(p.sequences(np.arange(p.sequence_count)))) for p in (small, large)]
    assert {(s, shard, start) for s, _e, shard, start in parts[0]} <= {(s, shard, t) for s, _e, shard, t in parts[1]}
    with pytest.raises(UsageError, match="set target_tokens to its budget"):
        plan(mixture(), dataset, S, tokens=100 * S, match_repetition=True)


def test_matching_repetition_keeps_every_window_in_its_shard(tmp_path: Path) -> None:
    """Shards that are too short for a window stand between others; the part is a prefix of the whole, by shards."""
    for name in ("a", "b"):
        spec = SourceSpec(name, TOKENIZER)
        write_source(tmp_path, spec, [table(name, 60, 3, 40)], shard_tokens=70, ramp=(20, 90, 60, 15, 80))
    write_manifest(tmp_path)
    short = open_dataset(tmp_path)
    asked = mixture(weights={"a": 1, "b": 1}, target_tokens=200 * S, max_epochs={"default": 100})
    whole = plan(asked, short, S, tokens=200 * S)
    assert any(0 in source.shard_windows[:-1] for source in whole.sources)
    for tokens in (10, 40, 90, 150):
        part = plan(asked, short, S, tokens=tokens * S, match_repetition=True)
        for some, every in zip(part.sources, whole.sources):
            pairs = list(zip(some.shard_windows, every.shard_windows))
            full = [i for i, (a, b) in enumerate(pairs) if a != b]
            assert len(full) <= 1 and full in ([], [len(pairs) - 1])


def test_unique_tokens_cut_a_source_at_random_and_leave_the_others(dataset: Dataset) -> None:
    asked = mixture(max_epochs={"default": 1000})
    size = dataset.sources["web"].split("train").token_count
    whole, part = (plan(asked, dataset, S, tokens=20_000 * S, unique_tokens=cut) for cut in (None, {"web": size // 3}))
    windows = {p: {source.name: source.windows for source in p.sources} for p in (whole, part)}
    assert windows[part]["web"] == pytest.approx(windows[whole]["web"] / 3, abs=1)
    assert {**windows[part], "web": 0} == {**windows[whole], "web": 0}
    read = [set(places(p.sequences(np.arange(p.sequence_count)))) for p in (part, whole)]
    once = [{(source, shard, start) for source, _epoch, shard, start in each} for each in read]
    assert once[0] < once[1] and part.epochs()["web"] == pytest.approx(3 * whole.epochs()["web"], rel=0.05)
    assert part.identity(0) != whole.identity(0)
    assert (
        plan(asked, dataset, S, tokens=100 * S, unique_tokens={"web": 2 * size}).sha
        == plan(asked, dataset, S, tokens=100 * S).sha
    )
    for wrong, why in (({"wbe": 9}, "no source 'wbe'; did you mean 'web'"), ({"web": 0}, "web must be at least 1")):
        with pytest.raises(UsageError, match=why):
            plan(asked, dataset, S, tokens=100 * S, unique_tokens=wrong)


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
    late = dataclasses.replace(once, weights={"web": 1}, phase=(MixturePhase("mid", 50 * S, weights={"wiki": 1}),))
    with pytest.raises(UsageError, match="wiki runs out in phase mid"):
        plan(late, dataset, S, tokens=(51 + windows) * S)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=3, max_size=3), st.floats(0.02, 0.9999), st.booleans())
def test_redistribution_stays_within_every_cap(dataset: Dataset, weights: list[int], part: float, two: bool) -> None:
    size = {name: windows_of(dataset, name) for name in DOCUMENTS}
    asked = mixture(
        weights=dict(zip(DOCUMENTS, weights)), max_epochs={"default": 1}, on_exhausted="redistribute",
        phase=(MixturePhase("mid", from_share=0.6, weights=dict(zip(DOCUMENTS, weights[::-1]))),) if two else (),
    )  # fmt: skip
    budget = max(int(sum(size.values()) * part), 10)
    got = plan(asked, dataset, S, tokens=budget * S)
    counts = {name: tokens // S for name, tokens in got.token_counts().items()}
    assert sum(counts.values()) == budget
    assert all(counts[name] <= size[name] for name in counts)


def test_redistribution_keeps_the_rest_in_proportion(dataset: Dataset) -> None:
    size = {name: windows_of(dataset, name) for name in DOCUMENTS}
    asked = mixture(weights={"web": 2, "code": 1, "wiki": 3}, max_epochs={"default": 1}, on_exhausted="redistribute")
    budget = 4 * size["wiki"]
    counts = plan(asked, dataset, S, tokens=budget * S).token_counts()
    assert 0.99 * size["wiki"] * S < counts["wiki"] <= size["wiki"] * S
    assert abs(counts["web"] / counts["code"] - 2) < 0.02
    brim = plan(asked, dataset, S, tokens=sum(size.values()) * S)  # every cap at once, to the last window
    assert {name: tokens // S for name, tokens in brim.token_counts().items()} == size
    unchanged = plan(asked, dataset, S, tokens=size["wiki"] * S)
    assert unchanged.phases[0].weights == (1, 2, 3)
    with pytest.raises(UsageError, match="all sources together hold"):
        plan(asked, dataset, S, tokens=(sum(size.values()) + 1) * S)


def test_best_fit_shares_are_of_tokens_not_of_rows(dataset: Dataset) -> None:
    """Documents a little over half a row long fill half of each: such a source needs twice the rows for its share."""
    length = 64
    got = plan(mixture(weights={"web": 1, "wiki": 1}), dataset, length, tokens=400 * length, pack="bestfit")
    rows = {name: tokens // length for name, tokens in got.token_counts().items()}
    fill = {
        source.name: dataset.sources[source.name].split("train").token_count / (source.windows * length)
        for source in got.sources
    }
    assert rows["web"] * fill["web"] == pytest.approx(rows["wiki"] * fill["wiki"], rel=0.01)


def test_a_star_is_all_other_sources_in_proportion(dataset: Dataset) -> None:
    tokens = {name: dataset.sources[name].split("train").token_count for name in DOCUMENTS}
    for weights, free in (({"*": 1}, 1.0), ({"*": 80, "code": 20}, 0.8)):
        got = plan(mixture(weights=weights), dataset, S, tokens=10_000 * S)
        shares = {str(row["source"]): row["share"] for row in got.summary()}
        named = set(weights) - {"*"}
        rest = sum(tokens[name] for name in tokens if name not in named)
        for name in shares:
            expected = 0.2 if name in named else free * tokens[name] / rest
            assert shares[name] == pytest.approx(expected, abs=2e-4)


def test_unmeetable_requests_are_refused(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="no source books, docs; it has code, web, wiki"):
        plan(mixture(weights={"web": 1, "books": 1, "docs": 1}), dataset, S, tokens=100 * S)
    with pytest.raises(UsageError, match="no train shard of source"):
        plan(mixture(), dataset, 10**6, tokens=10**7)
    with pytest.raises(UsageError, match="max_epochs: the dataset has no source wbe; did you mean 'web'"):
        plan(mixture(max_epochs={"wbe": 1}), dataset, S, tokens=100 * S)
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
    with pytest.raises(UsageError, match="no mixture 'n'; known: m"):
        load_mixture("n", [tmp_path])
    start = '[mixture]\nname = "m"\n'
    phase = start + 'weights = { web = 1 }\n[[mixture.phase]]\nname = "late"\n'
    for text, message in (
        (start + "wieghts = {}\n", "did you mean 'weights'"),
        (start + "weights = { web = 0 }\n", r"whole number from 1 up \(web\)"),
        (start + "weights = { web = 1 }\nmax_epochs = { web = 0 }\n", "must be over 0"),
        (phase + "weights = { web = 1 }\n", "give from_tokens, from 1 up, or from_share"),
        (phase + "from_share = 1.5\nweights = { web = 1 }\n", "give from_tokens, from 1 up, or from_share"),
        (phase + "from_tokens = 5\n", "changes nothing"),
        (phase + "from_tokens = 5\nweights = { web = -1 }\n", r"phase 'late': weights: .* \(web\)"),
        (phase + "from_tokens = 5\nwieght = {}\n", "did you mean 'weights'"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            load_mixture(path)
    path.write_text(phase + "from_share = 0.9\nsequence_length = 8192\n")
    assert load_mixture(path) == Mixture(
        "m", {"web": 1}, phase=(MixturePhase("late", from_share=0.9, sequence_length=8192),)
    )


def pinned() -> Plan:
    ramp, full = (63, 63, 127, 255, 511), (1023,) * 60
    web = PlannedSource("web", "a" * 64, ramp + full)
    code = PlannedSource("code", "b" * 64, (*ramp, 7_000))
    return Plan("pinned", 3, 1024, 10**12, (web, code), (Phase("all", 0, 1024, (40, 20)),))


def stream(got: Plan, ks: np.ndarray) -> str:
    windows = got.sequences(ks)
    rows = np.stack([windows.source_B, windows.shard_B, windows.start_B, windows.epoch_B]).astype("<i8")
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]


def test_the_stream_is_pinned() -> None:
    """The whole stream as one hash: a change of numpy, of a platform or of the code must not move published orders."""
    ks = np.concatenate([np.arange(100_000), np.arange(10**11, 10**11 + 1000)])
    assert stream(pinned(), ks) == "53a0040ff79ad8f2"
    late = (Phase("all", 0, 256, (40, 20)), Phase("late", 100 * SPREAD, 1024, (1, 0)))
    assert stream(dataclasses.replace(pinned(), phases=late), ks) == "f4c50c65917fcb05"


def test_a_plan_of_a_trillion_tokens_is_small() -> None:
    tracemalloc.start()
    names = "abcdefgh"
    sources = tuple(PlannedSource(name, name * 64, (32_767,) * 2_000) for name in names)
    large = Plan(
        "large", 0, 2048, 5 * 10**8, sources, (Phase("all", 0, 2048, (4000, 2000, 1500, 1000, 700, 500, 200, 100)),)
    )
    large.sequences(np.arange(4 * 10**8, 4 * 10**8 + 512))
    large.touched(4 * 10**8, 4 * 10**8 + 10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
