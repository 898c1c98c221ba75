"""Which documents to read: a seeded choice, a few per rule, and those nearest to each threshold, on both sides.

Rows are chosen from numbers alone; only then are the texts and every measured value of those rows read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gristmill.report.columns import Array, Column, Rows

TEXT_LIMIT = 1600  # characters of a document that are shown
AT_RANDOM, PER_RULE, AT_THRESHOLD = 6, 4, 4


def thresholds(policy: Mapping[str, Any], calibration: Mapping[str, Any], rows: Rows) -> list[dict[str, Any]]:
    """Numeric bounds that decide: {"name", "rule", "column", "side": min|max, "default", "sources": {name: value}}.

    Bounds come from the policy's rules; tau_drop (on the probe's score) and tau_keep (on the quality) from the
    calibration where no rule already bounds that column.
    """
    found: list[dict[str, Any]] = []
    for rule in policy.get("rules") or []:
        column = rows.resolve(str(rule.get("column", "")))
        overrides = rule.get("sources") or {}
        for side in ("min", "max"):
            sources = {name: value[side] for name, value in overrides.items() if _number(value.get(side))}
            default = rule.get(side) if _number(rule.get(side)) else None
            if column is not None and column.kind == "number" and (default is not None or sources):
                found.append(
                    _bound(f"{rule['name']}: {column.label} {side}", rule["name"], column, side, default, sources)
                )
    bounded = {(bound["folder"], bound["column"]) for bound in found}
    for head, key in (("probe", "tau_drop"), ("quality", "tau_keep")):
        column = rows.resolve(f"scores.{head}")
        sources = {name: group[key] for name, group in calibration.items() if _number(group.get(key))}
        default = sources.pop("default", None)
        if column is not None and (column.folder, head) not in bounded and (sources or default is not None):
            found.append(_bound(f"{key}: {column.label}", None, column, "min", default, sources))
    return found


def choose(
    rows: Rows, keep: Array, reason: tuple[Array, list[str]], source: tuple[Array, list[str]],
    bounds: Sequence[Mapping[str, Any]], seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Views over rows: {"name", "about", "kept": [rows], "dropped": [rows]}; the same seed chooses the same rows."""
    views = [
        {
            "name": "Chosen at random",
            "group": "random",
            "about": f"Drawn with seed {seed}; each document of a side is equally likely.",
            "kept": _draw(np.flatnonzero(keep), AT_RANDOM, seed, "kept"),
            "dropped": _draw(np.flatnonzero(~keep), AT_RANDOM, seed, "dropped"),
        }
    ]
    codes, names = reason
    for code, name in enumerate(names):
        dropped = np.flatnonzero(~keep & (codes == code))
        views.append(
            {
                "name": name,
                "group": "rule",
                "about": f"Dropped first by the rule {name}, beside kept documents of the same sources.",
                "kept": _draw(
                    np.flatnonzero(keep & np.isin(source[0], source[0][dropped])), PER_RULE, seed, f"kept {name}"
                ),
                "dropped": _draw(dropped, PER_RULE, seed, name),
            }
        )
    for bound in bounds:
        values = rows.numbers(bound["folder"], bound["column"])
        limit = _limits(bound, source)
        margin = values - limit if bound["side"] == "min" else limit - values  # >= 0 passes
        failed = (codes == names.index(bound["rule"])) if bound["rule"] in names else ~keep
        views.append(
            {
                "name": bound["name"],
                "group": "threshold",
                "about": "The closest calls, nearest to the bound of their own source first.",
                "value": f"{bound['folder']}/{bound['column']}",
                "bound": bound,
                "kept": _nearest(margin, keep & (margin >= 0)),
                "dropped": _nearest(-margin, failed & ~keep & (margin < 0)),
            }
        )
    return [view for view in views if view["kept"] or view["dropped"]]


def read(rows: Rows, wanted: Sequence[int], keep: Array, reason: tuple[Array, list[str]]) -> dict[str, dict[str, Any]]:
    """The documents at the wanted rows, by row number: text (cut at TEXT_LIMIT) and every measured value."""
    columns: dict[str, list[str]] = {"documents": ["id", "text", "source", "url", "created", "file", "row"]}
    for column in rows.columns:
        columns.setdefault(column.folder, []).append(column.name)
    out: dict[str, dict[str, Any]] = {}
    for row, record in rows.records(wanted, columns).items():
        document = {
            key.removeprefix("documents/"): value for key, value in record.items() if key.startswith("documents/")
        }
        text = document.pop("text", "") or ""
        code = int(reason[0][row])
        out[str(row)] = {
            **document,
            "text": text[:TEXT_LIMIT],
            "characters": len(text),
            "keep": bool(keep[row]),
            "reason": reason[1][code] if code >= 0 else None,
            "values": {key: value for key, value in record.items() if not key.startswith("documents/")},
        }
    return out


def _bound(
    name: str, rule: str | None, column: Column, side: str, default: Any, sources: dict[str, Any]
) -> dict[str, Any]:
    return {"name": name, "rule": rule, "folder": column.folder, "column": column.name, "label": column.label,
            "side": side, "default": default, "sources": sources}  # fmt: skip


def _limits(bound: Mapping[str, Any], source: tuple[Array, list[str]]) -> Array:
    default = np.nan if bound["default"] is None else bound["default"]
    per_source = np.array([*(bound["sources"].get(name, default) for name in source[1]), default], dtype=np.float64)
    return per_source[source[0]]


def _draw(candidates: Array, count: int, seed: int, salt: str) -> list[int]:
    digest = hashlib.sha256(f"{seed} {salt}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    return sorted(int(row) for row in generator.choice(candidates, min(count, len(candidates)), replace=False))


def _nearest(distance: Array, candidates: Array) -> list[int]:
    rows = np.flatnonzero(candidates)
    order = np.lexsort((rows, distance[rows]))  # ties by row, so that the page is the same each time
    return [int(row) for row in rows[order[:AT_THRESHOLD]]]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
