"""Shuffles: what belongs together meets, whatever the partitions and workers, and a run that was stopped goes on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.base.errors import GristmillError
from gristmill.base.files import sha256_folder
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.text.hashing import word_hash
from gristmill.datapipe.workflow import buckets
from gristmill.datapipe.workflow.buckets import HASH_RANGES, Ranges
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Bucket, Shuffle, open_run

WORDS = ["ant", "bee", "cat", "dog", "eel", "fox"]


class Words(Shuffle):
    """words: how often each text stands in the run, and where first."""

    name, folder, config = "words", "annotations/words", None
    columns = ("text",)
    disposable = True
    gathered: ClassVar[list[int]] = []
    bug: ClassVar[str] = "explode"

    def scatter(self, table: pa.Table, previous: Mapping[str, pa.Table], start: int) -> pa.Table:
        keys = [int(word_hash(text)) * 0x9E3779B97F4A7C15 % 2**64 for text in table["text"].to_pylist()]
        rows = start + np.arange(len(table))
        return pa.table({"key": pa.array(keys, pa.uint64()), "row": rows, "word": table["text"]})

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        self.gathered.append(len(entries))
        if self.bug in entries["word"].to_pylist():
            raise ValueError("this shuffle has a bug")
        grouped = entries.group_by("word", use_threads=False).aggregate([("row", "min"), ("row", "count")])
        return entries.select(["row", "word"]).join(grouped, "word", use_threads=False).sort_by("row")


class Answer(Shuffle):
    """answer: row-aligned, the number of each document's copies and the place of its first."""

    name, folder, config = "answer", "annotations/answer", None
    over, by, onto, aligned, beside = "words", "row", "documents", True, {"documents": ("text",)}

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        entries = entries.sort_by("row")
        assert entries["row"].to_pylist() == list(range(bucket.start, bucket.start + bucket.rows))
        assert entries["word"].to_pylist() == previous["documents"]["text"].to_pylist()
        return entries.select(["row_min", "row_count"])


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "SMALL", 1)  # several buckets for a handful of rows
    monkeypatch.setattr(buckets, "BUCKETS", 3)
    Words.gathered.clear()


def run(folder: Path, texts: list[str], partition: int = 3, workers: int = 0) -> list[tuple[int, int]]:
    path = folder.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ingest = Ingest((str(path),), IngestConfig(rows_per_partition=partition), 0.0)
    Runner(folder, ingest, [Words(), Answer()], workers=workers).run()
    table = open_run(folder).table("answer")
    return list(zip(table["row_min"].to_pylist(), table["row_count"].to_pylist(), strict=True))


def expected(texts: list[str]) -> list[tuple[int, int]]:
    return [(texts.index(text), Counter(texts)[text]) for text in texts]


def test_equal_rows_meet_whatever_the_partitions_and_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    texts = [WORDS[n * n % 6] for n in range(20)]
    for partition in (1, 3, 50):
        assert run(tmp_path / f"by{partition}", texts, partition) == expected(texts)
    assert run(tmp_path / "ray", texts, 3, workers=2) == expected(texts)
    assert sha256_folder(tmp_path / "ray" / "annotations") == sha256_folder(tmp_path / "by3" / "annotations")
    assert not list((tmp_path / "ray" / ".work" / "scattered").iterdir())


def test_a_second_run_does_nothing_and_a_new_document_does_all_buckets(tmp_path: Path) -> None:
    texts = ["ant", "bee", "ant", "cat"]
    run(tmp_path / "run", texts)
    first = list(Words.gathered)
    run(tmp_path / "run", texts)
    assert Words.gathered == first and len(first) == 3
    assert run(tmp_path / "run", [*texts, "bee"]) == expected([*texts, "bee"])
    record = {node["name"]: node for node in json.loads((tmp_path / "run" / "run.json").read_text())["nodes"]}
    assert record["words"]["kind"] == "shuffle" and record["words"]["counts"] == {"rows": 5}
    assert record["words"]["partitions"] == record["words"]["partitions_done"] == 5  # two to scatter, three to gather


def test_after_a_failure_only_what_is_missing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["ant", "bee", "cat", "explode", "dog", "eel", "fox"]
    with pytest.raises(GristmillError, match=r"words, part-0000\d\.parquet: ValueError: this shuffle has a bug"):
        run(tmp_path / "run", texts)
    tried = len(Words.gathered)
    monkeypatch.setattr(Words, "bug", "mended")
    monkeypatch.setattr(Words, "scatter", None)  # nothing is scattered again
    assert run(tmp_path / "run", texts) == expected(texts)
    assert len(Words.gathered) == tried + 1  # the bucket that had failed


def test_what_only_leads_to_others_may_be_deleted(tmp_path: Path) -> None:
    texts = [WORDS[n * n % 6] for n in range(20)]
    folder = tmp_path / "run"
    assert run(folder, texts) == expected(texts)
    before, did = sha256_folder(folder / "annotations" / "answer"), len(Words.gathered)
    shutil.rmtree(folder / "annotations" / "words")
    run(folder, texts)
    assert len(Words.gathered) == did  # nobody needs it
    next((folder / "annotations" / "answer").iterdir()).unlink()
    assert run(folder, texts) == expected(texts)
    assert len(Words.gathered) == 2 * did and sha256_folder(folder / "annotations" / "answer") == before


def test_a_row_that_the_run_has_not_is_refused() -> None:
    ranges = Ranges.of_partitions({"a": 3, "b": 2})
    assert ranges.of(pa.chunked_array([[0, 2, 3, 4]])).tolist() == [0, 0, 1, 1]
    for row in (-1, 5):
        with pytest.raises(ValueError, match="in a run of 5 rows"):
            ranges.of(pa.chunked_array([[0, row]]))


def test_an_aligned_shuffle_that_loses_a_row_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answer, "gather", lambda self, entries, bucket, previous: entries.slice(1))
    with pytest.raises(GristmillError, match="shuffle 'answer' returned 2 rows for 3"):
        run(tmp_path / "run", ["ant", "bee", "cat", "dog"])


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_hashes_are_cut_into_ranges_of_one_width(keys: list[int]) -> None:
    ranges = Ranges.of_hashes()
    where = ranges.of(pa.chunked_array([pa.array(keys, pa.uint64())]))
    assert where.tolist() == [key * HASH_RANGES >> 64 for key in keys]


@given(st.integers(1, 2000), st.integers(0, 10**14))
def test_joined_ranges_are_all_ranges_in_their_order(count: int, size: int) -> None:
    joined = Ranges(count).joined(size)
    assert [index for own in joined for index in own] == list(range(count)) and all(map(len, joined))


def test_buckets_are_read_back_in_the_order_of_the_run(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    paths, entries = [], []
    for number in range(3):
        where = generator.integers(0, 4, 100)
        table = pa.table({"where": where, "at": number * 100 + np.arange(100), "list": [[n] * (n % 3) for n in where]})
        paths.append(tmp_path / str(number))
        entries.append(table)
        buckets.write(paths[-1], table, where, 5)
    everything = pa.concat_tables(entries)
    for index in range(5):
        want = everything.filter(pa.array(everything["where"].to_numpy() == index))
        assert buckets.read(paths, range(index, index + 1)).equals(want.combine_chunks())
    assert sorted(buckets.read(paths, range(1, 5))["at"].to_pylist()) == sorted(
        everything.filter(pa.array(everything["where"].to_numpy() > 0))["at"].to_pylist()
    )
