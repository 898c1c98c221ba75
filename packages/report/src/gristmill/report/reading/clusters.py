"""Questions about clusters of duplicates: the clusters by size, the members of one, and where two texts differ."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from gristmill.report.asked import Asked
from gristmill.report.columns import Array
from gristmill.report.duplicates import STAGES
from gristmill.report.live_run import LiveRun
from gristmill.report.reading import samples, texts
from gristmill.report.reading.browse import lines
from gristmill.report.reading.catalogue import Catalogue, catalogue

COMPARED, WORDS = 60_000, 1_500
"""Bytes of each text that are read to compare two, and words of each that are compared from where they part."""
AROUND = 160  # characters of equal text that are shown on both sides of a difference
FIRST_MEMBERS = 2


@dataclass(frozen=True)
class Groups:
    """Clusters of two members or more, the largest first: rows[starts[i] : starts[i] + sizes[i]], ascending."""

    rows: Array
    starts: Array
    sizes: Array


def clusters(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """Clusters of `stage` with from to `to` members, the largest first: how many of each source, the first members,
    and how many are kept. Parameters: stage, from, to, at, limit."""
    held, stage = catalogue(run), asked.choice("stage", STAGES, STAGES[0])
    low, high = asked.integer("from", 2, 2, 2**53), asked.integer("to", 2**53, 2, 2**53)
    at, limit = asked.integer("at", 0, 0, 2**53), asked.integer("limit", 10, 1, 20)
    groups = _groups(held, stage)
    inside = np.flatnonzero((groups.sizes >= low) & (groups.sizes <= high))
    page = [groups.rows[groups.starts[one] : groups.starts[one] + groups.sizes[one]] for one in inside[at : at + limit]]
    shown = [[stays(held, stage, rows), *rows[: FIRST_MEMBERS + 1].tolist()] for rows in page]
    shown = [list(dict.fromkeys(rows))[:FIRST_MEMBERS] for rows in shown]
    told = {line["row"]: line for line in lines(held, sorted({row for rows in shown for row in rows}))}
    return {
        "clusters": len(inside),
        "documents": int(groups.sizes[inside].sum()),
        "next": at + limit if at + limit < len(inside) else None,
        "page": [
            {
                "size": len(rows),
                "sources": _by_source(held, rows),
                "kept": None if held.keep is None else int(held.keep[rows].sum()),
                "stays": first[0],
                "members": [told[row] for row in first],
            }
            for rows, first in zip(page, shown)
        ],
    }


def cluster(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """The members of the cluster that the document at `row` is of, as they lie. Parameters: stage, row, at, limit."""
    held, stage = catalogue(run), asked.choice("stage", STAGES, STAGES[0])
    row = asked.integer("row", 0, 0, max(held.rows.total - 1, 0))
    at, limit = asked.integer("at", 0, 0, 2**53), asked.integer("limit", 20, 1, 50)
    names = held.clusters(stage)
    rows = np.flatnonzero(names == names[row])
    return {
        "size": len(rows),
        "stays": stays(held, stage, rows),
        "next": at + limit if at + limit < len(rows) else None,
        "members": list(lines(held, rows[at : at + limit].tolist())),
    }


def difference(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """What the document at `other` has otherwise than the one at `row`, word by word: pieces [sign, text], where "=" is
    in both, "-" in the first alone, "+" in the other alone, and "@" equal text that is left out.

    Long texts are compared as far as `compared` bytes and WORDS words from where they part; `whole` says whether that
    was all.
    """
    held = catalogue(run)
    last = max(held.rows.total - 1, 0)
    first, second = asked.integer("row", 0, 0, last), asked.integer("other", 0, 0, last)
    read = held.rows.records(sorted({first, second}), {"documents": ["text"]}, raw=("text",))
    blobs = [read[row].get("documents/text") or b"" for row in (first, second)]
    one, other = (texts.decoded(blob[: texts.border(blob, COMPARED)]) for blob in blobs)
    pieces, whole = parted(one, other)
    return {
        "pieces": pieces,
        "whole": whole and max(map(len, blobs)) <= COMPARED,
        "bytes": [len(blob) for blob in blobs],
        "compared": COMPARED,
        "same": blobs[0] == blobs[1],
    }


def parted(one: str, other: str) -> tuple[list[list[str]], bool]:
    """The pieces of difference(), and whether all words were compared."""
    words, others = (re.findall(r"\s*\S+|\s+$", text) for text in (one, other))
    alike = _alike(words, others)
    tail = _alike(words[alike:][::-1], others[alike:][::-1])
    middle, changed = words[alike : len(words) - tail], others[alike : len(others) - tail]
    whole = max(len(middle), len(changed)) <= WORDS
    rest = ["=", "".join(words[len(words) - tail :])]
    middle, changed = middle[:WORDS], changed[:WORDS]
    out = [["=", "".join(words[:alike])]]
    for kind, a, b, c, d in difflib.SequenceMatcher(None, middle, changed).get_opcodes():
        if kind == "equal":
            out.append(["=", "".join(middle[a:b])])
        else:
            out += [["-", "".join(middle[a:b])], ["+", "".join(changed[c:d])]]
    if whole:
        out.append(rest)
    out = [piece for piece in out if piece[1]]
    return [short for at, piece in enumerate(out) for short in _shortened(piece, at == 0, at == len(out) - 1)], whole


def stays(held: Catalogue, stage: str, rows: Array) -> int:
    """The member that the policy's rule on these clusters left: one that is kept, else one that a later rule dropped;
    where no rule asked, the first that is kept, or the first."""
    if held.keep is not None:
        kept = rows[held.keep[rows]]
        if len(kept):
            return int(kept[0])
        order = [rule["name"] for rule in held.rules]
        mine = next((rule for rule in held.rules if rule["keep"] and rule["key"] == f"annotations/{stage}/size"), None)
        if mine is not None:
            later = {code for code, name in enumerate(held.reason[1])
                     if name in order and order.index(name) > order.index(mine["name"])}  # fmt: skip
            for row in rows.tolist():
                if int(held.reason[0][row]) in later:
                    return row
    return int(rows[0])


def of_document(held: Catalogue, row: int) -> list[dict[str, Any]]:
    """Of each kind of duplicates: how many members the document's cluster has, and which of them stays."""
    out: list[dict[str, Any]] = []
    for stage in STAGES:
        if held.rows.has(f"annotations/{stage}", "cluster"):
            names = held.clusters(stage)
            rows = np.flatnonzero(names == names[row])
            if len(rows) > 1:
                out.append({"stage": stage, "size": len(rows), "stays": stays(held, stage, rows)})
    return out


def _groups(held: Catalogue, stage: str) -> Groups:
    names = held.clusters(stage)

    def grouped() -> Groups:
        order = np.argsort(names, kind="stable")
        ordered = names[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
        sizes = np.diff(np.append(starts, len(ordered)))
        many = np.flatnonzero(sizes > 1)
        many = many[np.lexsort((order[starts[many]], -sizes[many]))]
        return Groups(order, starts[many], sizes[many])

    return held.held(("groups", stage), grouped)


def _by_source(held: Catalogue, rows: Array) -> dict[str, int]:
    codes, names = held.source
    count = np.bincount(codes[rows][codes[rows] >= 0], minlength=len(names))
    return {
        names[code]: int(count[code]) for code in np.argsort(-count, kind="stable")[: samples.AT_RANDOM] if count[code]
    }


def _alike(one: list[str], other: list[str]) -> int:
    """How many words both begin with."""
    return next((at for at, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))


def _shortened(piece: list[str], first: bool, last: bool) -> list[list[str]]:
    sign, text = piece
    if sign != "=" or len(text) <= 2 * AROUND + 40:
        return [piece]
    before, after = ("" if first else text[:AROUND]), ("" if last else text[-AROUND:])
    left_out = len(text) - len(before) - len(after)
    return [one for one in (["=", before], ["@", f"{left_out:,} equal characters"], ["=", after]) if one[1]]
