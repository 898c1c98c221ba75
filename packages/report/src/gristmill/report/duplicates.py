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
from gristmill.report.columns import Array, Labels, NotThere, Rows

STAGES = ("exact", "same_url", "near", "semantic")
REPEATS = ("lines", "paragraphs", "substrings")
"""Parts of texts that stood in the corpus before: the run keeps what was cut of each document, not where it stood."""
SHARES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
MOST_SOURCES, AT_ONCE = 24, 65_536
"""As many sources are told apart, the rest count as one; clusters that are counted at once."""
LARGEST = 4
"""As many clusters are shown where the run has no report of its own."""


def read(run: Path, rows: Rows) -> dict[str, Any]:
    """{"stages", "repeats"}: per annotation what clusters() gives, of the report also tokens, duplicate_tokens and, of
    each of the largest clusters, what datapipe.duplicate_report writes; and what repeats() gives.

    Raises:
        NotThere: nothing looked for duplicates.
        DataError: the report is none.
    """
    path = run / "duplicates" / "report.json"
    reports = _reports(path) if path.exists() else {}
    source = rows.labels("documents", "source")
    stages = [
        _reported(reports[stage]) if stage in reports else clusters(rows, stage, source)
        for stage in STAGES
        if stage in reports or rows.has(f"annotations/{stage}", "size")
    ]
    cut = [repeats(rows, stage, source) for stage in REPEATS if rows.has(f"annotations/{stage}", "share")]
    if not stages and not cut:
        raise NotThere("annotations/exact/ and annotations/near/", "the deduplication stages")
    return {"stages": stages, "repeats": cut}


def clusters(rows: Rows, stage: str, source: Labels) -> dict[str, Any]:
    """Clusters and documents by size (powers of two), redundant documents, the largest clusters' first members; and
    sources with pairs: of each source (a row) how many documents have a duplicate in each (a column)."""
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
        **_pairs(rows, folder, source),
    }


def repeats(rows: Rows, stage: str, source: Labels) -> dict[str, Any]:
    """What of the documents stood in the corpus before: {"stage", "looked" (documents), "documents" (with any),
    "units", "bars": documents by the share of their bytes, "sources": [{"source", "looked", "documents", "units"}]}."""
    folder = f"annotations/{stage}"
    share, number = rows.numbers(folder, "share"), np.nan_to_num(rows.numbers(folder, "number"))
    looked, repeated = np.isfinite(share), np.nan_to_num(share) > 0
    bars = np.histogram(share[repeated], bins=np.array(SHARES))[0]
    codes, names = source
    counted = [np.bincount(codes[mask & (codes >= 0)], minlength=len(names)) for mask in (looked, repeated)]
    units = np.bincount(codes[codes >= 0], number[codes >= 0], minlength=len(names)).round().astype(np.int64)
    order = np.argsort(-counted[1], kind="stable")[:MOST_SOURCES]
    return {
        "stage": stage,
        "looked": int(looked.sum()),
        "documents": int(repeated.sum()),
        "units": int(number.sum()),
        "bars": [
            {"from": low, "to": high, "documents": int(count)}
            for low, high, count in zip(SHARES, SHARES[1:], bars.tolist(), strict=False)
        ],
        "sources": [
            {
                "source": names[at],
                "looked": int(counted[0][at]),
                "documents": int(counted[1][at]),
                "units": int(units[at]),
            }
            for at in order
        ],
    }


def _pairs(rows: Rows, folder: str, source: Labels) -> dict[str, Any]:
    """As datapipe.duplicate_report counts them; a cluster that has no name is of one document."""
    if not rows.has(folder, "cluster"):
        return {}
    codes, names = source
    total = np.bincount(codes[codes >= 0], minlength=len(names))
    order = np.argsort(-total, kind="stable")
    rank = np.empty(len(names) + 1, dtype=np.int64)
    rank[order], rank[-1] = np.minimum(np.arange(len(order)), MOST_SOURCES), -1
    shown = [names[code] for code in order[:MOST_SOURCES]]
    if len(names) > MOST_SOURCES:
        shown.append(f"{len(names) - MOST_SOURCES} other sources")
    place, cluster = rank[codes], rows.integers(folder, "cluster")
    member = np.flatnonzero((cluster >= 0) & (place >= 0))
    _, group, count = np.unique(cluster[member], return_inverse=True, return_counts=True)
    member, group = member[count[group] > 1], group[count[group] > 1]
    group = np.unique(group, return_inverse=True)[1]
    order, many = np.argsort(group, kind="stable"), len(shown)
    member, group = member[order], group[order]
    pairs = np.zeros((many, many), dtype=np.int64)
    for first in range(0, int(group.max(initial=-1)) + 1, AT_ONCE):
        low, high = np.searchsorted(group, [first, first + AT_ONCE])
        key = (group[low:high] - first) * many + place[member[low:high]]
        held = np.bincount(key, minlength=AT_ONCE * many).reshape(AT_ONCE, many)
        pairs += held.T @ (held > 0)
        pairs[np.arange(many), np.arange(many)] -= (held == 1).sum(axis=0)  # the only one of its source repeats nobody
    in_all, members = (np.bincount(one[one >= 0], minlength=many) for one in (place, place[member]))
    return {
        "sources": [
            {"source": name, "documents": int(in_all[at]), "members": int(members[at])} for at, name in enumerate(shown)
        ],
        "pairs": pairs.tolist(),
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
