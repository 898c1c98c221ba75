"""What a run's rules read, as columns in memory, so that another policy is decided in milliseconds.

A document's fate is how many rules it passes in a row: per rule there is a mask of what its bounds refuse, made once
per bounds, and a decision adds up what is left alive after each. Clusters keep their members in the order in which
their rule prefers them, so that the one that stays is the first alive, whatever earlier rules now drop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.base.errors import GristmillError
from gristmill.base.files import read_json
from gristmill.report.columns import Array, NotThere, open_rows, read_file, selection
from gristmill.report.desk.policy import LOOKED_AT, Bounds, Policy, Rule, Threshold, calibrated, written

MARKS = b"gristmill.quarantined"  # of a partition's metadata, as datapipe.workflow.quarantine writes it
MASKS = 64  # of bounds that were asked lately: one byte for each document


@dataclass(frozen=True)
class Values:
    """A column that is bounded."""

    values: Array
    """Numbers as they were measured, 0 where there is none; or codes of words, -1 where there is none."""
    absent: Array | None
    words: tuple[str, ...] | None = None

    def precise(self, number: float) -> Any:
        """A bound as the pipeline compares it: what was measured in 32 bits is compared in 32 bits."""
        with np.errstate(over="ignore"):
            return np.float32(number) if self.values.dtype == np.float32 else np.float64(number)


@dataclass(frozen=True)
class Members:
    """Documents of clusters with more than one: cluster by cluster, the preferred first."""

    rows: Array
    cluster: Array

    def lose(self, alive: Array) -> Array:
        """Those alive that are not their cluster's first alive one."""
        living = np.flatnonzero(alive[self.rows])
        cluster = self.cluster[living]
        return self.rows[living[1:][cluster[1:] == cluster[:-1]]]


class Index:
    """All of a run that its policy decides by."""

    def __init__(self, run: Path) -> None:
        self.run, self.written, self.rows = run, written(run), open_rows(run)
        self.folders = folders(run)
        self.groups = calibrated(run)
        if not self.rows.total:
            raise NotThere("a document", "the ingest stage")
        codes, names = self.rows.labels("documents", "source")
        self.sources = tuple(sorted(names))
        self.source = np.array([self.sources.index(name) for name in names])[codes]
        self.tokens = self._column("tokens", "count").to_numpy().astype(np.float64)  # sums stay whole below 2**53
        self.kept, (self.reason, self.reasons) = selection(self.rows)
        self.reason[self.kept] = -1
        self.selected = self._cells(np.where(self.reason < 0, len(self.reasons), self.reason), len(self.reasons) + 1)
        """Documents and tokens, [reasons + 1, sources]: by what dropped them in the run's selection; the last, kept."""
        bounded = {rule.column for rule in self.written.rules if rule.keep is None}
        self.values = {column: self._values(column) for column in sorted(bounded)}
        clusters = {(rule.column, rule.keep) for rule in self.written.rules if rule.keep is not None}
        self.members = {of: self._members(*of) for of in clusters}
        self.marked = {name: self._marked(name) for name in self._names()}
        self.stops: dict[str, list[float]] = {}
        """By rule, see thresholds.stops."""
        self.fails = lru_cache(2 * len(self.written.rules) + MASKS)(self._fails)
        self.counted = lru_cache(4)(self._counted)

    # Deciding ---------------------------------------------------------------------------------------------------------

    def passed(self, policy: Policy) -> Array:
        """[rows] how many rules each document passes in a row: all of them where it is kept, the first that drops it
        else; one more than there are where it is set aside."""
        return self.walk(policy.rules, self.aside(policy))

    def count(self, policy: Policy, passed: Array) -> tuple[Array, Array]:
        """Documents and tokens, [rules + 2, sources]: by the rule that drops them, then kept, then set aside."""
        return self._cells(passed, len(policy.rules) + 2)

    def _cells(self, group: Array, groups: int) -> tuple[Array, Array]:
        shape = (groups, len(self.sources))
        cell = group.astype(np.intp) * len(self.sources) + self.source
        documents, tokens = (np.bincount(cell, weights, groups * len(self.sources)) for weights in (None, self.tokens))
        return documents.reshape(shape), tokens.astype(np.int64).reshape(shape)

    def looked_otherwise(self, policy: Policy) -> list[dict[str, Any]]:
        """As datapipe.what_if: what `policy` would look for in documents that the run did not look at, and the other
        way round; the stored values do not tell what that changes."""
        found: list[dict[str, Any]] = []
        for name in LOOKED_AT:
            ours, theirs = policy.looked_at(name), self.written.looked_at(name)
            read = name in self.folders and name in (*policy.annotations(), *policy.edited_by())
            if read and ours.rules != theirs.rules:
                would, did = (self.counted(each.rules) for each in (ours, theirs))
                unseen, needless = int(np.count_nonzero(would & ~did)), int(np.count_nonzero(did & ~would))
                if unseen or needless:
                    found.append({"annotation": name, "unseen": unseen, "needless": needless})
        return found

    def _counted(self, rules: tuple[Rule, ...]) -> Array:
        """Which documents these rules keep."""
        return self.walk(rules, self.aside(Policy("", rules))) == len(rules)

    def aside(self, policy: Policy) -> Array:
        """Rows that a stage could not handle of what the policy's rules or edits read."""
        return np.unique(np.concatenate([self.marked[name] for name in self._read(policy)] or [np.empty(0, np.int64)]))

    def walk(self, rules: Sequence[Rule], aside: Array) -> Array:
        """As passed(), with these rows set aside."""
        alive = np.ones(self.rows.total, bool)
        alive[aside] = False
        passed = np.zeros(self.rows.total, np.uint8 if len(rules) < 254 else np.uint16)
        for rule in rules:
            if rule.keep is not None:
                alive[self.members[rule.column, rule.keep].lose(alive)] = False
            else:
                np.greater(alive, self.fails(rule), out=alive)  # alive and not failing
            passed += alive
        passed[aside] = len(rules) + 1
        return passed

    def _fails(self, rule: Rule) -> Array:
        """What the rule's bounds refuse, source by source. A source of which nothing is asked refuses nothing."""
        column, own = self.values[rule.column], [rule.of(source) for source in self.sources]
        asked = np.array([bounds.ask() for bounds in own])
        if column.words is not None:
            known = np.array([[word in bounds.allowed for word in (*column.words, None)] for bounds in own])
            inside = known[self.source, column.values] if len(set(own)) > 1 else known[0][column.values]
        else:
            inside = self._inside(column, own)
        failing = ~inside
        if column.absent is not None:
            failing[column.absent] = rule.missing == "drop"
        if not asked.all():
            failing &= asked[self.source]
        return failing

    def _inside(self, column: Values, own: Sequence[Bounds]) -> Array:
        limits = [
            [self.number(getattr(bounds, side), source) for bounds, source in zip(own, self.sources, strict=True)]
            for side in ("min", "max")
        ]
        inside = np.ones(self.rows.total, bool)
        for numbers, compare, nothing in zip(limits, (np.greater_equal, np.less_equal), (-np.inf, np.inf), strict=True):
            if any(number is not None for number in numbers):
                bounds = np.array([column.precise(nothing if number is None else number) for number in numbers])
                inside &= compare(column.values, bounds[0] if len(set(numbers)) == 1 else bounds[self.source])
        free = np.array([low is None and high is None for low, high in zip(*limits, strict=True)])
        return inside | free[self.source] if free.any() else inside  # NaN lies within no bounds, but those

    def number(self, threshold: Threshold, source: str) -> float | None:
        """The number that stands for a threshold; None where calibration found none, which refuses nothing.

        Raises:
            GristmillError: calibration does not know it.
        """
        if not isinstance(threshold, str):
            return threshold
        name = threshold.removeprefix("@")
        group = self.groups.get(source) or self.groups.get("(all)") or {}
        if name not in group:
            raise GristmillError(f"thresholds/calibration.json has no {name!r} for source {source!r}")
        return group[name]

    # Reading ----------------------------------------------------------------------------------------------------------

    def _names(self) -> set[str]:
        return {*self.written.annotations(), *self.written.edited_by()}

    def _read(self, policy: Policy) -> list[str]:
        return [name for name in (*policy.annotations(), *policy.edited_by()) if name in self.marked]

    def _column(self, annotation: str, name: str) -> pa.ChunkedArray:
        folder = self.folders.get(annotation, f"annotations/{annotation}")
        pieces: list[pa.ChunkedArray] = []
        for part, length in zip(self.rows.parts, self.rows.lengths, strict=True):
            path = self.run / folder / part
            if not path.exists() or name not in pq.read_schema(path).names:
                raise NotThere(f"{folder}/{part} with {name}", f"the {annotation} stage")
            pieces.append(read_file(path, [name]).column(name))
            if len(pieces[-1]) != length:
                raise GristmillError(f"{path}: {len(pieces[-1])} rows beside {length} documents; make it again")
        return pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pieces[0].type)

    def _values(self, column: str) -> Values:
        annotation, _, name = column.partition(".")
        array = self._column(annotation, name).combine_chunks()
        absent = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
        if pa.types.is_string(array.type):
            coded = array.dictionary_encode()
            codes = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
            return Values(codes.astype(np.int32), absent, tuple(coded.dictionary.to_pylist()))
        if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
            raise GristmillError(f"{column} holds no number that could be bounded, but {array.type}")
        filled = array.fill_null(pa.scalar(0).cast(array.type)) if array.null_count else array
        return Values(filled.to_numpy(zero_copy_only=False), absent)

    def _members(self, annotation: str, keep: str) -> Members:
        cluster = self._column(annotation, "cluster").to_numpy()
        match keep:
            case "longest":
                preference = -self._column("heuristics", "characters").to_numpy().astype(np.float64)
            case "best":
                quality = self._column("scores", "quality").combine_chunks().fill_null(-np.inf)
                preference = -quality.to_numpy(zero_copy_only=False).astype(np.float64)
            case "newest":
                created = self._column("documents", "created").combine_chunks().fill_null("")
                preference = -_rank(created)
            case _:
                preference = np.zeros(len(cluster))
        order = np.lexsort((preference, cluster))  # ties go to the earliest row
        same, several = cluster[order[1:]] == cluster[order[:-1]], np.zeros(len(order), bool)
        several[1:] |= same
        several[:-1] |= same
        rows = order[several]
        return Members(rows, np.unique(cluster[rows], return_inverse=True)[1])

    def _marked(self, annotation: str) -> Array:
        """Rows that are marked in an annotation; none where it has no partition for each of the documents'."""
        folder = self.run / self.folders.get(annotation, f"annotations/{annotation}")
        if {path.name for path in folder.glob("part-*.parquet")} != set(self.rows.parts):
            return np.empty(0, np.int64)
        found: list[int] = []
        for part, start in zip(self.rows.parts, self.rows.starts.tolist(), strict=False):
            marks = (pq.read_metadata(folder / part).metadata or {}).get(MARKS)
            found += [start + int(row) for row in json.loads(marks)] if marks else []
        return np.array(sorted(found), np.int64)


def folders(run: Path) -> dict[str, str]:
    """Where the outputs that a policy may read lie, by their names, relative to the run."""
    path = run / "ledger" / "outputs.json"
    listed = read_json(path) if path.exists() else {f.name: f"annotations/{f.name}" for f in run.glob("annotations/*")}
    inside = {name: Path(str(folder)) for name, folder in {"documents": "documents", **listed}.items()}
    safe = {name: folder for name, folder in inside.items() if not folder.is_absolute() and ".." not in folder.parts}
    return {name: folder.as_posix() for name, folder in safe.items() if (run / folder).is_dir()}


def _rank(words: pa.Array) -> Array:
    """Places in the order of the words, which is that of their bytes; the same words, the same place."""
    return pc.call_function("rank", [words], pc.RankOptions(tiebreaker="dense")).to_numpy().astype(np.float64)
