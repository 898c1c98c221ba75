"""What the desk shows, to take away: a policy file that stands on no other, and the command that answers the same."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from gristmill.report.desk.policy import NO_TOKENS, SIDES, Bounds, Policy, Rule, differences

STANDING = Rule(NO_TOKENS, "tokens.count", Bounds(min=1.0))
"""Every selection has it, whatever its policy file says."""


def policy_file(policy: Policy, before: Policy, run: str) -> str:
    """TOML for `datapipe what-if RUN --policy FILE` and for a pipeline; what was changed stands on top."""
    changes = differences(before, policy)
    told = [f"#   {_where(rule, of, key)}: {said(was)} -> {said(now)}" for rule, of, key, was, now in changes]
    end = "with these changes:" if told else "as it is."
    lines = [f"# The policy {_text(policy.name)} of the run {_text(run)}, {end}", *told, ""]
    lines += [f"name = {_text(policy.name)}"]
    lines += [f"measure.{_key(name)} = {_value(values)}" for name, values in (policy.measure or {}).items()]
    for edit in policy.edits:
        lines += ["", "[[edit]]", *(f"{_key(key)} = {_value(value)}" for key, value in edit.items() if value)]
    for rule in policy.rules:
        if rule != STANDING:
            lines += ["", "[[rule]]", *_rule(rule)]
    return "\n".join(lines) + "\n"


def command(policy: Policy, before: Policy, run: str) -> str:
    """`datapipe what-if` with the same changes; with the exported file where a name cannot be said as RULE.KEY."""
    words = ["datapipe", "what-if", run]
    written = {rule.name: rule for rule in before.rules}
    for rule, source, key, _, now in differences(before, policy):
        names = (rule, *([source] if source is not None else []))
        if not all(re.fullmatch(r"[^\s.=][^.=]*(?<!\s)", name) for name in names):
            return shlex.join(["datapipe", "what-if", run, "--policy", "FILE"])
        if key == "off":
            words += ["--without", rule]
        elif source is None or source in dict(written[rule].sources):
            words += ["--set", f"{'.sources.'.join(names)}.{key}={_value(now)}"]
    for rule in policy.rules:  # a source that gets bounds of its own is given all of them
        for source, bounds in rule.sources:
            if source not in dict(written[rule.name].sources):
                words += [
                    part
                    for key in (*SIDES, "allowed")
                    if getattr(bounds, key) not in (None, ())
                    for part in ("--set", f"{rule.name}.sources.{source}.{key}={_value(getattr(bounds, key))}")
                ]
    return shlex.join(words)


def said(value: Any) -> str:
    """A threshold or words as a person reads them, exact."""
    if isinstance(value, bool):
        return "not asked" if value else "asked"
    return "none" if value in (None, ()) else _value(value)


def _rule(rule: Rule) -> list[str]:
    lines = [f"name = {_text(rule.name)}", f"column = {_text(rule.column)}"]
    if rule.keep is not None:
        return [*lines, f"keep = {_text(rule.keep)}", *_missing(rule)]
    lines += [f"{key} = {_value(value)}" for key, value in _bounds(rule.own).items()]
    own = [f"sources.{_key(source)} = {_value(_bounds(bounds))}" for source, bounds in rule.sources]
    return [*lines, *_missing(rule), *own]


def _missing(rule: Rule) -> list[str]:
    return [] if rule.missing == "drop" else [f"missing = {_text(rule.missing)}"]


def _bounds(bounds: Bounds) -> dict[str, Any]:
    return {key: value for key in (*SIDES, "allowed") if (value := getattr(bounds, key)) not in (None, ())}


def _where(rule: str, source: str | None, key: str) -> str:
    names = [_key(rule)] if source is None else [_key(rule), "sources", _key(source)]
    return ".".join(names if key == "off" else [*names, key])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None)
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    return _text(str(value))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    """A JSON string is one of TOML, but that TOML wants DEL spelt, too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
