"""The policy of a run as its selection/policy.json keeps it, what a person changes of it, and what then stands there.

What bounds mean is written in gristmill.datapipe.policy, which this package does not import; tests hold both together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gristmill.base.errors import DataError
from gristmill.base.files import read_object
from gristmill.report.asked import AskedWrong
from gristmill.report.columns import NotThere

Threshold = float | str | None
SIDES = ("min", "max")
NO_TOKENS = "no_tokens"
LARGEST = sys.float_info.max
MEND = "delete selection/ to have it made again"
REPEATS = ("lines", "paragraphs", "substrings")
LOOKED_AT = {"semantic": "before_semantic", **dict.fromkeys(REPEATS, "unique")}
UNKNOWN = {"before_semantic": (*REPEATS, "tokens", "scores", "semantic"), "unique": (*REPEATS, "tokens", "scores")}
"""As datapipe.policy has them: annotations that are looked for only in documents which some rules keep, and for each
such selection the annotations that are not known yet when it is made."""


@dataclass(frozen=True)
class Bounds:
    min: Threshold = None
    max: Threshold = None
    allowed: tuple[str, ...] = ()

    def ask(self) -> bool:
        return self.min is not None or self.max is not None or bool(self.allowed)


@dataclass(frozen=True)
class Rule:
    name: str
    column: str
    own: Bounds = Bounds()
    keep: str | None = None
    missing: str = "drop"
    sources: tuple[tuple[str, Bounds], ...] = ()
    """Bounds that replace the rule's own for one source."""

    def of(self, source: str) -> Bounds:
        return dict(self.sources).get(source, self.own)

    def reads(self) -> tuple[str, ...]:
        ranks = {"longest": ("heuristics",), "best": ("scores",)}
        return (self.column.partition(".")[0], *ranks.get(self.keep or "", ()))


@dataclass(frozen=True)
class Policy:
    name: str
    rules: tuple[Rule, ...]
    edits: tuple[Mapping[str, Any], ...] = ()
    measure: Mapping[str, Any] | None = None

    def annotations(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.reads()))

    def edited_by(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(edit["column"]).partition(".")[0] for edit in self.edits))

    def looked_at(self, annotation: str) -> Policy:
        """The rules that say which documents are looked at for one of LOOKED_AT."""
        unknown = set(UNKNOWN[LOOKED_AT[annotation]])
        return Policy(self.name, tuple(rule for rule in self.rules if not unknown & set(rule.reads())))


def written(run: Path) -> Policy:
    """The policy that made the run's selection.

    Raises:
        NotThere: the run has no selection yet.
        DataError: the file is damaged.
    """
    path = run / "selection" / "policy.json"
    if not path.exists():
        raise NotThere("selection/policy.json", "the select stage")
    return parsed(read_object(path, MEND, rules=list))


def parsed(kept: Mapping[str, Any]) -> Policy:
    """What selection/policy.json holds; numbers that were applied stand for a policy that was not kept itself.

    Raises:
        DataError: it holds no policy.
    """
    try:
        return _parsed(kept)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"selection/policy.json: not as the select stage writes it ({what}); {MEND}") from None


def _parsed(kept: Mapping[str, Any]) -> Policy:
    values = kept.get("policy") or {"name": kept.get("name"), "rule": kept["rules"]}
    rules = tuple(
        Rule(
            str(rule["name"]), str(rule["column"]), _bounds(rule), rule.get("keep"), rule.get("missing") or "drop",
            tuple((source, _bounds(own)) for source, own in (rule.get("sources") or {}).items()),
        )
        for rule in values["rule"]
    )  # fmt: skip
    return Policy(str(values["name"]), rules, tuple(values.get("edit") or ()), values.get("measure") or {})


def calibrated(run: Path) -> dict[str, dict[str, Any]]:
    """By source, the thresholds that calibration found; "(all)" stands for sources of which nothing is known."""
    path = run / "thresholds" / "calibration.json"
    return read_object(path, "calibrate again to have it made", groups=dict)["groups"] if path.exists() else {}


def _bounds(values: Mapping[str, Any]) -> Bounds:
    return Bounds(values.get("min"), values.get("max"), tuple(values.get("allowed") or ()))


# Changes --------------------------------------------------------------------------------------------------------------


def changed(policy: Policy, changes: Any) -> Policy:
    """The policy after {RULE: {"off": true} or {"min", "max", "allowed", "sources": {SOURCE: {the same}}}}.

    What a source is not given of its own follows the rule, unless the policy has bounds of that source already.

    Raises:
        AskedWrong: it names no rule, or leaves one that makes no sense.
    """
    by_name = {rule.name: rule for rule in policy.rules}
    for name, change in _table(changes, "changes").items():
        if name not in by_name:
            raise AskedWrong(f"changes: the policy has no rule {name!r}")
        rule, change = by_name[name], _table(change, f"changes: {name}")
        if unknown := set(change) - {"off", "min", "max", "allowed", "sources"}:
            raise AskedWrong(f"changes: {name}: {sorted(unknown)[0]!r} is no key of a rule")
        if change.get("off"):
            if name == NO_TOKENS:
                raise AskedWrong(f"changes: {name}: every selection has this rule")
            del by_name[name]
            continue
        if rule.keep is not None:
            raise AskedWrong(f"changes: {name}: keep chooses one of each cluster; it has no bounds")
        own = _over(rule.own, change, name)
        sources = dict(rule.sources)
        for source, bounds in _table(change.get("sources", {}), f"changes: {name}: sources").items():
            where = f"{name}: {source}"
            sources[source] = _over(sources.get(source, own), _table(bounds, f"changes: {where}"), where)
        by_name[name] = replace(rule, own=own, sources=tuple(sources.items()))
    return replace(policy, rules=tuple(by_name[rule.name] for rule in policy.rules if rule.name in by_name))


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise AskedWrong(f"{where}: no table of changes")
    return value


def _over(bounds: Bounds, change: Mapping[str, Any], where: str) -> Bounds:
    for side in SIDES:
        if side in change:
            value = change[side]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
                raise AskedWrong(f"changes: {where}: {side}: {value!r} is no number")
            if bounds.allowed:
                raise AskedWrong(f"changes: {where}: allowed is for words, min and max are for numbers")
            bounds = replace(bounds, **{side: float(value)})
    if "allowed" in change:
        words = change["allowed"]
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise AskedWrong(f"changes: {where}: allowed: give one word at least")
        if bounds.min is not None or bounds.max is not None:
            raise AskedWrong(f"changes: {where}: allowed is for words, min and max are for numbers")
        bounds = replace(bounds, allowed=tuple(words))
    low, high = bounds.min, bounds.max
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
        raise AskedWrong(f"changes: {where}: nothing lies between min {low:g} and max {high:g}")
    return bounds


def differences(before: Policy, after: Policy) -> Iterator[tuple[str, str | None, str, Any, Any]]:
    """(rule, source or None, min, max, allowed or "off", what it was, what it is) of all that differs."""
    rules = {rule.name: rule for rule in after.rules}
    for rule in before.rules:
        now = rules.get(rule.name)
        if now is None:
            yield rule.name, None, "off", False, True
            continue
        pairs: Sequence[tuple[str | None, Bounds, Bounds]] = [
            (None, rule.own, now.own),
            *((source, rule.of(source), bounds) for source, bounds in now.sources),
        ]
        for source, was, is_now in pairs:
            for key in (*SIDES, "allowed"):
                if getattr(was, key) != getattr(is_now, key):
                    yield rule.name, source, key, getattr(was, key), getattr(is_now, key)
