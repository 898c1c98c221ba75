"""Questions of a person who reads: which documents there are, and those that a filter and a search leave.

A search reads texts (or ids) batch after batch and stops after a bounded amount, with the row at which to go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import Array, Labels, open_file
from gristmill.report.live_run import LiveRun
from gristmill.report.reading import rules, samples, texts
from gristmill.report.reading.catalogue import NO_LABEL, OUTCOMES, Catalogue, catalogue

pc: Any = pyarrow.compute  # its functions are made at run time, which a type checker cannot see
BATCH = 128  # rows that are decoded at once, since a text may be large
LOOK = 256_000_000  # bytes that one answer looks at
ON_A_PAGE, NAMES = 20, 400
LINE = 220  # characters of a document in a list


def choices(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """What one can filter and sort by: outcomes, rules, sources, languages, each with its documents; columns."""
    held = catalogue(run)
    bounded = {bound["label"] for bound in held.bounds}
    outcomes = OUTCOMES if held.keep is not None else OUTCOMES[:1]
    counted = [(name, held.outcome(name)) for name in outcomes]
    return {
        "documents": held.rows.total,
        "policy": held.policy,
        "outcomes": [{"name": name, "documents": held.rows.total if mask is None else int(mask.sum())}
                     for name, mask in counted],
        "rules": held.rules,
        "reasons": _counted(held.reason),
        "sources": _counted(held.source),
        "languages": _counted(held.language) if held.language else [],
        "columns": [{"label": column.label, "bounded": column.label in bounded}
                    for column in held.rows.columns if column.kind != "label" and column.name != "cluster"],
    }  # fmt: skip


def documents(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """A page of documents: of a filter (Catalogue.chosen), sorted; or, of a search, in the order in which they lie.

    Parameters: id (and exact: yes), text (and fold: yes, whatever the case); sort (a column), order (rising, falling,
    nearest to the column's threshold); at, where to go on; limit. Answers: {"of": documents that the filter leaves,
    "looked": how many of them this answer searched, "documents", "next": where to go on, or null}.

    Raises:
        AskedWrong: a parameter is.
    """
    held = catalogue(run)
    key, mask = held.chosen(asked)
    identity, exact = asked.text("id"), asked.choice("exact", ("yes", "no"), "no") == "yes"
    wanted, fold = asked.text("text"), asked.choice("fold", ("yes", "no"), "yes") == "yes"
    sort, order = asked.text("sort"), asked.choice("order", ("rising", "falling", "nearest"), "rising")
    limit, at = asked.integer("limit", ON_A_PAGE, 1, 50), asked.integer("at", 0, 0, 2**53)
    if identity or wanted:
        found, following, looked = _search(held, mask, at, limit, identity, exact, wanted, fold)
    else:
        rows = held.held(("order", *key, sort, order), lambda: _sorted(held, mask, sort, order))
        found, looked = rows[at : at + limit].tolist(), 0
        following = at + limit if at + limit < len(rows) else None
    return {
        "of": int(mask.sum()),
        "looked": looked,
        "next": following,
        "documents": list(lines(held, found, wanted, fold, sort)),
    }


def lines(
    held: Catalogue, rows: list[int], wanted: str = "", fold: bool = True, sort: str = ""
) -> Iterator[dict[str, Any]]:
    """A line about each of a few documents."""
    values = held.numbers(held.column(sort)) if sort else None
    read = held.rows.records(rows, {"documents": ["id", "text"]}, raw=("text",))
    for row in rows:
        blob = read[row].get("documents/text") or b""
        yield {
            "row": row,
            "id": read[row].get("documents/id"),
            "source": name_of(held.source, row),
            "language": name_of(held.language, row),
            **samples.verdict(row, held.keep, held.reason),
            "tokens": None if held.tokens is None else held.tokens[row],
            "bytes": len(blob),
            "value": None if values is None else values[row],
            **texts.beginning(blob, LINE, wanted, fold),
        }


def _sorted(held: Catalogue, mask: Array, sort: str, order: str) -> Array:
    """The rows of a filter by a column; equal ones as they lie, those without a value last."""
    rows = np.flatnonzero(mask)
    if not sort:
        return rows
    column = held.column(sort)
    values = held.rows.numbers(column.folder, column.name)
    if order == "nearest":
        bounds = [bound for bound in held.bounds if bound["label"] == sort]
        if not bounds:
            raise AskedWrong(f"order: no rule bounds {sort!r}, so nothing is nearest to its threshold")
        distance = np.stack([np.abs(values - rules.limits(bound, held.source)) for bound in bounds])
        values = np.fmin.reduce(distance)
    return rows[np.argsort(-values[rows] if order == "falling" else values[rows], kind="stable")]


def _search(
    held: Catalogue, mask: Array, at: int, limit: int, identity: str, exact: bool, wanted: str, fold: bool
) -> tuple[list[int], int | None, int]:
    """(rows found, the row to go on from or None at the end, documents looked at)."""
    columns = [name for name, value in (("id", identity), ("text", wanted)) if value]
    found: list[int] = []
    looked, spent = 0, 0
    for first, batch in _batches(held, mask, at, columns):
        here = mask[first : first + len(batch)].copy()
        here[: max(at - first, 0)] = False
        hits = here.copy()
        if identity:
            ids = batch.column("id")
            same = pc.equal(ids, pa.scalar(identity, ids.type)) if exact else pc.starts_with(ids, identity)
            hits &= _true(same)
        if wanted:
            hits &= _true(pc.match_substring(batch.column("text"), wanted, ignore_case=fold))
        for row in np.flatnonzero(hits).tolist():
            if len(found) == limit:
                return found, first + row, looked + int(here[:row].sum())
            found.append(first + row)
        looked, spent = looked + int(here.sum()), spent + batch.nbytes
        end = first + len(batch)
        if spent >= LOOK and mask[end:].any():
            return found, end, looked
    return found, None, looked


def _batches(held: Catalogue, mask: Array, at: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, rows) of what has to be read from the row `at` on; groups without a wanted row are never decoded."""
    rows = held.rows
    for index, part in enumerate(rows.parts):
        start, stop = int(rows.starts[index]), int(rows.starts[index + 1])
        if not mask[max(start, at) : stop].any():
            continue
        with open_file(rows.run / "documents" / part) as file:
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if mask[max(start, at) : end].any():
                    first = start
                    for batch in file.iter_batches(BATCH, [group], columns):
                        if mask[max(first, at) : first + len(batch)].any():
                            yield first, batch
                        first += len(batch)
                start = end


def _true(answers: Any) -> Array:
    return pc.fill_null(answers, pa.scalar(False)).to_numpy(zero_copy_only=False)


def name_of(column: Labels | None, row: int) -> str | None:
    return None if column is None or column[0][row] < 0 else column[1][column[0][row]]


def _counted(column: Labels) -> list[dict[str, Any]]:
    """Names by their documents, the most first, as many as one may want to choose from."""
    codes, names = column
    count = np.bincount(codes + 1, minlength=len(names) + 1)
    order = np.argsort(-count[1:], kind="stable")[:NAMES]
    out = [{"name": names[code], "documents": int(count[code + 1])} for code in order]
    return out + [{"name": NO_LABEL, "documents": int(count[0])}] * bool(count[0])
