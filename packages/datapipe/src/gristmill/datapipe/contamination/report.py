"""What a run's documents share with evaluation items: how many by set and by source, and the strongest matches to read.

Numbers come from the run alone, text of items only from a folder of sets: an index holds none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from gristmill.base.config import check_range
from gristmill.base.errors import DataError, GristmillError
from gristmill.base.files import write_json
from gristmill.base.terminal import shown
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.contamination.eval_sets import EvalSetsConfig, is_index, locate, read_items, set_name
from gristmill.datapipe.contamination.fields import FieldNames, Item
from gristmill.datapipe.workflow.stage import Inputs, Step, open_run

NUMBERS = ("score", "ngram_13", "ngram_8")
CALLED, ANY, MOST = "score_08", "ngram_13_any", "ngram_8_07"
"""Documents that decon (score from 0.8), GPT-3 (any 13-gram) and PaLM (0.7 of the 8-grams) would call contaminated."""
CONTEXT, MATCHED, ITEM = 120, 400, 600
"""Characters shown before and after what matched, of what matched, and of each part of an item."""


class ContaminationReport(Step):
    """contamination/report.json: what found_in() finds, with the items' text. For sets that have some: an index has
    none."""

    name, folder, version = "contamination_report", "contamination", 1
    requires = ("documents", "contamination", "selection")

    def __init__(self, sets: EvalSetsConfig, limit: int = 100) -> None:
        """Raises UsageError where a set is not there."""
        self._files = locate(sets.sets)
        self._names = FieldNames(sets.question, sets.answer, sets.passage)
        self.config = {"limit": limit, "fields": self._names}

    @property
    def has_texts(self) -> bool:
        return not all(map(is_index, self._files))

    def files(self) -> Sequence[Path]:
        return self._files

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        report = found_in(inputs, self._files, self.config["limit"], self._names)
        write_json(out / "report.json", report)
        return {"matched": sum(each["matched"] for each in report["sources"])}


def contamination_report(
    run: Path, sets: Sequence[Path] = (), limit: int = 20, names: FieldNames | None = None
) -> dict[str, Any]:
    """found_in() a run folder.

    Args:
        sets: files of evaluation sets (eval_sets.locate) whose text is shown.
        names: as read_items() takes them.

    Raises:
        GristmillError: there is no run, or it has not measured contamination; or a set has a bad row.
        DataError: outputs of the run do not fit each other.
    """
    check_range("limit", limit, 0)
    inputs = open_run(run)
    if not inputs.parts.get("contamination"):
        raise GristmillError(f"{run}: contamination is not measured; run a policy that reads contamination.*")
    return found_in(inputs, sets, limit, names or FieldNames())


def found_in(inputs: Inputs, sets: Sequence[Path], limit: int, names: FieldNames) -> dict[str, Any]:
    """The report as JSON.

    documents; sets and sources: [{name, documents, matched, score_08, ngram_13_any, ngram_8_07, kept}]. A document is
    matched where `items` counts one, or one of the two rules on n-grams holds; it counts for the set of its best match.
    kept are those of matched that the selection keeps (null where there is none yet). matches: at most `limit` of them,
    the strongest first: id, source, set, item, score, ngram_13, ngram_8, keep, excerpt (pieces {text, matched}) and
    texts (question, answer and passage of the item; null where `sets` has no text of it).
    """
    table = _measured(inputs)
    matched = table.filter(table["matched"])
    matches = _strongest(inputs, matched, limit)
    texts = _texts(sets, {(match["set"], match["item"]) for match in matches}, names)
    for match in matches:
        item = texts.get((match["set"], match["item"]))
        match["texts"] = item and {part: getattr(item, part) for part in ("question", "answer", "passage")}
    return {
        "documents": len(table),
        "sets": _counts(matched, "set"),
        "sources": _counts(table, "source"),
        "matches": matches,
    }


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a terminal: text that nobody vouches for is made safe."""
    found = sum(each[CALLED] for each in report["sources"])
    out = [f"{report['documents']:,} documents, {found:,} with a score of 0.8 or more (what decon would call)"]
    heads = ("documents", "matched", "score 0.8", "13-gram", "8-grams 0.7", "kept")
    for by in ("sets", "sources"):
        width = max([len(by), *(len(shown(each["name"])) for each in report[by])])
        out += ["", f"  {by:<{width}} " + " ".join(f"{head:>12}" for head in heads)]
        for each in report[by]:
            numbers = [each[key] for key in ("documents", "matched", CALLED, ANY, MOST, "kept")]
            told = " ".join(f"{'-' if number is None else f'{number:,}':>12}" for number in numbers)
            out.append(f"  {shown(each['name']):<{width}} {told}")
    for match in report["matches"]:
        numbers = ", ".join(f"{name} {match[name]:.2f}" for name in NUMBERS)
        keep = {None: "", True: ", kept", False: ", dropped"}[match["keep"]]
        where = f"{shown(match['source'])} {shown(match['id'])}"
        out += ["", f"  {numbers}: {where} has {shown(match['set'])} {shown(match['item'])}{keep}"]
        pieces = (f"[{shown(p['text'])}]" if p["matched"] else shown(p["text"]) for p in match["excerpt"])
        out.append(f"    document  {''.join(pieces)}")
        if match["texts"] is None:
            out.append("    item      (no text: name its folder with --sets)")
            continue
        for part, text in match["texts"].items():
            if text:
                out.append(f"    {part:<9} {shown(text[:ITEM])}{'...' if len(text) > ITEM else ''}")
    return out


def _measured(inputs: Inputs) -> pa.Table:
    """Of all documents: part, row (within it), source, set, item, the numbers, the largest of them (most), keep; and
    what is said of each (matched, score_08, ngram_13_any, ngram_8_07)."""
    kept = bool(inputs.parts.get("selection"))
    tables = []
    for part in inputs.parts["documents"]:
        table = inputs.part("contamination", part, (*NUMBERS, "items", "set", "item"))
        table = table.append_column("source", inputs.part("documents", part, ("source",))["source"])
        keep = inputs.part("selection", part, ("keep",))["keep"] if kept else pa.nulls(len(table), pa.bool_())
        if len(keep) != len(table):
            raise DataError(
                f"{part}: selection has {len(keep)} rows, contamination {len(table)}; run the pipeline again"
            )
        table = table.append_column("keep", keep).append_column("row", pa.array(range(len(table)), pa.int64()))
        tables.append(table.append_column("part", pa.repeat(part, len(table)).dictionary_encode()))
    table = pa.concat_tables(tables).unify_dictionaries()
    said = {
        CALLED: pc.greater_equal(table["score"], pa.scalar(0.8, pa.float32())),
        ANY: pc.greater(table["ngram_13"], 0),
        MOST: pc.greater_equal(table["ngram_8"], pa.scalar(0.7, pa.float32())),
    }
    said["matched"] = pc.or_(pc.greater(table["items"], 0), pc.or_(said[ANY], said[MOST]))
    said["most"] = pc.max_element_wise(*(table[name] for name in NUMBERS))
    for name, column in said.items():
        table = table.append_column(name, column)
    return table


def _counts(table: pa.Table, by: str) -> list[dict[str, Any]]:
    """Per name in the column `by`, that with the most matches first."""
    columns = {name: table[name] for name in ("matched", CALLED, ANY, MOST)}
    columns = {"documents": pa.repeat(1, len(table)), **columns, "kept": pc.and_(table["matched"], table["keep"])}
    counted = pa.table({name: column.cast(pa.int64()) for name, column in columns.items()})
    options = pc.ScalarAggregateOptions(
        min_count=1
    )  # what has no value anywhere, as `keep` before a selection, stays so
    sums = counted.append_column("name", table[by]).group_by("name").aggregate([(n, "sum", options) for n in columns])
    rows = [{"name": row["name"], **{n: row[f"{n}_sum"] for n in columns}} for row in sums.to_pylist()]
    return sorted(rows, key=lambda row: (-row[CALLED], -row["matched"], row["name"]))


def _strongest(inputs: Inputs, table: pa.Table, limit: int) -> list[dict[str, Any]]:
    order = pc.sort_indices(table, [("most", "descending"), ("score", "descending")])[:limit]
    best = table.take(order).to_pylist()
    for part in {row["part"] for row in best}:
        here = [row for row in best if row["part"] == part]
        places = pa.array([row["row"] for row in here])
        documents = inputs.part("documents", part, ("id", "text")).take(places).to_pylist()
        spans = inputs.part("contamination", part, ("spans", "spans_13")).take(places).to_pylist()
        for row, document, found in zip(here, documents, spans):
            row["id"] = document["id"]
            row["excerpt"] = _excerpt(document["text"].encode(), found["spans"] or found["spans_13"])
    keys = ("id", "source", "set", "item", *NUMBERS, "keep", "excerpt")
    return [{key: row[key] for key in keys} for row in best]


def _excerpt(text: bytes, spans: Sequence[int]) -> list[dict[str, Any]]:
    """The first spans, with what stands around them; the beginning where there are none."""
    if not spans:
        return [{"text": _head(text, CONTEXT + MATCHED), "matched": False}]
    pieces, left, at = [], MATCHED, spans[0]
    before = text[:at].decode(errors="replace")[-CONTEXT:]
    pieces.append({"text": before, "matched": False})
    for start, end in zip(spans[::2], spans[1::2], strict=True):
        if left <= 0:
            break
        if start > at:
            pieces.append({"text": _head(text[at:start], CONTEXT), "matched": False})
        piece = _head(text[start:end], left)
        pieces.append({"text": piece, "matched": True})
        left, at = left - len(piece), end
    pieces.append({"text": _head(text[at:], CONTEXT), "matched": False})
    return [piece for piece in pieces if piece["text"]]


def _head(text: bytes, characters: int) -> str:
    whole = text[: 4 * characters + 4].decode(errors="ignore")
    return whole if len(whole) <= characters and len(text) <= 4 * characters + 4 else f"{whole[:characters]} ... "


def _texts(sets: Sequence[Path], wanted: set[tuple[str, str]], names: FieldNames) -> dict[tuple[str, str], Item]:
    """The wanted items of those sets that are files of text."""
    found: dict[tuple[str, str], Item] = {}
    for path in sets:
        if not is_index(path) and any(name == set_name(path) for name, _ in wanted):
            for item in read_items(path, names):
                if (item.set, item.id) in wanted:
                    found.setdefault((item.set, item.id), item)
    return found
