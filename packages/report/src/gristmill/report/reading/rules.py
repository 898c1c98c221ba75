"""What the policy, as it was applied, asks of a document: rule by rule, with the bounds that each source meets.

Bounds are compared as the policy does it: what was stored in 32 bits in 32 bits, and a source without bounds of a rule
passes it whatever was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gristmill.report.columns import Array, Column, Labels, Rows
from gristmill.report.desk.policy import Rule, parsed
from gristmill.report.heads import ALL
from gristmill.report.heads.scores import taus_of

NO_RULE = Rule("", "")
CALIBRATED = (("probe", "tau_drop"), ("quality", "tau_keep"))


def thresholds(policy: Mapping[str, Any], calibration: Mapping[str, Any], rows: Rows) -> list[dict[str, Any]]:
    """Numeric bounds that decide: {"name", "rule", "column", "side": min|max, "default", "sources": {name: value}}.

    Bounds come from the policy's rules; tau_drop (on the probe's score) and tau_keep (on the quality) from the
    calibration where no rule already bounds that column.
    """
    found: list[dict[str, Any]] = []
    for rule in policy.get("rules") or []:
        column = rows.resolve(str(rule.get("column", "")))
        for side in ("min", "max"):
            default = _number(rule.get(side))
            sources = {name: _number(own.get(side)) for name, own in (rule.get("sources") or {}).items()}
            bounded = default is not None or any(value is not None for value in sources.values())
            if column is not None and column.kind == "number" and bounded:
                found.append(
                    _bound(f"{rule['name']}: {column.label} {side}", rule["name"], column, side, default, sources)
                )
    bounded = {(bound["folder"], bound["column"]) for bound in found}
    for head, key in CALIBRATED:
        column = rows.resolve(f"scores.{head}")
        sources = {name: _number(group.get(key)) for name, group in calibration.items() if name != ALL}
        default = _number((calibration.get(ALL) or {}).get(key)) if key != "tau_drop" else None  # as of taus_of
        known = default is not None or any(value is not None for value in sources.values())
        known = known and (key != "tau_drop" or _judged(rows))
        if column is not None and (column.folder, head) not in bounded and known:
            found.append(_bound(f"{key}: {column.label}", None, column, "min", default, sources))
    return found


def checks(
    policy: Mapping[str, Any], calibration: Mapping[str, Any], sources: Sequence[str], rows: Rows
) -> list[dict[str, Any]]:
    """What the policy asks of a document, rule by rule, with the bounds that each source meets.

    {"name", "key": folder/column, "label", "keep", "missing", "single", "sources": {source: {"min", "max",
    "allowed"}}}; a source of which a rule asks nothing is left out, one whose threshold calibration did not find has no
    bounds, but has to be measured. Of a duplicates' rule (`keep` says which member
    stays) the size of the cluster is shown. Where the policy leaves the probe alone, tau_drop comes last: it ends the
    scoring early, where there is a judge to be spared.
    """
    found: list[dict[str, Any]] = []
    written = {rule.name: rule for rule in parsed(policy).rules} if policy else {}
    for rule in policy.get("rules") or []:
        duplicates = rule.get("keep") is not None
        column = rows.resolve(f"{rule.get('column')}.size" if duplicates else str(rule.get("column", "")))
        if column is None:
            continue
        applied = rule.get("sources") or {}
        bounds = {name: {} if duplicates else _asked(applied.get(name, rule)) for name in sources}
        measured = {name for name in applied if written.get(rule["name"], NO_RULE).of(name).ask()}
        found.append(
            {
                "name": rule["name"],
                "key": f"{column.folder}/{column.name}",
                "label": column.label,
                "keep": rule.get("keep"),
                "missing": rule.get("missing") or "drop",
                "single": column.single,
                "sources": {name: own for name, own in bounds.items() if own or duplicates or name in measured},
            }
        )
    probe = rows.resolve("scores.probe")
    key = "annotations/scores/probe"
    if probe is not None and key not in [check["key"] for check in found] and _judged(rows):
        drops = {name: _number(taus_of(calibration, name)["tau_drop"]) for name in sources}
        own = {name: {"min": drop} for name, drop in drops.items() if drop is not None}
        last = {"name": "tau_drop", "key": key, "label": probe.label, "keep": None, "missing": "keep"}
        found += [{**last, "single": probe.single, "sources": own}][: len(own)]
    return found


def edits(policy: Mapping[str, Any], rows: Rows) -> list[dict[str, Any]]:
    """What the policy cuts or replaces before texts are tokenised: {"at": the column of spans, "title", "sources"}."""
    columns = {column.label: column for column in rows.spans}
    written = (policy.get("policy") or {}).get("edit") or []
    return [
        {
            "at": columns[edit["column"]],
            "title": f"{edit['column']}: {'replaced by ' + edit['replace'] if edit.get('replace') else 'cut'}",
            "sources": list(edit.get("sources") or []),
        }
        for edit in written
        if edit.get("column") in columns
    ]


def meets(rule: Mapping[str, Any], source: Any, value: Any) -> bool:
    """Whether a document passes the bounds of its source; which duplicate stays is not for its own value to tell."""
    bounds = rule["sources"].get(source)
    if rule["keep"] is not None or bounds is None:
        return True
    if value is None:
        return rule["missing"] == "keep"
    if "allowed" in bounds:
        return value in bounds["allowed"]
    low, high = (_rounded(bounds.get(side), rule["single"]) for side in ("min", "max"))
    return (low is None or value >= low) and (high is None or value <= high)


def failing(rule: Mapping[str, Any], rows: Rows, source: Labels, reason: Labels) -> Array:
    """bool [rows]: which documents do not meet the rule, whatever dropped them; of duplicates, which it dropped."""
    if rule["keep"] is not None:
        codes, names = reason
        return codes == (names.index(rule["name"]) if rule["name"] in names else -2)
    column = next(one for one in rows.columns if f"{one.folder}/{one.name}" == rule["key"])
    folder, name = column.folder, column.name
    labels = rows.labels(folder, name) if column.kind == "label" else None
    values = rows.numbers(folder, name) if labels is None else np.empty(0)
    absent = rows.absent(folder, name) if labels is None else np.empty(0)  # NaN is a value, which lies in no bounds
    failed = np.zeros(rows.total, dtype=bool)
    for code, label in enumerate(source[1]):
        bounds = rule["sources"].get(label)
        if bounds is None:
            continue
        if labels is not None:
            allowed = [at for at, one in enumerate(labels[1]) if one in bounds.get("allowed", labels[1])]
            missing, passed = labels[0] < 0, np.isin(labels[0], allowed)
        else:
            low, high = (_rounded(bounds.get(side), rule["single"]) for side in ("min", "max"))
            missing, passed = absent, np.ones(rows.total, dtype=bool)
            passed &= True if low is None else values >= low
            passed &= True if high is None else values <= high
        failed |= (source[0] == code) & np.where(missing, rule["missing"] != "keep", ~passed)
    return failed


def limits(bound: Mapping[str, Any], source: Labels) -> Array:
    """float64 [rows] of one of thresholds(); NaN where nothing is asked of the row's source."""
    values = [*(bound["sources"].get(name, bound["default"]) for name in source[1]), bound["default"]]
    return np.array(
        [np.nan if value is None else _rounded(value, bound["single"]) for value in values], dtype=np.float64
    )[source[0]]


def _bound(
    name: str, rule: str | None, column: Column, side: str, default: Any, sources: dict[str, Any]
) -> dict[str, Any]:
    return {"name": name, "rule": rule, "folder": column.folder, "column": column.name, "label": column.label,
            "side": side, "default": default, "sources": sources, "single": column.single}  # fmt: skip


def _asked(bounds: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds that ask something: a number, or a list of allowed labels that is not empty."""
    return {key: value for key in ("min", "max", "allowed") if (value := bounds.get(key)) not in (None, [], ())}


def _rounded(bound: float | None, single: bool) -> float | None:
    return float(np.float32(bound)) if single and bound is not None else bound


def _judged(rows: Rows) -> bool:
    """Whether any document has a judge's score: without a judge nothing is ended early."""
    judge = rows.resolve("scores.judge")
    return judge is not None and bool(np.isfinite(rows.numbers(judge.folder, judge.name)).any())


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
