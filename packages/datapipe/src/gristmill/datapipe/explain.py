"""Why one document was kept or dropped: every rule with its value against the bounds, and every edit of its text."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.base.errors import GristmillError
from gristmill.base.files import read_json
from gristmill.base.terminal import shown
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.policy import LOOKED_AT
from gristmill.datapipe.workflow.stage import Inputs, open_run

SNIPPET = 60
"""Characters of a cut or masked span that are shown."""
EDITS_SHOWN = 20
DOCUMENTS_SHOWN = 5


def explain(run: Path, document: str) -> list[str]:
    """The verdict, then a line per rule: passed, failed, or the one that decided.

    Raises:
        GristmillError: no document has that id, or the run has no selection yet.
    """
    if not (run / "selection" / "policy.json").exists():
        raise GristmillError(f"{run}: no selection yet; run the pipeline first")
    policy = read_json(run / "selection" / "policy.json")
    if "policy" not in policy:
        raise GristmillError(f"{run}: its selection is of an earlier version; run the pipeline again")
    inputs = open_run(run)
    found = [
        (part, int(row))
        for part in inputs.parts["documents"]
        for row in np.flatnonzero(pc.equal(inputs.part("documents", part, ("id",))["id"], document).to_numpy())
    ]
    if not found:
        raise GristmillError(f"{run}: no document has the id {shown(document)!r}")
    lines = [line for part, row in found[:DOCUMENTS_SHOWN] for line in _row(inputs, policy, part, row)]
    return [*lines, f"{len(found)} documents have this id"] if len(found) > 1 else lines


def _row(inputs: Inputs, policy: Mapping[str, Any], part: str, row: int) -> list[str]:
    @functools.cache
    def values(node: str) -> dict[str, Any]:
        if node not in inputs.folders:
            raise GristmillError(f"{inputs.folders['documents'].parent}: the run has no annotation {node!r}")
        return inputs.part(node, part).slice(row, 1).to_pylist()[0]

    def told_of(column: str) -> str:
        annotation, _, name = column.partition(".")
        value = values(annotation)[name]
        if value is not None:
            return _number(value)
        selection = LOOKED_AT.get(annotation)
        if selection not in inputs.folders or values(selection)["keep"]:
            return "no value"
        return f"not measured, as rule {values(selection)['reason']!r} drops the document before"

    document, chosen = values("documents"), values("selection")
    verdict = "kept" if chosen["keep"] else f"dropped by rule {chosen['reason']!r}"
    lines = [
        f"{shown(document['id'])}: {verdict}",
        f"  source {shown(document['source'])}, {shown(document['file'])} row {document['row']}",
    ]
    for rule in policy["rules"]:
        annotation, _, name = rule["column"].partition(".")
        found = values(annotation)
        mark = "drops" if rule["name"] == chosen["reason"] else "ok"
        if rule["keep"] is not None:
            told = f"cluster {found['cluster']} of {found['size']}, keeps the {rule['keep']}"
        else:
            bounds = rule["sources"].get(document["source"], {})
            if mark == "ok" and not _within(found[name], bounds, rule["missing"]):
                mark = "fails"  # an earlier rule had dropped it already
            told = f"{rule['column']} = {told_of(rule['column'])} ({_bounds(bounds)})"
        lines.append(f"  {mark:<5}  {rule['name']}: {told}")
    for edit in policy["policy"]["edit"]:
        if not edit["sources"] or document["source"] in edit["sources"]:
            annotation, _, name = edit["column"].partition(".")
            spans = values(annotation)[name]
            if spans is None:
                lines.append(f"  edit   {edit['column']}: {told_of(edit['column'])}")
            else:
                lines += _edits(edit, document["text"].encode(), spans)
    return lines


def _within(value: Any, bounds: Mapping[str, Any], missing: str) -> bool:
    low, high, allowed = bounds.get("min"), bounds.get("max"), bounds.get("allowed")
    if low is None and high is None and not allowed:
        return True
    if value is None:
        return missing == "keep"
    if isinstance(value, str):
        return not allowed or value in allowed
    return (low is None or value >= low or _number(value) == _number(low)) and (
        high is None or value <= high or _number(value) == _number(high)
    )


def _bounds(bounds: Mapping[str, Any]) -> str:
    told = ", ".join(f"{key} {_number(value)}" for key, value in bounds.items() if value not in (None, [], ()))
    return told or "no bound"


def _number(value: Any) -> str:
    """As short as a 32-bit number deserves."""
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=True)


def _edits(edit: Mapping[str, Any], text: bytes, spans: list[int]) -> list[str]:
    deed = f"replaced by {edit['replace']!r}" if edit["replace"] else "cut"
    lines = [f"  edit   {edit['column']}: {len(spans) // 2} spans {deed}"] if spans else []
    for start, end in list(zip(spans[::2], spans[1::2], strict=True))[:EDITS_SHOWN]:
        piece = text[start:end].decode(errors="replace")
        lines.append(f"           {start}-{end} {shown(piece[:SNIPPET])}{'...' if len(piece) > SNIPPET else ''}")
    return lines
