"""The thresholds that can be moved, the stops of their sliders, and what the policy keeps at each stop.

A curve is exact at every stop, without deciding a hundred times over all documents: what no later cluster rule can
touch is counted once by its rank among the stops, and only members of clusters are decided stop by stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gristmill.report.columns import Array
from gristmill.report.desk.index import Index, Members
from gristmill.report.desk.policy import SIDES, Policy, Rule

STOPS = 101
DIGITS = 4  # of a stop: a threshold that a person can read and write


@dataclass(frozen=True)
class At:
    """One threshold: of a rule, on one side, for one source or for all that have none of their own."""

    rule: str
    side: str
    source: str | None = None


def thresholds(policy: Policy) -> list[At]:
    """All numbers that the policy bounds documents by, in its order."""
    found: list[At] = []
    for rule in policy.rules:
        each = ((None, rule.own), *rule.sources)
        found += [At(rule.name, side, of) for of, bounds in each for side in SIDES if getattr(bounds, side) is not None]
    return found


def governed(index: Index, rule: Rule, at: At) -> list[str]:
    """Sources whose documents the threshold is asked about."""
    if at.source is not None:
        return [source for source in index.sources if source == at.source]
    own = dict(rule.sources)
    return [source for source in index.sources if source not in own]


def stops(index: Index, rule: Rule) -> list[float]:
    """Values where a slider of the rule stops: half of them spread evenly over documents, half over distinct values,
    rounded, and the thresholds of the run as they stand."""
    if rule.name not in index.stops:
        index.stops[rule.name] = _stops(index, rule)
    return index.stops[rule.name]


def _stops(index: Index, rule: Rule) -> list[float]:
    values = index.values[rule.column].values
    absent = index.values[rule.column].absent
    ordered = np.sort(values if absent is None else values[~absent]).astype(np.float64)
    ordered = ordered[np.isfinite(ordered)]
    exact = {
        number
        for source in index.sources
        for side in SIDES
        if (number := index.number(getattr(rule.of(source), side), source)) is not None
    }
    if not len(ordered):
        return sorted(exact)
    distinct = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    if values.dtype == np.bool_:
        distinct = np.array([0.0, 1.0])
    many = max((STOPS - len(exact)) // 2, 2)
    if len(distinct) > 2 * many:
        spread = [each[np.linspace(0, len(each) - 1, many).astype(np.int64)] for each in (ordered, distinct)]
        distinct = np.unique(np.concatenate(spread))
    whole = bool((distinct == np.round(distinct)).all())
    chosen = {_rounded(value, whole) for value in distinct.tolist()}
    chosen |= {_rounded(distinct[0], whole, -1), _rounded(distinct[-1], whole, 1)}
    return sorted(exact | {value for value in chosen if not any(np.isclose(value, one, 1e-5, 0) for one in exact)})


def _rounded(value: float, whole: bool, way: int = 0) -> float:
    """To DIGITS, or down or up to them."""
    if not value or (whole and abs(value) < 10**DIGITS):
        return float(value)
    unit = 10.0 ** (np.floor(np.log10(abs(value))) - DIGITS + 1)
    number = {0: np.round, -1: np.floor, 1: np.ceil}[way](value / unit) * unit
    return float(f"{number:.{DIGITS}g}")


def curve(index: Index, policy: Policy, at: At, points: Sequence[float]) -> dict[str, Any]:
    """Documents and tokens that `policy` keeps with the threshold at each of `points`, all else as it stands."""
    place = next(place for place, rule in enumerate(policy.rules) if rule.name == at.rule)
    rule, later = policy.rules[place], policy.rules[place + 1 :]
    column, low = index.values[rule.column], at.side == "min"
    opened = _bounded(rule, at, -np.inf if low else np.inf)
    alive = index.walk((*policy.rules[:place], opened), index.aside(policy)) == place + 1
    scope = np.isin(index.source, [index.sources.index(source) for source in governed(index, rule, at)])
    if column.absent is not None:
        scope &= ~column.absent
    # The document passes at the points below its rank ("min"), or from its rank on ("max").
    exact = np.array([column.precise(point) for point in points])
    rank = np.full(index.rows.total, len(points) if low else 0, np.int16)
    rank[scope] = np.searchsorted(exact, column.values[scope], "right" if low else "left")
    clusters = [index.members[each.column, each.keep] for each in later if each.keep is not None]
    together = np.zeros(index.rows.total, bool)
    for members in clusters:
        together[members.rows] = True
    after = alive & ~together
    for each in later:
        if each.keep is None:
            np.greater(after, index.fails(each), out=after)
    counted = []
    for weights in (None, index.tokens[after]):
        of_rank = np.bincount(rank[after], weights, len(points) + 1).astype(np.int64)
        counted.append(of_rank[:0:-1].cumsum()[::-1] if low else of_rank[:-1].cumsum())
    documents, tokens = counted
    rows = np.flatnonzero(alive & together)
    if len(rows):
        of_members = _members(index, later, rows)
        for point in range(len(points)):
            passes = rank[rows] > point if low else rank[rows] <= point
            for each in of_members:
                if isinstance(each, Members):
                    passes[each.lose(passes)] = False
                else:
                    passes &= each
            documents[point] += np.count_nonzero(passes)
            tokens[point] += int(index.tokens[rows[passes]].sum())
    return {"values": list(points), "documents": documents.tolist(), "tokens": tokens.tolist()}


def _members(index: Index, rules: Sequence[Rule], rows: Array) -> list[Members | Array]:
    """What the rules ask, of these rows alone: clusters, or which of the rows pass."""
    place = np.full(index.rows.total, -1)
    place[rows] = np.arange(len(rows))
    found: list[Members | Array] = []
    for rule in rules:
        if rule.keep is None:
            found.append(~index.fails(rule)[rows])
        else:
            members = index.members[rule.column, rule.keep]
            here = place[members.rows]
            found.append(Members(here[here >= 0], members.cluster[here >= 0]))
    return found


def _bounded(rule: Rule, at: At, value: float) -> Rule:
    if at.source is None:
        return replace(rule, own=replace(rule.own, **{at.side: value}))
    own = replace(rule.of(at.source), **{at.side: value})
    return replace(rule, sources=tuple({**dict(rule.sources), at.source: own}.items()))


def nearest(index: Index, policy: Policy, passed: Array, at: At, each: int) -> dict[str, list[dict[str, Any]]]:
    """The documents that the threshold is the closest call for: kept ones, and ones that its rule drops."""
    place = next(place for place, rule in enumerate(policy.rules) if rule.name == at.rule)
    rule = policy.rules[place]
    column = index.values[rule.column]
    limit = np.full(len(index.sources), np.nan)
    for source in governed(index, rule, at):
        number = index.number(getattr(rule.of(source), at.side), source)
        limit[index.sources.index(source)] = np.nan if number is None else column.precise(number)

    apart = len(np.unique(limit)) > 1

    def closest(rows: Array, inside: bool) -> list[dict[str, Any]]:
        if column.absent is not None:
            rows = rows[~column.absent[rows]]
        margin = column.values[rows].astype(np.float64) - (limit[index.source[rows]] if apart else limit[0])
        margin = margin if (at.side == "min") == inside else -margin
        rows, margin = rows[margin >= 0], margin[margin >= 0]
        if len(rows) > each:
            last = np.partition(margin, each - 1)[each - 1]
            first = np.concatenate([np.flatnonzero(margin < last), np.flatnonzero(margin == last)])[:each]
            rows, margin = rows[first], margin[first]
        rows = rows[np.lexsort((rows, margin))]
        return [_told(index, policy, row, place, inside) for row in rows.tolist()]

    kept, refused = np.flatnonzero(passed == len(policy.rules)), np.flatnonzero(passed == place)
    return {"kept": closest(kept, True), "dropped": closest(refused, False)}


def _told(index: Index, policy: Policy, row: int, place: int, kept: bool) -> dict[str, Any]:
    rules = policy.rules[place + 1 :]
    also = [] if kept else [rule.name for rule in rules if rule.keep is None and index.fails(rule)[row]]
    value = index.values[policy.rules[place].column].values[row].item()
    return {"row": row, "source": index.sources[index.source[row]], "value": value, "also": also}
