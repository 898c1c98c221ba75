"""Clusters of duplicates: from duplicates/report.json where the run has it, else counted from the annotations.

The report knows more: excerpts and differences of the largest clusters, and which source repeats which.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.base.errors import DataError
from gristmill.base.files import read_json
from gristmill.report.columns import Array, NotThere, Rows

STAGES = ("exact", "same_url", "near", "semantic")
LARGEST = 4
"""As many clusters are shown where the run has no report of its own."""


def read(run: Path, rows: Rows) -> dict[str, Any]:
    """{"stages": [...]}: per annotation what clusters() gives; of the report also tokens, duplicate_tokens, sources,
    pairs and, of each of the largest clusters, what datapipe.duplicate_report writes.

    Raises:
        NotThere: nothing looked for duplicates.
        DataError: the report is none.
    """
    path = run / "duplicates" / "report.json"
    reports = _reports(path) if path.exists() else {}
    stages = [
        _reported(reports[stage]) if stage in reports else clusters(rows, stage)
        for stage in STAGES
        if stage in reports or rows.has(f"annotations/{stage}", "size")
    ]
    if not stages:
        raise NotThere("annotations/exact/ and annotations/near/", "the deduplication stages")
    return {"stages": stages}


def clusters(rows: Rows, stage: str) -> dict[str, Any]:
    """Clusters and documents by size (powers of two), redundant documents, and the largest clusters' first members."""
    folder = f"annotations/{stage}"
    size = rows.numbers(folder, "size")
    known = np.isfinite(size) & (size >= 1)
    size = np.where(known, size, 1.0)
    bucket = np.ceil(np.log2(size)).astype(np.int64)  # 1, 2, 3-4, 5-8, 9-16, ...
    return {
        "stage": stage,
        "examined": int(known.sum()),
        "redundant": float(np.sum((1.0 - 1.0 / size)[known])),
        "buckets": [
            {
                "from": 2 ** (index - 1) + 1 if index > 0 else 1,
                "to": 2**index,
                "documents": int((known & (bucket == index)).sum()),
                "clusters": float(np.sum((1.0 / size)[known & (bucket == index)])),
            }
            for index in range(int(bucket.max(initial=0)) + 1)
        ],
        "largest": _largest(rows, folder, size),
    }


def _largest(rows: Rows, folder: str, size: Array) -> list[dict[str, Any]]:
    if not rows.has(folder, "cluster"):
        return []
    cluster = rows.integers(folder, "cluster")
    candidates = np.flatnonzero((size > 1) & (cluster >= 0))
    order = candidates[np.lexsort((candidates, -size[candidates]))]
    first = list(dict.fromkeys(cluster[order].tolist()))[:LARGEST] if len(order) else []
    return [
        {
            "cluster": int(name),
            "size": int(size[members[0]]),
            "members": [int(row) for row in members[:2]],
        }
        for name in first
        if len(members := np.flatnonzero(cluster == name))
    ]


def _reports(path: Path) -> dict[str, Mapping[str, Any]]:
    written = read_json(path)
    if not isinstance(written, dict) or not isinstance(written.get("annotations"), list):
        raise DataError(f"{path}: no annotations; delete the folder to have it made again")
    return {report["annotation"]: report for report in written["annotations"]}


def _reported(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stage": report["annotation"],
        "examined": report["documents"],
        "redundant": report["duplicates"],
        "buckets": report["sizes"],
        "largest": [{**cluster, "members": []} for cluster in report["largest"]],
        **{name: report.get(name) for name in ("tokens", "duplicate_tokens", "sources", "pairs")},
    }
