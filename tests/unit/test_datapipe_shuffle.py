"""Shuffles: what belongs together meets, whatever the partitions and workers, and a run that was stopped goes on."""

from __future__ import annotations

import json
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
from gristmill.datapipe.workflow.buckets import Into
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Bucket, Shuffle, open_run

WORDS = ["ant", "bee", "cat", "dog", "eel", "fox"]


class Words(Shuffle):
    """words: how often each text stands in the run, and where first."""

    name, folder, config = "words", "annotations/words", None
    columns = ("text",)
    entries_per_row = 3e5  # several buckets for a handful of rows
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
    over, by, onto, beside = "words", "row", "documents", {"documents": ("text",)}

    def scatter(self, table: pa.Table, previous: Mapping[str, pa.Table], start: int) -> pa.Table:
        return table

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        entries = entries.sort_by("row")
        assert entries["row"].to_pylist() == list(range(bucket.start, bucket.start + bucket.rows))
        assert entries["word"].to_pylist() == previous["documents"]["text"].to_pylist()
        return entries.select(["row_min", "row_count"])


@pytest.fixture(autouse=True)
def _forget() -> None:
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
    assert Words.gathered == first and len(first) == 2  # 4 x 300,000 entries are expected: two buckets
    assert run(tmp_path / "run", [*texts, "bee"]) == expected([*texts, "bee"])
    record = {node["name"]: node for node in json.loads((tmp_path / "run" / "run.json").read_text())["nodes"]}
    assert record["words"]["kind"] == "shuffle" and record["words"]["counts"] == {"rows": 5}


def test_after_a_failure_only_what_is_missing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["ant", "bee", "cat", "explode", "dog", "eel", "fox"]
    with pytest.raises(GristmillError, match=r"words, part-0000\d\.parquet: ValueError: this shuffle has a bug"):
        run(tmp_path / "run", texts)
    tried = len(Words.gathered)
    monkeypatch.setattr(Words, "bug", "mended")
    monkeypatch.setattr(Words, "scatter", None)  # nothing is scattered again
    assert run(tmp_path / "run", texts) == expected(texts)
    assert len(Words.gathered) == tried + 1  # the bucket that had failed


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.integers(1, 9))
def test_every_entry_is_in_the_bucket_of_its_key_once(keys: list[int], count: int) -> None:
    into = Into(tuple(str(number) for number in range(count)))
    column = pa.chunked_array([pa.array(keys, pa.uint64())])
    where = into.bucket_of(column)
    assert where.tolist() == [(key >> 32) * count >> 32 for key in keys]


def test_buckets_are_read_back_in_the_order_of_the_run(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    paths, entries = [], []
    for number in range(3):
        bucket = generator.integers(0, 4, 100)
        table = pa.table(
            {"bucket": bucket, "at": number * 100 + np.arange(100), "list": [[n] * (n % 3) for n in bucket]}
        )
        paths.append(tmp_path / str(number))
        entries.append(table)
        buckets.write(paths[-1], table, bucket, 5)
    everything = pa.concat_tables(entries)
    for index in range(5):
        want = everything.filter(pa.array(everything["bucket"].to_numpy() == index))
        assert buckets.read(paths, index).equals(want.combine_chunks())
