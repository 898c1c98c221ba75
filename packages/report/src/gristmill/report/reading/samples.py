"""Which documents to read: a seeded choice, a few per rule, and those nearest to each threshold, on both sides.

Rows are chosen from numbers alone; only then are the texts and every measured value of those rows read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gristmill.report.columns import QUARANTINED, Array, Column, Labels, Rows, set_aside
from gristmill.report.reading import rules as policy_rules
from gristmill.report.reading import texts

TEXT_LIMIT = 1600  # characters of a document that are shown
AT_RANDOM, PER_RULE, AT_THRESHOLD = 6, 4, 4
DOCUMENT = ("id", "text", "source", "url", "created", "meta", "file", "row")
META_LIMIT = 4000


def choose(
    rows: Rows, keep: Array, reason: Labels, source: Labels,
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
        limit = policy_rules.limits(bound, source)
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
    rows: Rows, wanted: Sequence[int], keep: Array, reason: Labels, rules: Sequence[Mapping[str, Any]],
    edits: Sequence[Mapping[str, Any]] = (),
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The documents at the wanted rows, by row number: text (cut at TEXT_LIMIT) and every measured value.

    `outside` names the `rules` (of rules.checks) whose bounds the document does not meet: the one that dropped it, and
    those after it, which were never asked. `pieces` (texts.Piece) and `cuts` (edits_of) are there where an edit has cut
    or replaced something of what is shown.
    """
    out: dict[str, dict[str, Any]] = {}
    for row, record in records(rows, wanted, [edit["at"] for edit in edits]).items():
        document, blob, values, spans = record
        made = edits_of(edits, document.get("source"), spans)
        shown = texts.head(blob, TEXT_LIMIT)
        pieces = texts.pieces(blob, 0, len(shown), [texts.pairs(bounds) for bounds in made.values()])
        cut = {"pieces": pieces, "cuts": list(made)} if any(covered for _, covered, _ in pieces) else {}
        out[str(row)] = {
            **{name: value for name, value in document.items() if name != "meta"},
            "text": texts.decoded(shown),
            "characters": len(texts.decoded(blob)),
            **verdict(row, keep, reason),
            "outside": outside(rules, document.get("source"), values),
            "values": values,
            **cut,
        }
    return out


def records(
    rows: Rows, wanted: Sequence[int], spans: Sequence[Column]
) -> dict[int, tuple[dict[str, Any], bytes, dict[str, Any], dict[Column, list[int]]]]:
    """Per row: what ingest wrote of it, its text as bytes, all that was measured, and the bounds of some spans."""
    columns: dict[str, list[str]] = {"documents": list(DOCUMENT)}
    for column in (*rows.columns, *spans):
        columns.setdefault(column.folder, []).append(column.name)
    out: dict[int, Any] = {}
    for row, record in rows.records(wanted, columns, raw=("text",)).items():
        document = {name: record[f"documents/{name}"] for name in DOCUMENT if f"documents/{name}" in record}
        found = {column: record.get(f"{column.folder}/{column.name}") or [] for column in spans}
        hidden = {f"{column.folder}/{column.name}" for column in spans}
        values = {key: value for key, value in record.items() if not key.startswith("documents/") and key not in hidden}
        out[row] = document, document.pop("text", None) or b"", values, found
    return out


def verdict(row: int, keep: Array | None, reason: Labels) -> dict[str, Any]:
    code = int(reason[0][row])
    return {"keep": None if keep is None else bool(keep[row]), "reason": reason[1][code] if code >= 0 else None}


def outside(rules: Sequence[Mapping[str, Any]], source: Any, values: Mapping[str, Any]) -> list[str]:
    return [rule["name"] for rule in rules if not policy_rules.meets(rule, source, values.get(rule["key"]))]


def edits_of(
    edits: Sequence[Mapping[str, Any]], source: Any, spans: Mapping[Column, list[int]]
) -> dict[str, list[int]]:
    """Of what the policy's edits cut or replace in a document of this source: their titles, and the bounds."""
    mine = [edit for edit in edits if not edit["sources"] or source in edit["sources"]]
    return {edit["title"]: spans[edit["at"]] for edit in mine}


def _draw(candidates: Array, count: int, seed: int, salt: str) -> list[int]:
    digest = hashlib.sha256(f"{seed} {salt}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    return sorted(int(row) for row in generator.choice(candidates, min(count, len(candidates)), replace=False))


def _nearest(distance: Array, candidates: Array) -> list[int]:
    rows = np.flatnonzero(candidates)
    order = np.lexsort((rows, distance[rows]))  # ties by row, so that the page is the same each time
    return [int(row) for row in rows[order[:AT_THRESHOLD]]]
