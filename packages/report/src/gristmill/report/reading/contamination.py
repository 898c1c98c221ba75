"""Questions about evaluation items that stand in documents: how many by set and source, and the matches side by side.

The run measures shares of n-grams and the spans that match, and names set and item. Text of items it has none: that of
RUN/contamination/report.json is shown, which `datapipe contamination RUN --sets FOLDER --json` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gristmill.base.files import read_json
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import Array, Column, Labels, NotThere
from gristmill.report.live_run import LiveRun
from gristmill.report.reading import samples, texts
from gristmill.report.reading.catalogue import Catalogue, catalogue

FOLDER = "annotations/contamination"
NUMBERS = ("score", "ngram_13", "ngram_8")
CALLED, MOST = (float(np.float32(share)) for share in (0.8, 0.7))
"""Documents that decon (score from 0.8), GPT-3 (any 13-gram) and PaLM (0.7 of the 8-grams) would call contaminated."""
BINS = 10
CONTEXT, SHOWN = 240, 1_800  # bytes around what matched, and of the document in all
PARTS = ("question", "answer", "passage")
PART_LIMIT = 2_000
TEXTS = "contamination/report.json"


def contamination(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """{"documents", "touched" (any measure above 0), "sets", "sources": [{"name", "documents", "touched", "matched",
    "score_08", "ngram_13_any", "ngram_8_07", "kept", "bins": documents by score, of the touched}], "rules", "texts"}.

    A document is matched where an item counts (a score from 0.5, unless the stage was told otherwise) or one of the two
    rules on n-grams holds; it counts for the set of its best match. Documents of a set are those that it touched.
    """
    held = catalogue(run)
    found = _measured(held)
    everyone = np.ones(held.rows.total, dtype=bool)
    return {
        "documents": held.rows.total,
        "measured": int(found["measured"].sum()),
        "touched": int(found["touched"].sum()),
        "matched": int(found["matched"].sum()),
        "sets": _counted(held, found, _column(held, "set"), found["touched"]),
        "sources": _counted(held, found, held.source, everyone),
        "rules": [rule for rule in held.rules if rule["key"].startswith(f"{FOLDER}/")],
        "texts": (run.folder / TEXTS).exists(),
    }


def matches(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """A page of matches, the strongest first: numbers, the document's text around what matched, and the item's text
    where the run has it. Parameters: set, which (matched, or all that are touched), at, limit."""
    held = catalogue(run)
    found = _measured(held)
    which, name = asked.choice("which", ("matched", "touched"), "matched"), asked.text("set")
    at, limit = asked.integer("at", 0, 0, 2**53), asked.integer("limit", 5, 1, 20)
    codes, names = sets = _column(held, "set")
    mask = found[which]
    if name:
        if name not in names:
            raise AskedWrong(f"set: no document matches {name!r}")
        mask = mask & (codes == names.index(name))
    rows = np.flatnonzero(mask)
    rows = rows[np.lexsort((rows, -np.nan_to_num(found["score"][rows]), -np.nan_to_num(found["most"][rows])))]
    page = rows[at : at + limit].tolist()
    items = run.kept("evaluation items", ("contamination",), lambda: _items(run.folder))
    spans = [Column(FOLDER, one, "spans") for one in ("spans", "spans_13")]
    read = samples.records(held.rows, page, spans)
    return {
        "of": len(rows),
        "next": at + limit if at + limit < len(rows) else None,
        "matches": [_match(held, found, sets, row, read[row], items) for row in page],
    }


def _match(held: Catalogue, found: dict[str, Array], sets: Labels, row: int, read: Any, items: dict) -> dict[str, Any]:
    document, blob, values, bounds = read
    spans = next((texts.pairs(one) for one in bounds.values() if one), [])
    begin = texts.border(blob, spans[0][0] - CONTEXT) if spans else 0
    end = min(spans[-1][1], begin + SHOWN) + CONTEXT if spans else CONTEXT
    end = texts.border(blob, end)
    set_name, item = sets[1][sets[0][row]] if sets[0][row] >= 0 else None, values.get(f"{FOLDER}/item")
    text = items.get((set_name, item))
    return {
        "row": row,
        "id": document.get("id"),
        "source": document.get("source"),
        **samples.verdict(row, held.keep, held.reason),
        "set": set_name,
        "item": item,
        **{name: found[name][row] for name in NUMBERS},
        "pieces": texts.pieces(blob, begin, end, [spans]),
        "before": begin > 0,
        "after": end < len(blob),
        "spans": len(spans),
        "texts": {part: str(text[part])[:PART_LIMIT] for part in PARTS if text.get(part)} if text else None,
    }


def _measured(held: Catalogue) -> dict[str, Array]:
    if not held.rows.has(FOLDER, "score"):
        raise NotThere(f"{FOLDER}/", "the contamination stage (a policy that reads contamination.*)")

    def read() -> dict[str, Array]:
        found = {name: held.rows.numbers(FOLDER, name) for name in (*NUMBERS, "items")}
        values = {name: np.nan_to_num(column) for name, column in found.items()}
        called = {
            "score_08": values["score"] >= CALLED,
            "ngram_13_any": values["ngram_13"] > 0,
            "ngram_8_07": values["ngram_8"] >= MOST,
        }
        most = np.maximum.reduce([values[name] for name in NUMBERS])
        matched = (values["items"] > 0) | called["ngram_13_any"] | called["ngram_8_07"]
        return {**found, **called, "most": most, "touched": most > 0, "matched": matched,
                "measured": np.isfinite(found["score"])}  # fmt: skip

    return held.held("contamination", read)


def _column(held: Catalogue, name: str) -> Labels:
    return held.held(("contamination", name), lambda: held.rows.labels(FOLDER, name))


def _counted(held: Catalogue, found: dict[str, Array], by: Labels, of: Array) -> list[dict[str, Any]]:
    """Per name, that with the most matches first."""
    codes, names = by
    inside = of & (codes >= 0)

    def count(mask: Array) -> Array:
        return np.bincount(codes[inside & mask], minlength=len(names))

    columns = {name: count(found[name]) for name in ("touched", "matched", "score_08", "ngram_13_any", "ngram_8_07")}
    columns["documents"] = count(np.ones_like(inside))
    if held.keep is not None:
        columns["kept"] = count(found["matched"] & held.keep)
    touched = inside & found["touched"] & np.isfinite(found["score"])
    bins = np.clip((found["score"][touched] * BINS).astype(np.int64), 0, BINS - 1)
    table = np.bincount(codes[touched] * BINS + bins, minlength=len(names) * BINS).reshape(len(names), BINS)
    order = np.lexsort((np.arange(len(names)), -columns["documents"], -columns["matched"]))
    return [
        {"name": names[at], **{name: int(column[at]) for name, column in columns.items()}, "bins": table[at]}
        for at in order
        if columns["documents"][at]
    ]


def _items(run: Path) -> dict[tuple[Any, Any], dict[str, Any]]:
    """By set and item what each asks, where somebody had its text written into the run."""
    path = run / TEXTS
    if not path.exists():
        return {}
    written = read_json(path)
    return {(one["set"], one["item"]): one["texts"] for one in written["matches"] if one.get("texts")}
