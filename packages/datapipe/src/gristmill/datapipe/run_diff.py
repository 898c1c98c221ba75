"""Which documents changed fate between two runs, and by which rule; and what was changed that could be why.

Documents are counted as they are matched (run_diff_documents), a partition or bucket at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.base.terminal import shown
from gristmill.datapipe.policy import QUARANTINED
from gristmill.datapipe.run_diff_changes import (
    MeasureChange,
    PolicyChange,
    measure_changes,
    policy_changes,
    version_changes,
)
from gristmill.datapipe.run_diff_documents import (
    ABSENT,
    ASIDE,
    KEPT,
    By,
    Names,
    Rows,
    Side,
    meet,
    mixed,
    nth,
    same_partitions,
)

KINDS = (
    "kept in both", "dropped in both, same rule", "dropped in both, another rule", "newly kept", "newly dropped",
    "quarantined in both", "newly quarantined", "no longer quarantined", "only in A", "only in B",
)  # fmt: skip
MOST_SAMPLES = 1000
SOURCES_SHOWN = 24


@dataclass(frozen=True)
class Count:
    documents: int
    tokens_a: int
    tokens_b: int


@dataclass(frozen=True)
class Group:
    count: Count
    sources: dict[str, Count]
    """Of each source, as B names it where the document is in B; the largest first."""


@dataclass(frozen=True)
class Value:
    """What a rule looked at, and its bounds for the document's source: null where a run has no such rule.

    Of QUARANTINED, which stage could not handle the document and why; no column and no bounds."""

    rule: str
    column: str
    a: Any
    bounds_a: dict[str, Any] | None
    b: Any
    bounds_b: dict[str, Any] | None


@dataclass(frozen=True)
class Sample:
    id: str
    source: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Change:
    """Documents of one fate in A and another in B; `rule_a` and `rule_b` dropped them, where anything did, or are
    QUARANTINED."""

    kind: str
    rule_a: str | None
    rule_b: str | None
    group: Group
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Diff:
    a: str
    b: str
    in_place: int
    """Documents of partitions that both runs have."""
    by: tuple[str, ...]
    """What identified those of other partitions; empty where only one of the runs has any."""
    matched: int
    """So many of those are in both ..."""
    other_text: int
    """... and so many of them have another text."""
    not_by: tuple[str, ...]
    """What does not identify them, and why."""
    groups: dict[str, Group]
    """All documents, by KINDS."""
    changes: tuple[Change, ...]
    """The largest of each kind first."""
    policy: tuple[PolicyChange, ...]
    measures: tuple[MeasureChange, ...]
    versions: dict[str, tuple[str | None, str | None]]
    """Libraries that the runs recorded in different versions."""
    notes: tuple[str, ...]


def run_diff(run_a: Path, run_b: Path, samples: int = 3, by: By | None = None) -> Diff:
    """How the selection of run B differs from that of run A; `samples` documents are named for each change.

    Raises:
        GristmillError: one of them is no run folder, or has no selection of its documents yet.
        UsageError: the documents cannot be told apart by what `by` names, or `samples` is not from 0 to 1,000.
        DataError: outputs of a run do not fit each other.
    """
    check_range("samples", samples, 0, MOST_SAMPLES)
    fates, sources = Names(None, "\0absent", QUARANTINED), Names()
    a, b = Side(run_a, fates, sources), Side(run_b, fates, sources)
    tally = _Tally(samples)
    places = same_partitions(a, b)
    for at_a, at_b in places:
        rows_a, rows_b = a.rows(at_a), b.rows(at_b)
        everything = np.arange(len(rows_a["place"]))
        tally.add(rows_a, rows_b, everything, everything)
    in_place = sum(int(total[0]) for total in tally.totals.values())
    rest_a = sorted(set(range(len(a.parts))) - {at for at, _ in places})
    rest_b = sorted(set(range(len(b.parts))) - {at for _, at in places})
    by_what, not_by = meet(a, rest_a, b, rest_b, by, tally.add)
    groups, changes = _summary(tally, fates.names, sources.names, a, b)
    notes = [*a.notes("A"), *b.notes("B")]
    if not places:
        notes.append("no partition is in both, so the ledgers cannot tell which stages measured otherwise")
    return Diff(
        str(run_a), str(run_b), in_place, by_what, tally.matched, tally.other_text, not_by, groups, changes,
        policy_changes(a.policy, b.policy), measure_changes(a, b, places), version_changes(a, b), tuple(notes),
    )  # fmt: skip


# Counting -------------------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    samples: int
    totals: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """source << 32 | fate in A << 16 | fate in B -> documents, tokens in A, tokens in B."""
    drawn: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    """fate in A << 16 | fate in B -> a few (priority, place in A, place in B): a uniform sample, always the same."""
    matched: int = 0
    other_text: int = 0

    def add(self, a: Rows, b: Rows, rows_a: NDArray[np.int64], rows_b: NDArray[np.int64]) -> None:
        """Documents that are the same one; -1 where a run has it not."""
        fate = _picked(a["fate"], rows_a, ABSENT) << 16 | _picked(b["fate"], rows_b, ABSENT)
        source = np.where(rows_b >= 0, _picked(b["source"], rows_b, 0), _picked(a["source"], rows_a, 0))
        codes, group = np.unique(source << 32 | fate, return_inverse=True)
        weights = None, _picked(a["tokens"], rows_a, 0), _picked(b["tokens"], rows_b, 0)
        sums = [np.bincount(group, weight, len(codes)).astype(np.int64) for weight in weights]  # exact up to 2^53
        for code, total in zip(codes.tolist(), np.stack(sums, axis=1)):
            self.totals[code] = self.totals.get(code, 0) + total
        if "text" in a:
            both = (rows_a >= 0) & (rows_b >= 0)
            self.matched += int(both.sum())
            self.other_text += int((a["text"][rows_a[both]] != b["text"][rows_b[both]]).sum())
        changed = np.flatnonzero(fate >> 16 != fate & 0xFFFF)
        places = (_picked(rows["place"], at[changed], -1) for rows, at in ((a, rows_a), (b, rows_b)))
        self._draw(fate[changed], *places)

    def _draw(self, fate: NDArray[np.int64], place_a: NDArray[np.int64], place_b: NDArray[np.int64]) -> None:
        priority = mixed(np.where(place_a >= 0, place_a, ~place_b).astype(np.uint64)).astype(np.int64)
        order = np.lexsort((priority, fate))
        few = order[nth(fate[order]) < self.samples]
        for code, *drawn in np.stack([fate[few], priority[few], place_a[few], place_b[few]], axis=1).tolist():
            known = self.drawn.setdefault(code, [])
            known.append((drawn[0], drawn[1], drawn[2]))
            known.sort()
            del known[self.samples :]


def _picked(values: NDArray[Any], rows: NDArray[np.int64], missing: int) -> NDArray[np.int64]:
    out = np.full(len(rows), missing, np.int64)
    out[rows >= 0] = values[rows[rows >= 0]]
    return out


def _kind(a: int, b: int) -> str:
    if ABSENT in (a, b):
        return "only in A" if b == ABSENT else "only in B"
    if ASIDE in (a, b):
        return "quarantined in both" if a == b else "newly quarantined" if b == ASIDE else "no longer quarantined"
    if a == b:
        return "kept in both" if a == KEPT else "dropped in both, same rule"
    if KEPT in (a, b):
        return "newly kept" if b == KEPT else "newly dropped"
    return "dropped in both, another rule"


def _summary(
    tally: _Tally, fates: list[str | None], sources: list[str], a: Side, b: Side
) -> tuple[dict[str, Group], tuple[Change, ...]]:
    of_kind: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    of_fate: dict[int, dict[str, Any]] = {}
    for code, total in tally.totals.items():
        source, fate = sources[code >> 32], code & 0xFFFFFFFF
        for found in (of_kind[_kind(fate >> 16, fate & 0xFFFF)], of_fate.setdefault(fate, {})):
            found[source] = found.get(source, 0) + total
    changes: list[Change] = []
    for fate, found in of_fate.items():
        one, other = fate >> 16, fate & 0xFFFF
        if one != other:
            rule_a, rule_b = (fates[fate] if fate > ABSENT else None for fate in (one, other))
            samples = (_sample(a, b, (rule_a, rule_b), *places) for _, *places in tally.drawn.get(fate, []))
            changes.append(Change(_kind(one, other), rule_a, rule_b, _group(found), tuple(samples)))
    changes.sort(key=lambda c: (KINDS.index(c.kind), -c.group.count.documents, c.rule_a or "", c.rule_b or ""))
    return {kind: _group(found) for kind, found in of_kind.items()}, tuple(changes)


def _group(found: dict[str, NDArray[np.int64]]) -> Group:
    ordered = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
    totals = np.sum(list(found.values()), axis=0) if found else np.zeros(3, np.int64)
    return Group(Count(*totals.tolist()), {source: Count(*total.tolist()) for source, total in ordered})


def _sample(a: Side, b: Side, dropped_by: Sequence[str | None], place_a: int, place_b: int) -> Sample:
    document, source = b.document(place_b) if place_b >= 0 else a.document(place_a)
    values = []
    for name in dict.fromkeys(rule for rule in dropped_by if rule is not None):
        if name == QUARANTINED:
            why = (side.why_aside(place) if place >= 0 else None for side, place in ((a, place_a), (b, place_b)))
            values.append(Value(name, "", next(why), None, next(why), None))
            continue
        rules = a.rules.get(name), b.rules.get(name)
        known = [rule for rule in rules if rule is not None]
        found: list[Any] = []
        for side, rule, place in zip((a, b), rules, (place_a, place_b)):
            found.append(side.measured(rule or known[0], place) if place >= 0 and known else "not in this run")
            found.append(rule and _bounds(rule, source))
        values.append(Value(name, " -> ".join(dict.fromkeys(rule["column"] for rule in known)), *found))
    return Sample(document, source, tuple(values))


def _bounds(rule: Mapping[str, Any], source: str) -> dict[str, Any]:
    if rule["keep"] is not None:
        return {"keep": rule["keep"]}
    return {key: value for key, value in rule["sources"].get(source, {}).items() if value not in (None, [])}


# As text --------------------------------------------------------------------------------------------------------------


def table(diff: Diff) -> list[str]:
    """The answer for a terminal."""
    lines = [f"A  {shown(diff.a)}", f"B  {shown(diff.b)}", f"{diff.in_place:,} documents in partitions that both have"]
    lines += [f"not matched by {shown(why)}" for why in diff.not_by]
    if diff.by:
        lines.append(f"{diff.matched:,} others matched by {' and '.join(diff.by)}")
    if diff.other_text:
        lines[-1] += f", {diff.other_text:,} of them with another text: where rows moved, --by text finds them"
    lines += [f"note: {shown(note)}" for note in diff.notes]
    width = max(len(name) for name in (*KINDS, *(f"  {shown(s)}" for g in diff.groups.values() for s in g.sources)))
    lines += ["", f"{'':<{width}} {'documents':>13} {'tokens in A':>16} {'tokens in B':>16}"]
    for kind, group in diff.groups.items():
        if QUARANTINED in kind and not group.count.documents:
            continue
        few = list(group.sources.items())[:SOURCES_SHOWN]
        for name, count in ((kind, group.count), *((f"  {shown(source)}", count) for source, count in few)):
            lines.append(f"{name:<{width}} {count.documents:>13,} {count.tokens_a:>16,} {count.tokens_b:>16,}")
        if len(group.sources) > len(few):
            lines.append(f"  and {len(group.sources) - len(few)} other sources (--json has all)")
    for title, found in (
        ("whose fate changed", [line for change in diff.changes for line in _change_lines(change)]),
        ("what the policy asks otherwise", [_policy_line(change) for change in diff.policy]),
        ("what was measured otherwise", [_measure_line(change) for change in diff.measures]),
        ("versions", [f"  {shown(name)}: {a} -> {b}" for name, (a, b) in diff.versions.items()]),
    ):
        lines += ["", *([title, *found] if found else [f"{title}: none"])]
    return lines


def _change_lines(change: Change) -> Iterator[str]:
    rules = [(run, rule) for run, rule in (("A", change.rule_a), ("B", change.rule_b)) if rule is not None]
    deeds = (rule if rule == QUARANTINED else f"dropped by {shown(rule)}" for _, rule in rules)
    told = ", ".join(f"{deed} in {run}" for deed, (run, _) in zip(deeds, rules)) or "kept"
    count = change.group.count
    yield (
        f"  {change.kind}, {told}: {count.documents:,} documents, {max(count.tokens_a, count.tokens_b):,} tokens "
        f"({', '.join(f'{shown(name)} {of.documents:,}' for name, of in change.group.sources.items())})"
    )
    for sample in change.samples:
        yield f"    {shown(sample.id)} ({shown(sample.source)})"
        for value in sample.values:
            if value.rule == QUARANTINED:
                yield f"      {QUARANTINED}: {_said(value.a)} -> {_said(value.b)}"
                continue
            sides = ((value.a, value.bounds_a), (value.b, value.bounds_b))
            a, b = (
                f"{_said(found)} ({'no such rule' if bounds is None else _said(bounds)})" for found, bounds in sides
            )
            yield f"      {shown(value.rule)}: {shown(value.column)} {a} -> {b}"


def _policy_line(change: PolicyChange) -> str:
    sources = f" ({', '.join(map(shown, change.sources))})" if change.sources else ""
    return f"  {shown(change.what)}{sources}: {_said(change.a)} -> {_said(change.b)}"


def _measure_line(change: MeasureChange) -> str:
    outputs = f": {change.different:,} of {change.compared:,} outputs differ" if change.compared else ""
    return f"  {shown(change.node)}{outputs}; {shown(change.why)}"


def _said(value: Any) -> str:
    """A value or bounds as people write them; numbers as short as 32 bits deserve."""
    if isinstance(value, Mapping):
        told = (f"{shown(key)} {_said(item)}" for key, item in value.items() if item not in (None, "", [], {}))
        return ", ".join(told) or "no bound"
    if isinstance(value, list):
        return f"[{', '.join(map(_said, value))}]"
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else shown(value)
