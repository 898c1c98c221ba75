"""Duplicates: signatures estimate Jaccard similarity, clusters are what they should be, however the run is cut."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.base.errors import UsageError
from gristmill.base.files import sha256_file
from gristmill.datapipe.dedup.clusters import BEFORE, Components, candidate_pairs, groups, sizes
from gristmill.datapipe.dedup.minhash import Bands, MinHashConfig, bands_for, signatures
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.stages.duplicates import NearConfig, duplicate_nodes, url_nodes
from gristmill.datapipe.text.features import featurise
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import open_run

CONFIG = MinHashConfig()


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]", text) if "漢" in text else re.findall(r"\w+", text.lower())
    size = min(CONFIG.ngram, len(words))
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)} if words else set()


def jaccard(a: str, b: str) -> float:
    ours, theirs = shingles(a), shingles(b)
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 0.0


def planted(generator: np.random.Generator, similar: float, length: int = 400) -> tuple[str, str]:
    """A pair of texts, of which the second has words replaced."""
    words = [f"w{n}" for n in generator.integers(0, 100_000, length)]
    other = list(words)
    for at in range(0, len(words), max(1, int(1 / (1 - similar) * 5))):
        other[at] = f"x{generator.integers(0, 100_000)}"
    return " ".join(words), " ".join(other)


def test_signature_agreement_estimates_jaccard() -> None:
    generator = np.random.default_rng(0)
    pairs = [planted(generator, similar) for similar in (0.9, 0.8, 0.7, 0.5) for _ in range(25)]
    left = signatures(featurise(pa.array([a for a, _ in pairs])), CONFIG)
    right = signatures(featurise(pa.array([b for _, b in pairs])), CONFIG)
    error = (left == right).mean(axis=1) - np.array([jaccard(*pair) for pair in pairs])
    assert abs(error.mean()) < 0.015
    assert np.sqrt((error**2).mean()) < 0.055  # theory: sqrt(J(1-J)/112) <= 0.047


def test_bands_follow_from_the_threshold() -> None:
    assert bands_for(0.7, 112) == Bands(18, 6)  # as datasketch's MinHashLSH with weights=(0.1, 0.9)
    assert NearConfig(threshold=0.8).banding == Bands(12, 9)
    assert NearConfig(bands=14, rows=8).banding == Bands(14, 8)
    with pytest.raises(UsageError, match="15 x 8 is more than the 112 permutations"):
        NearConfig(bands=15, rows=8)
    with pytest.raises(UsageError, match="give both, or neither"):
        NearConfig(bands=15)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_groups_are_named_by_their_first_entry(keys: list[tuple[int, int]]) -> None:
    first, group = groups(np.array(keys, np.uint64).reshape(-1, 2))
    assert [int(first[g]) for g in group] == [keys.index(key) for key in keys]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60), st.integers(1, 5))
def test_components_are_those_of_a_slow_search(pairs: list[tuple[int, int]], pieces: int) -> None:
    label = list(range(31))
    for _ in range(31):
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    components = Components(np.arange(31))
    for piece in np.array_split(np.array(pairs, np.int64).reshape(-1, 2), pieces):
        components.join(np.ascontiguousarray(piece[:, 0]), np.ascontiguousarray(piece[:, 1]))
    cluster = components.clusters()
    assert cluster.tolist() == label
    assert sizes(cluster).tolist() == [label.count(row) for row in label]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=60, unique=True))
def test_candidates_of_a_key_hang_together_and_are_few(entries: list[tuple[int, int]]) -> None:
    key, row = (np.array(column, np.uint64) for column in zip(*entries, strict=True)) if entries else ([], [])
    first, second = candidate_pairs(np.array(key, np.uint64), np.array(row, np.int64))
    pairs = {*zip(first.tolist(), second.tolist(), strict=True)}
    members = defaultdict(set)
    for k, r in entries:
        members[k].add(r)
    assert pairs == {pair for group in members.values() for pair in combinations(sorted(group), 2)}
    assert len(pairs) == len(first) and sorted(pairs) == list(zip(first.tolist(), second.tolist(), strict=True))


# The nodes, as pipelines run them ------------------------------------------------------------------------------------


def clusters(folder: Path, rows: list[dict[str, str]], config: NearConfig, partition: int, workers: int = 0) -> Path:
    path = folder.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    nodes = [*duplicate_nodes(config), *url_nodes()]
    Runner(folder, Ingest((str(path),), IngestConfig(rows_per_partition=partition)), nodes, workers=workers).run()
    return folder


def corpus() -> list[dict[str, str]]:
    """Near-duplicates, exact ones, families of copies of copies, short and empty documents, strangers."""
    generator = np.random.default_rng(1)
    texts: list[str] = []
    for _ in range(40):
        texts += planted(generator, 0.97, 120)
    texts += [texts[0], texts[0].upper().replace(" ", "\n"), texts[3]]
    texts += [
        "...",
        "...",
        "too short",
        "Too  short!",
        "too short",
        "word",
        "漢字だけの文章です" * 3,
        "漢字だけの文章です" * 3,
    ]
    base = texts[10].split()
    texts += [" ".join([*base[: 100 + 2 * n], f"end{n}"]) for n in range(10)]  # each like the next, the ends less so
    texts += [" ".join(f"s{n}" for n in generator.integers(0, 100_000, 80)) for _ in range(40)]
    order = generator.permutation(len(texts))
    urls = ("http://a.example/x?utm_source=y", "https://www.a.example/x/", "https://b.example")
    return [{"text": texts[at], "url": urls[at % 3] if at < 9 else ""} for at in order]


@pytest.mark.parametrize("verify", ["signature", "exact"])
def test_near_duplicates_are_those_of_brute_force(tmp_path: Path, verify: str) -> None:
    rows = corpus()
    texts = [row["text"] for row in rows]
    run = open_run(clusters(tmp_path / "run", rows, NearConfig(threshold=0.7, verify=verify), 50))  # pyright: ignore[reportArgumentType]
    near = run.table("near").to_pydict()
    similarity = {pair: jaccard(texts[pair[0]], texts[pair[1]]) for pair in combinations(range(len(texts)), 2)}
    sure = {pair for pair, value in similarity.items() if value >= 0.85}
    together = sum(near["cluster"][a] == near["cluster"][b] for a, b in sure)
    assert together >= 0.99 * len(sure)
    for a, b in combinations(range(len(texts)), 2):
        if near["cluster"][a] == near["cluster"][b] and similarity[a, b] < 0.5:
            assert texts[a] == texts[b] == "..."  # equal, though it has no words
    for row, (text, cluster, size) in enumerate(zip(texts, near["cluster"], near["size"], strict=True)):
        assert cluster == near["cluster"].index(cluster) and size == near["cluster"].count(cluster)
        if verify == "exact" and size > 1 and near["similarity"][row] < 1:
            best = max(value for pair, value in similarity.items() if row in pair)
            assert 0.7 <= near["similarity"][row] <= best + 1e-6, text
        assert (near["similarity"][row] is None) == (size == 1)


def test_exact_duplicates_differ_in_case_and_layout_alone(tmp_path: Path) -> None:
    rows = corpus()
    run = open_run(clusters(tmp_path / "run", rows, NearConfig(), 50))
    exact, same = run.table("exact").to_pydict(), run.table("same_url").to_pydict()
    keys = [re.findall(r"\w+|[^\w\s]", row["text"].lower()) for row in rows]
    assert exact["cluster"] == [keys.index(key) for key in keys]
    assert exact["size"] == [keys.count(key) for key in keys]
    urls = [row["url"].replace("?utm_source=y", "").rstrip("/")[-11:] or str(at) for at, row in enumerate(rows)]
    assert same["cluster"] == [urls.index(url) for url in urls]


def test_clusters_do_not_depend_on_partitions_or_workers(tmp_path: Path) -> None:
    rows, tables = corpus(), []
    for partition, workers in ((1000, 0), (7, 0), (7, 1), (7, 2), (20, 4)):
        folder = clusters(tmp_path / f"run-{partition}-{workers}", rows, NearConfig(), partition, workers)
        tables.append([open_run(folder).table(name) for name in ("exact", "near", "same_url")])
    assert all(table == tables[0] for table in tables[1:])
    left, right = (tmp_path / f"run-7-{workers}" / "annotations" for workers in (1, 2))
    for path in left.rglob("*.parquet"):
        assert sha256_file(path) == sha256_file(right / path.relative_to(left)), path


def test_one_group_of_many_equal_documents_is_linear(tmp_path: Path) -> None:
    rows = [{"text": "the same words in each of very many documents"}] * 20_000
    run = open_run(clusters(tmp_path / "run", rows, NearConfig(), 5000))
    near = run.table("near")
    assert set(near["cluster"].to_pylist()) == {0} and set(near["size"].to_pylist()) == {20_000}
    assert run.table("near_candidates").num_rows == 0  # equal documents are one candidate


def test_one_bucket_of_many_nearly_equal_documents_is_linear() -> None:
    count = 200_000
    first, second = candidate_pairs(np.zeros(count, np.uint64), np.arange(count))
    assert len(first) == BEFORE * count - sum(range(1, BEFORE + 1))
    assert max(np.bincount(first).max(), np.bincount(second).max()) == BEFORE  # nobody is a hub
    components = Components(np.arange(count))
    components.join(first[::-1].copy(), second[::-1].copy())
    assert (components.clusters() == 0).all()


def test_a_family_of_templates_below_the_threshold_stays_apart(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    template = [f"w{n}" for n in range(1200)]
    texts = []
    for _ in range(120):
        words = list(template)
        for at in generator.choice(1200, 28, replace=False):  # any two have a similarity of about .64
            words[at] = f"x{generator.integers(0, 10**9)}"
        texts.append(" ".join(words))
    likeness = np.array([jaccard(*pair) for pair in combinations(texts[:40], 2)])
    assert 0.61 < np.median(likeness) < 0.67
    rows = [{"text": text} for text in texts]
    sizes = [
        max(
            open_run(clusters(tmp_path / verify, rows, NearConfig(verify=verify), 50)).table("near")["size"].to_pylist()
        )
        for verify in ("exact", "signature")
    ]
    assert sizes[0] <= 8 < sizes[1]  # estimates of many pairs err now and then, and chains grow from that
