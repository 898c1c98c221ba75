"""The funnel by language: documents and tokens that each rule dropped, counted from the selection itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from gristmill.report.asked import Asked
from gristmill.report.columns import QUARANTINED, NotThere
from gristmill.report.live_run import LiveRun
from gristmill.report.reading.catalogue import NO_LABEL, catalogue

GROUPS = 7  # languages that are told apart, the others count as one
OTHERS = "(others)"


def funnel(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """{"groups": names, "rules": [{"rule", "documents", "tokens": left, "dropped_documents", "dropped_tokens"}, each
    per group]} as the policy asks them, the first of all documents. `tokens` is null where none are counted.

    Raises:
        NotThere: no language was found, or nothing is selected yet.
    """
    held = catalogue(run)
    if held.language is None:
        raise NotThere("annotations/language/ with label", "the language stage")
    if held.keep is None:
        raise NotThere("selection/", "the select stage")
    codes, names = held.language
    count = np.bincount(codes[codes >= 0], minlength=len(names))
    top = np.argsort(-count, kind="stable")[:GROUPS]
    groups = [names[code] for code in top]
    place = np.full(len(names) + 1, len(groups), dtype=np.int64)
    place[top] = np.arange(len(groups))
    place[-1] = len(groups) + 1  # of -1, no label
    titles = [*groups, OTHERS, NO_LABEL]
    group, width = place[codes], len(titles)
    reason, reasons = held.reason
    ranks = _order(held.rules, reasons)
    rank = np.array([*(ranks.index(name) for name in reasons), -1], dtype=np.int64)[reason]
    cell = (rank + 1) * width + group  # row 0 holds what is kept
    shape = len(ranks) + 1, width

    def counted(weights: Any) -> Any:
        return np.bincount(cell, weights, minlength=shape[0] * width).round().astype(np.int64).reshape(shape)

    units = {"documents": counted(None), "tokens": None if held.tokens is None else counted(np.nan_to_num(held.tokens))}
    shown = [at for at in range(width) if units["documents"][:, at].any()]
    rules: list[dict[str, Any]] = []
    for at in range(len(ranks) + 1):
        row: dict[str, Any] = {"rule": ranks[at - 1] if at else "(all)"}
        for unit, table in units.items():
            left = None if table is None else table.sum(axis=0) - table[1 : at + 1].sum(axis=0)
            row[unit] = None if left is None else left[shown]
            row[f"dropped_{unit}"] = None if table is None else (table[at] if at else np.zeros(width, int))[shown]
        rules.append(row)
    return {"groups": [titles[at] for at in shown], "rules": rules}


def _order(rules: list[dict[str, Any]], reasons: list[str]) -> list[str]:
    """Quarantined first, as the policy sets it aside; then its rules; then reasons that it does not name."""
    named = [QUARANTINED] * (QUARANTINED in reasons) + [
        rule["name"] for rule in rules if rule["name"] != "tau_drop" or "tau_drop" in reasons
    ]
    return [*named, *(name for name in reasons if name not in named)]
