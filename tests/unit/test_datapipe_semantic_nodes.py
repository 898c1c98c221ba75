"""Semantic duplicates as the pipeline finds them: the same clusters however the run is cut, none among strangers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.datapipe.dedup.minhash import MinHashConfig
from gristmill.datapipe.dedup.semantic import SemanticConfig
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.stages.duplicates import Sketch, exact_nodes
from gristmill.datapipe.stages.semantic import semantic_nodes
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Stage, open_run


class States(Stage):
    """A vector by the first word of the text, and a little of the whole text; null for what begins with `skip`."""

    name, folder, config = "states", "annotations/states", None

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        texts = table["text"].to_pylist()
        vectors = np.array([_noise(text.split()[0]) + 0.1 * _noise(text) + 3 for text in texts], np.float16)
        skipped = pa.array([text.startswith("skip") for text in texts])
        return pa.table({"state": pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), 16, mask=skipped)})


def _noise(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(size=16)


def run(folder: Path, texts: list[str], partition: int) -> pa.Table:
    path = folder.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = SemanticConfig(documents_per_cell=40)
    nodes = [Sketch(MinHashConfig()), *exact_nodes(), States(), *semantic_nodes(config)]
    Runner(folder, Ingest((str(path),), IngestConfig(rows_per_partition=partition)), nodes, workers=0).run()
    return open_run(folder).table("semantic")


def test_what_means_the_same_is_one_cluster(tmp_path: Path) -> None:
    words = [f"topic{n % 20}" if n < 60 else f"alone{n}" for n in range(300)]
    texts = [f"{word} and so on, number {n}" for n, word in enumerate(words)]
    texts += ["skip this one", "skip this one"]
    found = run(tmp_path / "whole", texts, 1000)
    cluster = found["cluster"].to_pylist()
    assert cluster[:60] == [n % 20 for n in range(60)] and cluster[60:300] == list(range(60, 300))
    assert cluster[300:] == [300, 300]  # equal documents are one, with or without a state
    assert all(value >= 0.95 for value in found["similarity"].to_pylist()[:60])
    for partition in (7, 100):
        assert run(tmp_path / f"by-{partition}", texts, partition) == found


def test_a_run_without_any_state_has_no_clusters(tmp_path: Path) -> None:
    found = run(tmp_path / "run", ["skip one", "skip two", "skip three"], 2)
    assert found["cluster"].to_pylist() == [0, 1, 2] and found["similarity"].null_count == 3
