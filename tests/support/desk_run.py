"""A run folder with all that a policy can meet: clusters, nulls, own bounds per source, words, quarantine, calibration.
Made-up numbers; the selection is the pipeline's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.files import write_json
from gristmill.datapipe.policy_file import read_policy
from gristmill.datapipe.select import Select
from gristmill.datapipe.workflow.quarantine import marked
from gristmill.datapipe.workflow.stage import open_run

SOURCES = ("code", "web", "wiki")
POLICY: dict[str, Any] = {
    "name": "made up",
    "measure": {"heuristics": {"c4": {"terminal": False}, "words": ["a", 'b"\\']}},
    "rule": [
        {"name": "words", "column": "heuristics.words", "min": 20, "max": 400, "sources": {"code": {"min": 5}}},
        {"name": "language", "column": "language.label", "allowed": ["en"],
         "sources": {"code": {}, "wiki": {"allowed": ["en", "fr"]}}},
        {"name": "repetition", "column": "heuristics.repetition", "max": 0.2, "missing": "keep"},
        {"name": "exact", "column": "exact", "keep": "first"},
        {"name": "mixing", "column": "language.mixing", "max": 0.5, "missing": "keep", "sources": {"web": {}}},
        {"name": "near", "column": "near", "keep": "longest"},
        {"name": "flagged", "column": "heuristics.flag", "max": 0},
        {"name": "share", "column": "paragraphs.share", "max": 0.8, "missing": "keep"},
        {"name": "quality", "column": "scores.quality", "min": "@tau_keep"},
        {"name": "best", "column": "near", "keep": "best"},
        {"name": "newest", "column": "exact", "keep": "newest"},
    ],
    "edit": [{"column": "pii.email", "replace": "<\x7fE\n>", "sources": ["web"]}, {"column": "paragraphs.cut"}],
}  # fmt: skip
FOLDERS = ("heuristics", "language", "exact", "near", "scores", "tokens", "paragraphs", "pii")


def make_desk_run(run: Path, documents: int = 400, parts: int = 3, seed: int = 0) -> Path:
    draw = np.random.default_rng(seed)
    source = np.array(SOURCES)[draw.choice(3, documents, p=[0.3, 0.5, 0.2])]

    def nulls(values: np.ndarray, kind: pa.DataType, share: float = 0.1) -> pa.Array:
        return pa.array(values, kind, mask=draw.random(documents) < share)

    words = np.maximum(draw.lognormal(4, 1.2, documents), 1).astype(np.int32)
    near = draw.integers(0, documents // 2, documents)
    # Copies have much in common, and their shares lie on the bounds: a fifth in 32 bits is more than one in 64.
    fifths = np.round(draw.beta(1.5, 6, documents), 1)
    nan = np.where(draw.random(documents) < 0.05, np.nan, draw.beta(3, 3, documents))
    looked = draw.random(documents) < 0.6
    cut = pa.array([[0, 3] if one else None for one in looked], pa.list_(pa.int32()))
    annotations: dict[str, dict[str, Any]] = {
        "heuristics": {
            "words": words,
            "characters": words * 5 + draw.integers(0, 3, documents).astype(np.int32),
            "repetition": nulls(fifths, pa.float32()),
            "flag": draw.random(documents) < 0.1,
        },
        "language": {
            "label": nulls(draw.choice(np.array(["en", "fr", "de"]), documents, p=[0.8, 0.1, 0.1]), pa.string(), 0.03),
            "mixing": nulls(nan, pa.float64()),
        },
        "exact": {"cluster": np.where(draw.random(documents) < 0.3, near // 4, documents + np.arange(documents))},
        "near": {"cluster": np.where(draw.random(documents) < 0.6, near // 3, documents + np.arange(documents))},
        "scores": {"quality": nulls(draw.beta(4, 4, documents), pa.float32())},
        "tokens": {"count": pa.array(np.where(draw.random(documents) < 0.03, 0, words * 4 // 3), pa.int32())},
        "paragraphs": {"share": pa.array(draw.random(documents), pa.float32(), mask=~looked), "cut": cut},
        "pii": {"email": pa.array([[]] * documents, pa.list_(pa.int32()))},
    }
    years = draw.integers(2010, 2019, documents)
    tables: dict[str, dict[str, Any]] = {
        "documents": {
            "id": [f"d{row}" for row in range(documents)],
            "text": [
                f"Document {row}.\n<b>no markup</b> \u202e{'word ' * int(many)}" for row, many in enumerate(words)
            ],
            "source": source,
            "url": pa.nulls(documents, pa.string()),
            "created": pa.array([f"{year}-01-01" for year in years], pa.string(), mask=years % 5 == 0),
        },
        **{f"annotations/{name}": columns for name, columns in annotations.items()},
    }
    for folder, columns in tables.items():
        table = pa.table(columns)
        (run / folder).mkdir(parents=True)
        for number, rows in enumerate(np.array_split(np.arange(documents), parts)):
            part = table.slice(rows[0], len(rows))
            if folder in ("annotations/language", "annotations/scores"):
                row = number if folder.endswith("scores") else 7 + number
                part = marked(part, {row: "stage 'x' raised ValueError"} if number else {})
            pq.write_table(part, run / folder / f"part-{number:05d}.parquet", row_group_size=64)
    groups = {"(all)": {"tau_keep": 0.4}, "web": {"tau_keep": 0.45123456789}, "wiki": {"tau_keep": None}}
    write_json(run / "thresholds" / "calibration.json", {"groups": groups})
    listed = {"documents": "documents", **{name: f"annotations/{name}" for name in FOLDERS}}
    (run / "selection").mkdir()
    write_json(run / "ledger" / "outputs.json", {**listed, "thresholds": "thresholds", "selection": "selection"})
    Select(read_policy(POLICY, "test"), calibrated=True).run(open_run(run), run / "selection")
    return run
