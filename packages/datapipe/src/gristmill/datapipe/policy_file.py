"""Policies as TOML files: rules, edits and how to measure, standing on the files that `base` names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.base.config import from_mapping, load_toml
from gristmill.base.errors import UsageError
from gristmill.datapipe.policy import QUARANTINED, Policy, Rule


def load_policy(path: Path) -> Policy:
    """The policy of a TOML file, on those that it names in `base` (paths from its own folder).

    The rules of the bases come first; a rule of a name that a base has already takes its place there.

    Raises:
        UsageError: a file is missing or wrong, or stands on itself.
    """
    layers = _on_bases(path, ())
    return read_policy({**layers, "name": layers.get("name") or path.stem}, str(path))


def read_policy(values: Mapping[str, Any], where: str) -> Policy:
    """A policy from what a TOML file holds.

    Raises:
        UsageError: it names unknown keys or wrong values, a rule that asks nothing or contradicts itself, or two rules
            of one name.
    """
    for rule in values.get("rule", []):
        for bounds in (rule, *(rule.get("sources") or {}).values()):
            for key in ("min", "max"):
                _check_threshold(bounds.get(key), f"{where}: rule {rule.get('name')!r}: {key}")
    policy = from_mapping(Policy, values, where)
    seen: set[str] = set()
    for rule in policy.rule:
        if rule.name in seen:
            raise UsageError(f"{where}: two rules are named {rule.name!r}; a reason must name one")
        _check_rule(rule, f"{where}: rule {rule.name!r}")
        seen.add(rule.name)
    for edit in policy.edit:
        if "." not in edit.column:
            raise UsageError(f"{where}: edit: column {edit.column!r} should read annotation.column")
    return policy


def _check_threshold(value: object, where: str) -> None:
    if isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
        raise UsageError(f"{where}: {value!r} is no threshold; write a number")
    if isinstance(value, str) and not value.startswith("@"):
        raise UsageError(f"{where}: {value!r} is neither a number nor @NAME of a calibrated one")


def _check_rule(rule: Rule, where: str) -> None:
    bounded = [rule, *rule.sources.values()]
    if rule.name == QUARANTINED:
        raise UsageError(f"{where}: so are documents called that a stage cannot handle; give the rule another name")
    if not rule.column:
        raise UsageError(f"{where} has no column")
    asks = any(b.min is not None or b.max is not None or b.allowed for b in bounded)
    if rule.keep is not None:
        if asks or rule.sources:
            raise UsageError(f"{where}: keep chooses one of each cluster; bounds need a rule of their own")
        if "." in rule.column:
            annotation = rule.column.partition(".")[0]
            raise UsageError(f'{where}: keep chooses by the clusters of an annotation: write column = "{annotation}"')
        return
    if not asks:
        raise UsageError(f"{where} needs min, max, allowed or keep")
    if "." not in rule.column:
        raise UsageError(f"{where}: column {rule.column!r} should read annotation.column")
    for bounds in bounded:
        low, high = bounds.min, bounds.max
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
            raise UsageError(f"{where}: nothing lies between min {low:g} and max {high:g}")
        if bounds.allowed and (low is not None or high is not None):
            raise UsageError(f"{where}: allowed is for words, min and max are for numbers")


def _on_bases(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The file's tables over those of its bases."""
    if path.resolve() in above:
        raise UsageError(f"{path}: a policy cannot be its own base")
    values = load_toml(path)
    bases = values.pop("base", [])
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UsageError(f'{path}: base: write a list of files, as base = ["gopher.toml"]')
    for key in ("rule", "edit"):
        items = values.get(key, [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UsageError(f"{path}: {key}: write a table [[{key}]] for each")
    if not isinstance(values.get("measure", {}), dict):
        raise UsageError(f"{path}: measure: write tables, as [measure.heuristics]")
    merged: dict[str, Any] = {"rule": [], "edit": [], "measure": {}}
    for base in bases:
        merged = _over(_on_bases(path.parent / base, (*above, path.resolve())), merged)
    merged.pop("name", None)
    return _over(values, merged)


def _over(layer: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    mine = {rule.get("name"): rule for rule in layer.get("rule", [])}
    known = {rule.get("name") for rule in below["rule"]}
    rules = [mine.get(rule.get("name"), rule) for rule in below["rule"]]
    rules += [rule for rule in layer.get("rule", []) if rule.get("name") not in known]
    edits = [*below["edit"], *(edit for edit in layer.get("edit", []) if edit not in below["edit"])]
    measure = _merged(layer.get("measure", {}), below["measure"])
    return {**below, **layer, "rule": rules, "edit": edits, "measure": measure}


def _merged(layer: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Tables within tables, the layer's values over those below."""
    both = {key: _merged(layer[key], value) for key, value in below.items() if _tables(layer.get(key), value)}
    return {**below, **layer, **both}


def _tables(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)
