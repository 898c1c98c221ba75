"""The question about one document: everything that is known of it, and a part of its text."""

from __future__ import annotations

from typing import Any

from gristmill.report.asked import Asked
from gristmill.report.live_run import LiveRun
from gristmill.report.reading import samples, texts
from gristmill.report.reading.browse import name_of
from gristmill.report.reading.catalogue import catalogue
from gristmill.report.reading.clusters import of_document


def document(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """One document: what was measured, which rules it does not meet, and the part of its text at the byte `at`.

    Parameters: row; at, or find (and fold), which goes to the first place found. `spans`: every column of spans that
    covers anything of the text, as {"title", "made" (an edit of the policy), "spans", "bytes"}; the numbers in the
    text's pieces are theirs. `clusters`: where it has duplicates, how many they are and which of them stays.
    """
    held = catalogue(run)
    row = asked.integer("row", 0, 0, max(held.rows.total - 1, 0))
    wanted, fold = asked.text("find"), asked.choice("fold", ("yes", "no"), "yes") == "yes"
    written, blob, values, found = samples.records(held.rows, [row], held.rows.spans)[row]
    made = samples.edits_of(held.edits, written.get("source"), found)
    edited = {edit["at"] for edit in held.edits if edit["title"] in made}
    spans = made | {column.label: bounds for column, bounds in found.items() if column not in edited}
    spans = {title: bounds for title, bounds in spans.items() if bounds}
    at = asked.integer("at", 0, 0, max(len(blob) - 1, 0)) if asked.text("at") else None
    if at is None:
        at = (texts.first_hit(blob, wanted, fold) if wanted else None) or 0
    meta = str(written.pop("meta", None) or "")
    return {
        **written,
        **samples.verdict(row, held.keep, held.reason),
        "place": row,
        "meta": meta[: samples.META_LIMIT] or None,
        "language": name_of(held.language, row),
        "tokens": None if held.tokens is None else held.tokens[row],
        "clusters": of_document(held, row),
        "outside": samples.outside(held.rules, written.get("source"), values),
        "values": values,
        "rules": held.rules,
        "spans": [
            {"title": title, "made": title in made, "spans": len(bounds) // 2,
             "bytes": sum(high - low for low, high in texts.pairs(bounds))}
            for title, bounds in spans.items()
        ],
        "text": texts.part(blob, at, spans, wanted, fold),
    }  # fmt: skip
