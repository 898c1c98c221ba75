"""audit.json in words and tables: one text, for the terminal and for audit.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gristmill.scorer.audit.injections import CONTROL
from gristmill.scorer.audit.run import QUALITY
from gristmill.scorer.markdown import name as _name
from gristmill.scorer.markdown import number as _number
from gristmill.scorer.markdown import share as _share
from gristmill.scorer.markdown import table as _table

CONSTANT = 0.9  # of one level: a head has nothing to learn
HALO = 0.95


def report(audit: Mapping[str, Any]) -> str:
    """Markdown of an audit (the content of audit.json), tables padded so that they read as they are."""
    lines = ["# Audit of an oracle", ""]
    lines += [
        "Intervals are 95%, by bootstrap over the documents audited, which were drawn by strata and are not weighted."
    ]
    for name, found in audit["rubrics"].items():
        lines += ["", f"## Rubric {_name(name)} (`{found['rubric_sha'][:12]}`)"]
        for side in ("a", "b"):
            if found.get(side):
                lines += _grades(side.upper(), found[side])
        for key, part in (
            ("agreement", _agreement), ("stored_repeats", _stored), ("retest", _retest), ("order", _order),
            ("injections", _injections),
        ):  # fmt: skip
            if found.get(key):
                lines += part(found[key])
    return "\n".join(lines) + "\n"


def _grades(side: str, found: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, spread in found["spread"].items():
        length, source = found["length"][name], found["source"][name]
        rows.append(
            [
                name, str(spread["n"]), _number(spread["mean"]), _number(spread["sd"]), _share(spread["commonest"]),
                _value(length["slope"]), _value(length["within_sources"]), _value(source["explained"]),
            ]
        )  # fmt: skip
    header = [
        "dimension", "n", "mean", "sd", "commonest level", "levels per doubling of length", "within sources",
        "explained by source",
    ]  # fmt: skip
    lines = ["", f"### Grades {side}: {_name(found['engine'])}", ""]
    lines += [f"{found['documents']} documents, {found['failed']} of them with a failure (never a number).", ""]
    lines += [*_table(header, rows), ""]
    effects = found["source"][QUALITY]["effects"]
    if len(effects) > 1:
        ordered = sorted(effects.items(), key=lambda item: -item[1]["value"])
        lines += _table(
            ["source", "n", "quality less the mean of all"],
            [[_name(source), str(effect["n"]), _value(effect)] for source, effect in ordered],
        )
    for name, spread in found["spread"].items():
        if spread["commonest"] is not None and spread["commonest"] > CONSTANT:
            lines += ["", f"Nearly constant: {name}, {spread['commonest']:.0%} on one level. Heads cannot learn it."]
    for pair, value in found["correlations"].items():
        if value is not None and abs(value) > HALO:
            lines += ["", f"Halo: {pair.replace(' ', ' and ')} rank documents alike (Spearman {value:.2f})."]
    return lines


def _agreement(found: Mapping[str, Any]) -> list[str]:
    names = ("qwk", "alpha", "alpha_ordinal", "spearman", "shift", "exact", "within_one")
    rows = [
        [name, str(values["n"]), *(_value(values[key]) for key in names)]
        for name, values in found["dimensions"].items()
    ]
    header = ["dimension", "n", "QWK", "alpha", "ordinal alpha", "Spearman", "shift B - A", "exact", "within one"]
    lines = ["", f"### A against B: {found['documents']} documents that both graded", "", *_table(header, rows), ""]
    lines += ["Quality counts in tenths. What the difference B - A depends on:", ""]
    rows = [
        [name, _value(found["length"][name]["slope"]), _value(found["length"][name]["within_sources"]),
         _value(found["source"][name]["explained"])]
        for name in found["length"]
    ]  # fmt: skip
    return lines + _table(["dimension", "per doubling of length", "within sources", "explained by source"], rows)


def _retest(found: Mapping[str, Any]) -> list[str]:
    title = f"### Asked {found['times']} times, at temperature {found['temperature']:g}"
    return ["", title, "", *_reliability(found["dimensions"])]


def _stored(found: Mapping[str, Any]) -> list[str]:
    return ["", "### Documents of A that were graded more than once", "", *_reliability(found["dimensions"])]


def _reliability(dimensions: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, str(r["n"]), _value(r["r"]), _number(r["r_k"]["3"]), _number(r["ceiling"]), _number(r["spread"])]
        for name, r in dimensions.items()
    ]
    header = ["dimension", "n", "r of one grade", "r of the mean of 3", "ceiling of a head", "sd of one document"]
    return _table(header, rows)


def _order(found: Mapping[str, Any]) -> list[str]:
    permuted, lines = found["permuted"], ["", f"### Order, {found['documents']} documents", ""]
    if permuted is None:
        lines += ["This form of request lists anchors in one order only: nothing to permute.", ""]
    else:
        lines += [
            f"{found['permutations']} other orders of anchors and, in json form, of dimensions; shifts in levels."
        ]
        lines += [""]
    rows = [
        [name, _value(permuted[name]) if permuted else "-", _value(turned["absolute"]), _value(turned["shift"])]
        for name, turned in found["turned"].items()
    ]
    lines += _table(["dimension", "other order, mean |shift|", "scale turned, mean |shift|", "mean shift"], rows)
    return lines + (["", *_reliability(found["reliability"])] if found["reliability"] else [])


def _injections(found: Mapping[str, Any]) -> list[str]:
    ordered = sorted(found["attacks"], key=lambda one: -(one["shift"]["value"] or 0.0))
    rows = [
        [_name(one["family"]), _name(one["name"]), str(one["n"]), _value(one["shift"]), _value(one["beyond_control"]),
         _share(one["moved"]["value"]), _largest(one["dimensions"]), _share(one["flagged"]), _share(one["cut"])]
        for one in ordered
    ]  # fmt: skip
    header = [
        "family", "attack", "n", "shift", "beyond control", "moved a level", "most on", "flagged", "cut",
    ]  # fmt: skip
    attacks = sum(one["family"] != CONTROL for one in found["attacks"])
    return [
        "", f"### Injections: {attacks} attacks on {found['documents']} documents", "",
        "Shift: levels towards the better end, mean over dimensions by their weights. Beyond control: less what "
        "harmless words at the same place do.",
        "",
        *_table(header, rows),
        "",
        f"The eye for such text (scorer/injections.py) flags {found['flagged_attacks']:.0%} of attacked documents and "
        f"{found['flagged_clean']:.1%} of the same documents without attack.",
    ]  # fmt: skip


def _largest(dimensions: Mapping[str, Any]) -> str:
    known = {name: one["value"] for name, one in dimensions.items() if one["value"] is not None}
    if not known:
        return "-"
    name = max(known, key=lambda key: known[key])
    return f"{name} {known[name]:+.2f}"


def _value(found: Mapping[str, Any]) -> str:
    interval = found["ci95"]
    return _number(found["value"]) + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
