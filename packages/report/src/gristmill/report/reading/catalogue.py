"""What browsing needs to know of every document without its text: columns, held for as long as the run's files stay.

Of a million documents the fixed columns take some thirty megabytes; of all others the last few are held.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import Array, Column, Labels, NotThere, Rows, open_rows, selection, set_aside
from gristmill.report.live_run import LiveRun
from gristmill.report.reading import rules
from gristmill.report.run_folder import calibration_of, policy_of

T = TypeVar("T")
FOLDERS = ("documents", "annotations", "selection", "thresholds", "heads")
HELD = 12  # columns, masks and orders that are held beside the fixed ones
OUTCOMES = ("all", "kept", "dropped", "quarantined")
NO_LABEL = "(none)"


@dataclass(frozen=True)
class Catalogue:
    rows: Rows
    source: Labels
    language: Labels | None
    keep: Array | None
    """None where there is no selection yet."""
    reason: Labels
    tokens: Array | None
    rules: list[dict[str, Any]]
    bounds: list[dict[str, Any]]
    edits: list[dict[str, Any]]
    policy: str
    _held: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=threading.RLock)

    def held(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made again only after HELD others were asked for."""
        with self._lock:
            if key not in self._held:
                self._held[key] = make()
            self._held.move_to_end(key)
            while len(self._held) > HELD:
                self._held.popitem(last=False)
            return self._held[key]

    def numbers(self, column: Column) -> Array:
        return self.held(column, lambda: self.rows.numbers(column.folder, column.name))

    def clusters(self, stage: str) -> Array:
        """int64 [rows]: the cluster of each document; one of its own, below 0, where it has none."""
        if not self.rows.has(f"annotations/{stage}", "cluster"):
            raise NotThere(f"annotations/{stage}/ with cluster", f"the {stage} stage")

        def read() -> Array:
            cluster = self.rows.integers(f"annotations/{stage}", "cluster")
            return np.where(cluster < 0, -1 - np.arange(len(cluster)), cluster)

        return self.held(("cluster", stage), read)

    def column(self, label: str) -> Column:
        """Raises AskedWrong."""
        found = [column for column in self.rows.columns if column.label == label and column.kind != "label"]
        if not found:
            raise AskedWrong(f"sort: {label!r} is no number that was measured of the documents")
        return found[0]

    def outcome(self, name: str) -> Array | None:
        """bool [rows]; None stands for all."""
        aside = set_aside(self.reason)
        if name == "all":
            return None
        if self.keep is None:
            raise NotThere("selection/", "the select stage")
        return {"kept": self.keep, "dropped": ~self.keep & ~aside, "quarantined": aside}[name]

    def chosen(self, asked: Asked) -> tuple[tuple[str, ...], Array]:
        """The documents that a filter leaves, and what it was: outcome, rule, how (first: it dropped them; any: they do
        not meet it, whatever dropped them; left: they are there after it), source, language.

        Raises:
            AskedWrong: no such outcome, rule, source or language.
        """
        outcome = asked.choice("outcome", OUTCOMES, "all")
        rule, how = asked.text("rule"), asked.choice("how", ("first", "any", "left"), "first")
        source, language = asked.text("source"), asked.text("language")
        key = (outcome, rule, how, source, language)

        def filtered() -> Array:
            mask = np.ones(self.rows.total, dtype=bool)
            if (side := self.outcome(outcome)) is not None:
                mask &= side
            if rule:
                mask &= self._failed(rule, how)
            if source:
                mask &= _labelled(self.source, source, "source")
            if language:
                if self.language is None:
                    raise NotThere("annotations/language/ with label", "the language stage")
                mask &= _labelled(self.language, language, "language")
            return mask

        return key, self.held(("mask", *key), filtered)

    def _failed(self, name: str, how: str) -> Array:
        codes, names = self.reason
        rule = next((one for one in self.rules if one["name"] == name), None)
        if how == "any" and rule is not None:
            return rules.failing(rule, self.rows, self.source, self.reason)
        if rule is None and name not in names:
            raise AskedWrong(f"rule: the policy has no rule {name!r}")
        if how == "left":
            order = [one["name"] for one in self.rules]
            later = order[order.index(name) + 1 :] if name in order else order  # what is set aside comes before all
            return (codes < 0) | np.isin(codes, [at for at, one in enumerate(names) if one in later])
        return codes == (names.index(name) if name in names else -2)


def catalogue(run: LiveRun) -> Catalogue:
    """Raises NotThere: there are no documents yet."""
    return run.kept("reading", FOLDERS, lambda: _read(run))


def _read(run: LiveRun) -> Catalogue:
    rows = open_rows(run.folder)
    policy, calibration = policy_of(run.folder), calibration_of(run.folder)
    source = rows.labels("documents", "source")
    if not rows.total:
        raise NotThere("a document", "the ingest stage")
    try:
        keep, reason = selection(rows)
    except NotThere:
        keep, reason = None, (np.full(rows.total, -1, dtype=np.int32), list[str]())
    return Catalogue(
        rows=rows,
        source=source,
        language=rows.labels("annotations/language", "label") if rows.has("annotations/language", "label") else None,
        keep=keep,
        reason=reason,
        tokens=rows.numbers("annotations/tokens", "count") if rows.has("annotations/tokens", "count") else None,
        rules=rules.checks(policy, calibration, source[1], rows),
        bounds=rules.thresholds(policy, calibration, rows),
        edits=rules.edits(policy, rows),
        policy=str(policy.get("name") or ""),
    )


def _labelled(column: Labels, name: str, what: str) -> Array:
    codes, names = column
    if name in names:
        return codes == names.index(name)
    if name != NO_LABEL:
        raise AskedWrong(f"{what}: no document has {name!r}")
    return codes < 0
