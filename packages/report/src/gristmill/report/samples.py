"""Which documents to read: a seeded choice, a few per rule, and those nearest to each threshold, on both sides.

Rows are chosen from numbers alone; only then are the texts and every measured value of those rows read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gristmill.report.columns import QUARANTINED, Array, Column, Rows, set_aside
from gristmill.report.heads import ALL

TEXT_LIMIT = 1600  # characters of a document that are shown
AT_RANDOM, PER_RULE, AT_THRESHOLD = 6, 4, 4
CALIBRATED = (("probe", "tau_drop"), ("quality", "tau_keep"))


def thresholds(policy: Mapping[str, Any], calibration: Mapping[str, Any], rows: Rows) -> list[dict[str, Any]]:
    """Numeric bounds that decide: {"name", "rule", "column", "side": min|max, "default", "sources": {name: value}}.

    Bounds come from the policy's rules; tau_drop (on the probe's score) and tau_keep (on the quality) from the
    calibration where no rule already bounds that column.
    """
    found: list[dict[str, Any]] = []
    for rule in policy.get("rules") or []:
        column = rows.resolve(str(rule.get("column", "")))
        for side in ("min", "max"):
            default = _number(rule.get(side))
            sources = {name: _number(own.get(side)) for name, own in (rule.get("sources") or {}).items()}
            bounded = default is not None or any(value is not None for value in sources.values())
            if column is not None and column.kind == "number" and bounded:
                found.append(
                    _bound(f"{rule['name']}: {column.label} {side}", rule["name"], column, side, default, sources)
                )
    bounded = {(bound["folder"], bound["column"]) for bound in found}
    for head, key in CALIBRATED:
        column = rows.resolve(f"scores.{head}")
        sources = {name: _number(group.get(key)) for name, group in calibration.items()}
        default = sources.pop(ALL, None)
        known = default is not None or any(value is not None for value in sources.values())
        if column is not None and (column.folder, head) not in bounded and known:
            found.append(_bound(f"{key}: {column.label}", None, column, "min", default, sources))
    return found


def checks(
    policy: Mapping[str, Any], calibration: Mapping[str, Any], sources: Sequence[str], rows: Rows
) -> list[dict[str, Any]]:
    """What the policy asks of a document, rule by rule, with the bounds that each source meets.

    {"name", "key": folder/column, "label", "keep", "missing", "sources": {source: {"min", "max", "allowed"}}}; a source
    of which a rule asks nothing is left out. Of a duplicates' rule (`keep` says which member stays) the size of the
    cluster is shown. Where the policy leaves the probe alone, tau_drop comes last: it ends the scoring early.
    """
    found: list[dict[str, Any]] = []
    for rule in policy.get("rules") or []:
        duplicates = rule.get("keep") is not None
        column = rows.resolve(f"{rule.get('column')}.size" if duplicates else str(rule.get("column", "")))
        if column is None:
            continue
        bounds = {name: {} if duplicates else _asked((rule.get("sources") or {}).get(name, rule)) for name in sources}
        found.append(
            {
                "name": rule["name"],
                "key": f"{column.folder}/{column.name}",
                "label": column.label,
                "keep": rule.get("keep"),
                "missing": rule.get("missing") or "drop",
                "sources": {name: own for name, own in bounds.items() if own or duplicates},
            }
        )
    probe = rows.resolve("scores.probe")
    key = "annotations/scores/probe"
    if probe is not None and key not in [check["key"] for check in found]:
        groups = {name: calibration.get(name) or calibration.get(ALL) or {} for name in sources}
        own = {name: {"min": group["tau_drop"]} for name, group in groups.items() if _number(group.get("tau_drop"))}
        found += [
            {"name": "tau_drop", "key": key, "label": probe.label, "keep": None, "missing": "keep", "sources": own}
        ][: len(own)]
    return found


def choose(
    rows: Rows, keep: Array, reason: tuple[Array, list[str]], source: tuple[Array, list[str]],
    bounds: Sequence[Mapping[str, Any]], seed: int, order: Sequence[str] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Views over rows: {"name", "about", "kept": [rows], "dropped": [rows]}; the same seed chooses the same rows.

    Rules come in the order of `order` (the policy's), then those that it does not name.
    """
    codes, names = reason
    refused = ~keep & ~set_aside(reason)
    views = [
        {
            "name": "Chosen at random",
            "group": "random",
            "about": f"Drawn with seed {seed}; each document of a side is equally likely.",
            "kept": _draw(np.flatnonzero(keep), AT_RANDOM, seed, "kept"),
            "dropped": _draw(np.flatnonzero(refused), AT_RANDOM, seed, "dropped"),
        }
    ]
    ranks = {name: rank for rank, name in enumerate(order)}
    for code, name in sorted(enumerate(names), key=lambda item: ranks.get(item[1], len(ranks))):
        dropped = np.flatnonzero(~keep & (codes == code))
        deed = (
            f"Dropped first by the rule {name}" if name != QUARANTINED else "Set aside: a stage could not handle them"
        )
        views.append(
            {
                "name": name,
                "group": "rule",
                "about": f"{deed}, beside kept documents of the same sources.",
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
        failed = (codes == names.index(bound["rule"])) if bound["rule"] in names else refused
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


def read(
    rows: Rows, wanted: Sequence[int], keep: Array, reason: tuple[Array, list[str]], rules: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The documents at the wanted rows, by row number: text (cut at TEXT_LIMIT) and every measured value.

    `outside` names the `rules` (of checks()) whose bounds the document does not meet: the one that dropped it, and
    those after it, which were never asked.
    """
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
        values = {key: value for key, value in record.items() if not key.startswith("documents/")}
        out[str(row)] = {
            **document,
            "text": text[:TEXT_LIMIT],
            "characters": len(text),
            "keep": bool(keep[row]),
            "reason": reason[1][code] if code >= 0 else None,
            "outside": [rule["name"] for rule in rules if not _meets(rule, document.get("source"), values)],
            "values": values,
        }
    return out


def _bound(
    name: str, rule: str | None, column: Column, side: str, default: Any, sources: dict[str, Any]
) -> dict[str, Any]:
    return {"name": name, "rule": rule, "folder": column.folder, "column": column.name, "label": column.label,
            "side": side, "default": default, "sources": sources}  # fmt: skip


def _asked(bounds: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds that ask something: a number, or a list of allowed labels that is not empty."""
    return {key: value for key in ("min", "max", "allowed") if (value := bounds.get(key)) not in (None, [], ())}


def _meets(rule: Mapping[str, Any], source: Any, values: Mapping[str, Any]) -> bool:
    """Whether a document passes the bounds of its source; which duplicate stays is not for its own values to tell."""
    bounds, value = rule["sources"].get(source) or {}, values.get(rule["key"])
    if rule["keep"] is not None:
        return True
    if value is None:  # missing values are dropped even where the source has no bound, as the policy does it
        return rule["missing"] == "keep"
    if "allowed" in bounds and value not in bounds["allowed"]:
        return False
    return bounds.get("min", value) <= value <= bounds.get("max", value)


def _limits(bound: Mapping[str, Any], source: tuple[Array, list[str]]) -> Array:
    """float64 [rows]; NaN where nothing is asked of the row's source."""
    limits = [*(bound["sources"].get(name, bound["default"]) for name in source[1]), bound["default"]]
    return np.array([np.nan if limit is None else limit for limit in limits], dtype=np.float64)[source[0]]


def _draw(candidates: Array, count: int, seed: int, salt: str) -> list[int]:
    digest = hashlib.sha256(f"{seed} {salt}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    return sorted(int(row) for row in generator.choice(candidates, min(count, len(candidates)), replace=False))


def _nearest(distance: Array, candidates: Array) -> list[int]:
    rows = np.flatnonzero(candidates)
    order = np.lexsort((rows, distance[rows]))  # ties by row, so that the page is the same each time
    return [int(row) for row in rows[order[:AT_THRESHOLD]]]


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
