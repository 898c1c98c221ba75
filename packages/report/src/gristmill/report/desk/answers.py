"""What the policy desk asks: the policy's thresholds, what a changed policy keeps, curves, and texts at a boundary."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import QUARANTINED, Array
from gristmill.report.desk.export import command, policy_file, said
from gristmill.report.desk.index import Index, folders
from gristmill.report.desk.policy import NO_TOKENS, SIDES, Policy, Rule, changed, differences, written
from gristmill.report.desk.thresholds import At, curve, governed, nearest, stops, thresholds
from gristmill.report.live_run import LiveRun

NEAREST = 3  # documents on each side of a boundary
MOST_WORDS = 40  # of a rule that allows words
UNITS = ("documents", "tokens")
TEXT = 4000  # characters of a document


def index_of(run: LiveRun) -> Index:
    policy, places = written(run.folder), folders(run.folder)
    read = [places[name] for name in (*policy.annotations(), *policy.edited_by(), "tokens") if name in places]
    return run.kept("desk", (*sorted({*read, "documents", "selection", "thresholds"}),), lambda: Index(run.folder))


def desk(run: LiveRun, _asked: Asked) -> dict[str, Any]:
    """The policy rule by rule, with the stops of its sliders, and what the run kept by it."""
    index = index_of(run)
    policy, passed = index.written, index.passed(index.written)
    return {
        "policy": policy.name,
        "sources": list(index.sources),
        "rules": [_rule(index, rule) for rule in policy.rules],
        "otherwise": int(np.count_nonzero((passed == len(policy.rules)) != index.kept)),
        **_counted(index, policy, passed),
    }


def desk_moved(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """What the policy keeps after `changes`, and the documents nearest to the threshold `rule`, `side`, `source`."""
    index = index_of(run)
    policy = changed(index.written, _changes(asked))
    passed, at = index.passed(policy), _at(index, policy, asked)
    would = passed == len(policy.rules)
    name = str(run.folder)
    return {
        **_counted(index, policy, passed),
        "gained": int(np.count_nonzero(would & ~index.kept)),
        "lost": int(np.count_nonzero(index.kept & ~would)),
        "looked": index.looked_otherwise(policy),
        "changes": [
            {"rule": rule, "source": source, "key": key, "was": said(was), "now": said(now)}
            for rule, source, key, was, now in differences(index.written, policy)
        ],
        "command": command(policy, index.written, name),
        "file": policy_file(policy, index.written, run.folder.resolve().name),
        "boundary": nearest(index, policy, passed, at, NEAREST) if at else None,
    }


def desk_curves(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """Of one threshold with all else after `changes`; of all of the run's policy, where none is named."""
    index = index_of(run)
    policy = changed(index.written, _changes(asked))
    one = _at(index, policy, asked)
    rules = {rule.name: rule for rule in index.written.rules}
    told = [at for at in thresholds(policy) if at.rule != NO_TOKENS and governed(index, rules[at.rule], at)]
    return {
        "documents": index.rows.total,
        "tokens": int(index.tokens.sum()),
        "curves": [
            {"rule": at.rule, "side": at.side, "source": at.source, "column": rules[at.rule].column}
            | curve(index, policy, at, stops(index, rules[at.rule]))
            for at in ([one] if one else told)
        ],
    }


def desk_documents(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """The documents at `rows` (numbers with commas), as text."""
    index = index_of(run)
    try:
        wanted = [int(row) for row in asked.text("rows").split(",") if row]
    except ValueError:
        raise AskedWrong("rows: write row numbers with commas between them") from None
    if len(wanted) > 4 * NEAREST or not all(0 <= row < index.rows.total for row in wanted):
        raise AskedWrong(f"rows: {4 * NEAREST} at most, each below {index.rows.total}")
    found = index.rows.records(wanted, {"documents": ["id", "text", "source", "url"]})
    return {"documents": {str(row): _document(record) for row, record in found.items()}}


def _document(record: dict[str, Any]) -> dict[str, Any]:
    text = record["documents/text"] or ""
    facts = {name: record.get(f"documents/{name}") for name in ("id", "source", "url")}
    return {**facts, "text": text[:TEXT], "characters": len(text)}


def _changes(asked: Asked) -> Any:
    try:
        return json.loads(asked.text("changes") or "{}")
    except (ValueError, RecursionError):
        raise AskedWrong("changes: not JSON") from None


def _at(index: Index, policy: Policy, asked: Asked) -> At | None:
    name, source = asked.text("rule"), asked.text("source") or None
    if not name:
        return None
    rule = next((rule for rule in policy.rules if rule.name == name), None)
    at = At(name, asked.choice("side", SIDES, "min"), source)
    if rule is None or rule.keep is not None or index.values[rule.column].words is not None:
        raise AskedWrong(f"rule: {name!r} has no threshold that could be moved")
    if source is not None and source not in index.sources:
        raise AskedWrong(f"source: the run has none named {source!r}")
    bounds = rule.own if source is None else rule.of(source)
    if getattr(bounds, at.side) is None:
        raise AskedWrong(f"side: the rule {name!r} has no {at.side} there")
    return at


def _rule(index: Index, rule: Rule) -> dict[str, Any]:
    told = {"name": rule.name, "column": rule.column, "keep": rule.keep, "missing": rule.missing}
    if rule.keep is not None:
        return told
    column = index.values[rule.column]
    free = [source for source in index.sources if not rule.of(source).ask()]
    told |= {"free": free, "unmeasured": 0 if column.absent is None else int(np.count_nonzero(column.absent))}
    if column.words is not None:
        return told | {"words": _words(index, rule)}
    each = [_threshold(index, rule, at) for at in thresholds(Policy("", (rule,)))]
    return told | {"stops": stops(index, rule), "thresholds": [one for one in each if one["governs"]]}


def _threshold(index: Index, rule: Rule, at: At) -> dict[str, Any]:
    """`value` is exact; `numbers` are what it stands for, by source."""
    value = getattr(rule.own if at.source is None else rule.of(at.source), at.side)
    governs = governed(index, rule, at)
    numbers = {source: index.number(value, source) for source in governs}
    return {"side": at.side, "source": at.source, "value": value, "governs": governs, "numbers": numbers}


def _words(index: Index, rule: Rule) -> list[dict[str, Any]]:
    """Per group of sources with the same bounds: the words, the most frequent first, and those allowed."""
    column = index.values[rule.column]
    words, own = column.words, dict(rule.sources)
    assert words is not None
    groups: list[dict[str, Any]] = []
    for source in (None, *own):
        bounds, governs = rule.own if source is None else own[source], governed(index, rule, At(rule.name, "", source))
        if bounds.allowed and governs:
            here = np.isin(index.source, [index.sources.index(name) for name in governs]) & (column.values >= 0)
            counts = np.bincount(column.values[here], minlength=len(words))
            often = [at for at in np.argsort(-counts, kind="stable").tolist() if counts[at]]
            shown = [words[at] for at in often[:MOST_WORDS]]
            shown += [word for word in bounds.allowed if word not in shown]
            numbers: dict[str, int] = dict(zip(words, counts.tolist(), strict=True))
            listed = [{"word": word, "documents": numbers.get(word, 0)} for word in shown]
            told = {"source": source, "governs": governs, "allowed": bounds.allowed, "distinct": len(often)}
            groups.append({**told, "words": listed})
    return groups


def _counted(index: Index, policy: Policy, passed: Array) -> dict[str, Any]:
    """Documents and tokens: all, as the run selected, and then; by source and by the rule that drops them."""
    was, then = index.selected, index.count(policy, passed)
    places = {rule.name: place for place, rule in enumerate(policy.rules)}
    kept, aside = len(policy.rules), len(policy.rules) + 1

    def pair(before: int | None, after: int | None, source: int | None = None) -> dict[str, dict[str, int]]:
        return {"before": _sum(was, before, source), "then": _sum(then, after, source)}

    def of(name: str) -> int | None:
        return index.reasons.index(name) if name in index.reasons else None

    return {
        "all": {"documents": index.rows.total, "tokens": int(index.tokens.sum())},
        "kept": pair(-1, kept),
        "aside": pair(of(QUARANTINED), aside),
        "by_source": [
            {"name": name, "all": {unit: int(one[:, at].sum()) for unit, one in zip(UNITS, then, strict=True)}}
            | pair(-1, kept, at)
            for at, name in enumerate(index.sources)
        ],
        "by_rule": [{"name": rule.name, **pair(of(rule.name), places.get(rule.name))} for rule in index.written.rules],
    }


def _sum(counts: tuple[Array, Array], place: int | None, source: int | None) -> dict[str, int]:
    at = slice(None) if source is None else source
    return {unit: 0 if place is None else int(one[place, at].sum()) for unit, one in zip(UNITS, counts, strict=True)}


QUESTIONS = {
    "desk": desk, "desk_moved": desk_moved, "desk_curves": desk_curves, "desk_documents": desk_documents,
}  # fmt: skip
AT_FIRST: tuple[tuple[str, dict[str, str]], ...] = (("desk", {}), ("desk_curves", {}))
