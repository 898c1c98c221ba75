"""The policy: an ordered list of rules over annotations. Scores are stored; only this decides. policy_file reads it.

A threshold rule keeps a document whose value lies in [min, max] or in a set; a cluster rule keeps one member of each
cluster of duplicates, among those that earlier rules kept. The first rule that fails is the reason. A threshold may
name a number that calibration found (`min = "@tau_keep"`), and each may be set apart per source. Edits name columns of
spans that are cut from the text, or replaced, before it is tokenised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.config import to_mapping
from gristmill.base.errors import GristmillError
from gristmill.datapipe.arrow import compute as pc

Threshold = float | str | None
Keep = Literal["first", "longest", "newest", "best"]
REPEATS = ("lines", "paragraphs", "substrings")
LOOKED_AT = {"semantic": "before_semantic", **dict.fromkeys(REPEATS, "unique")}
"""Annotations that are looked for only in documents of a selection: the copy that stays must not be in one that goes,
and states are expensive. See Policy.looked_at."""
UNKNOWN = {"before_semantic": (*REPEATS, "tokens", "scores", "semantic"), "unique": (*REPEATS, "tokens", "scores")}
"""Per selection, the annotations that are not known yet when it is made."""


@dataclass(frozen=True)
class Bounds:
    min: Threshold = None
    max: Threshold = None
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    name: str
    column: str = ""
    """`annotation.column`, as `heuristics.words`; or the name of a duplicates annotation, with `keep`."""
    min: Threshold = None
    max: Threshold = None
    allowed: tuple[str, ...] = ()
    keep: Keep | None = None
    """For duplicates: which member of a cluster stays."""
    missing: Literal["drop", "keep"] = "drop"
    """What becomes of a document without a value (a stage had skipped it, or an oracle did not answer)."""
    sources: dict[str, Bounds] = field(default_factory=dict)
    """Bounds that replace the rule's own for one source."""

    def reads(self) -> tuple[str, ...]:
        """Annotations whose columns decide: the rule's own, and the one that ranks a cluster's members."""
        ranks = {"longest": ("heuristics",), "best": ("scores",)}
        return (self.column.partition(".")[0], *ranks.get(self.keep or "", ()))


QUARANTINED = "quarantined"
"""What stands for a rule where a stage could not handle the document: neither kept, nor dropped by any rule."""
NO_TOKENS = Rule("no_tokens", "tokens.count", min=1.0)


@dataclass(frozen=True)
class Edit:
    column: str
    """Spans, as `pii.email` or `heuristics.c4_cut`."""
    replace: str = ""
    """What stands for each span; empty cuts it."""
    sources: tuple[str, ...] = ()
    """Only there; empty means everywhere."""


@dataclass(frozen=True)
class Policy:
    name: str
    rule: tuple[Rule, ...] = ()
    edit: tuple[Edit, ...] = ()
    measure: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How to measure an annotation where defaults will not do, as [measure.heuristics.c4] terminal = false."""

    def annotations(self) -> tuple[str, ...]:
        """Names of the annotations that the rules read."""
        return tuple(dict.fromkeys(name for rule in self.rule for name in rule.reads()))

    def edited_by(self) -> tuple[str, ...]:
        """Names of the annotations that hold the edits' spans."""
        return tuple(dict.fromkeys(edit.column.partition(".")[0] for edit in self.edit))

    def asking(self) -> Policy:
        """With the rule that every selection has: what has no tokens (an edit may have cut all) cannot be kept."""
        if any(rule.name == NO_TOKENS.name for rule in self.rule):
            return self
        return replace(self, rule=(*self.rule, NO_TOKENS))

    def all_bounds(self) -> Iterator[Bounds | Rule]:
        return (bounds for rule in self.rule for bounds in (rule, *rule.sources.values()))

    def before(self, *annotations: str) -> Policy:
        """The rules up to the first that reads any of these: what is known before expensive stages run."""
        for index, rule in enumerate(self.rule):
            if set(annotations) & set(rule.reads()):
                return Policy(self.name, self.rule[:index])
        return self

    def without(self, *annotations: str) -> Policy:
        """The rules that read none of these, wherever they stand."""
        return Policy(self.name, tuple(rule for rule in self.rule if not set(annotations) & set(rule.reads())))

    def looked_at(self, annotation: str) -> Policy:
        """The rules that say which documents are looked at for one of LOOKED_AT: all that are known by then."""
        return self.without(*UNKNOWN[LOOKED_AT[annotation]])


Column = Callable[[str, str], pa.ChunkedArray]
"""(annotation, column) -> values of all rows."""
Resolve = Callable[[str, str], float | None]
"""(name of a calibrated threshold, source) -> its value; None where there is none (the rule then passes)."""


@dataclass(frozen=True)
class Decision:
    reason: NDArray[np.int16]
    """[n] index of the first rule that dropped the document; -1 where it is kept, len(rule) where it is set aside."""
    bounds: dict[str, dict[str, Bounds]]
    """Per rule and source, the numbers that were applied."""


def decide(
    policy: Policy, sources: NDArray[np.str_], column: Column, resolve: Resolve, aside: NDArray[np.bool_] | None = None
) -> Decision:
    """Apply the rules in order to all rows at once; no rule is asked about those `aside`, nor are they of a cluster."""
    reason = np.full(len(sources), -1, np.int16)
    if aside is not None:
        reason[aside] = len(policy.rule)
    applied: dict[str, dict[str, Bounds]] = {}
    for index, rule in enumerate(policy.rule):
        alive = reason < 0
        if rule.keep is not None:
            passed = _one_of_each(rule, alive, column)
            applied[rule.name] = {}
        else:
            passed, applied[rule.name] = _within(rule, sources, column, resolve)
        reason[alive & ~passed] = index
    return Decision(reason, applied)


def _within(
    rule: Rule, sources: NDArray[np.str_], column: Column, resolve: Resolve
) -> tuple[NDArray[np.bool_], dict[str, Bounds]]:
    values = column(*rule.column.split(".", 1)).combine_chunks()
    check_type(rule, values.type)
    present = values.is_valid().to_numpy(zero_copy_only=False)
    passed = present | (rule.missing == "keep")
    applied: dict[str, Bounds] = {}
    is_text = pa.types.is_string(values.type)
    # A fifth, stored in 32 bits, is more than a fifth in 64: what was measured in 32 bits is compared in 32 bits.
    precision = np.float32 if pa.types.is_float32(values.type) else np.float64
    numbers = None if is_text else values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    for source in np.unique(sources):
        own = rule.sources.get(str(source), Bounds(rule.min, rule.max, rule.allowed))
        low, high = (_number(value, str(source), resolve) for value in (own.min, own.max))
        applied[str(source)] = Bounds(low, high, own.allowed)
        here = np.flatnonzero(sources == source)
        if own.min is None and own.max is None and not own.allowed:
            passed[here] = True  # the rule is set aside there, whatever was measured
        elif is_text:
            inside = pc.is_in(values.take(here), pa.array(own.allowed, pa.string())).to_numpy(zero_copy_only=False)
            passed[here] &= inside | ~present[here]
        else:
            assert numbers is not None
            inside = np.ones(len(here), bool)
            if low is not None:
                inside &= numbers[here] >= float(precision(low))
            if high is not None:
                inside &= numbers[here] <= float(precision(high))
            passed[here] &= inside | ~present[here]
    return passed, applied


def check_type(rule: Rule, kind: pa.DataType) -> None:
    """Raises GristmillError where the rule's bounds do not fit what its column holds."""
    all_bounds = (Bounds(rule.min, rule.max, rule.allowed), *rule.sources.values())
    if pa.types.is_string(kind):
        if any(bounds.min is not None or bounds.max is not None for bounds in all_bounds):
            raise GristmillError(f"rule {rule.name!r}: {rule.column} holds words: bound it by allowed = [...]")
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise GristmillError(f"rule {rule.name!r}: {rule.column} holds no number that could be bounded, but {kind}")
    elif any(bounds.allowed for bounds in all_bounds):
        raise GristmillError(f"rule {rule.name!r}: {rule.column} holds numbers: bound it by min and max")


def _number(value: Threshold, source: str, resolve: Resolve) -> float | None:
    return resolve(value.removeprefix("@"), source) if isinstance(value, str) else value


def _one_of_each(rule: Rule, alive: NDArray[np.bool_], column: Column) -> NDArray[np.bool_]:
    """Of each cluster's documents still alive, the one that `rule.keep` prefers; ties go to the earliest row."""
    cluster = column(rule.column, "cluster").to_numpy()
    rows = np.flatnonzero(alive)
    match rule.keep:
        case "longest":
            preference = -column("heuristics", "characters").to_numpy().astype(np.float64)
        case "best":
            quality = column("scores", "quality").combine_chunks().fill_null(-np.inf)
            preference = -quality.to_numpy(zero_copy_only=False).astype(np.float64)
        case "newest":
            created = column("documents", "created").combine_chunks().fill_null("")
            preference = -np.unique(created.to_numpy(zero_copy_only=False), return_inverse=True)[1].astype(np.float64)
        case _:
            preference = np.zeros(len(cluster))
    order = rows[np.lexsort((rows, preference[rows], cluster[rows]))]
    first = np.ones(len(order), bool)
    first[1:] = cluster[order[1:]] != cluster[order[:-1]]
    passed = np.zeros(len(cluster), bool)
    passed[order[first]] = True
    return passed


def as_json(policy: Policy, decision: Decision) -> Mapping[str, object]:
    """The policy as applied: every rule with the numbers that each source met; and the policy as it was written."""
    rules: Sequence[Mapping[str, object]] = [
        {
            "name": rule.name,
            "column": rule.column,
            "keep": rule.keep,
            "missing": rule.missing,
            "sources": {source: asdict(bounds) for source, bounds in decision.bounds[rule.name].items()},
        }
        for rule in policy.rule
    ]
    return {"name": policy.name, "rules": rules, "policy": to_mapping(policy)}
