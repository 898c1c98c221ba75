"""Why one document was kept or dropped: every rule with its value against the bounds, and every edit of its text.

Of one that is in quarantine: which stage could not handle it, or why it was not read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.base.errors import GristmillError
from gristmill.base.terminal import shown
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.policy import LOOKED_AT, QUARANTINED
from gristmill.datapipe.select import written_policy
from gristmill.datapipe.workflow.quarantine import listing, marks_of
from gristmill.datapipe.workflow.stage import Inputs, open_run

SNIPPET = 60
"""Characters of a cut or masked span that are shown."""
EDITS_SHOWN = 20
DOCUMENTS_SHOWN = 5


def explain(run: Path, document: str) -> list[str]:
    """The verdict, then a line per rule: passed, failed, or the one that decided; or why it is in quarantine.

    Raises:
        GristmillError: no document has that id, or the run has no selection yet.
    """
    policy = written_policy(run)
    inputs = open_run(run)
    found = [
        (part, int(row))
        for part in inputs.parts["documents"]
        for row in np.flatnonzero(pc.equal(inputs.part("documents", part, ("id",))["id"], document).to_numpy())
    ]
    if not found:
        if unread := _unread(run, document):
            return unread
        raise GristmillError(f"{run}: no document has the id {shown(document)!r}")
    lines = [line for part, row in found[:DOCUMENTS_SHOWN] for line in _row(inputs, policy, part, row)]
    return [*lines, f"{len(found)} documents have this id"] if len(found) > 1 else lines


def _unread(run: Path, document: str) -> list[str]:
    """What ingest says of a row by its file and number, which make the id where a row has none; or of rows that begin
    with this id in quotes: what could not be read may have no id."""
    quoted, lines = [json.dumps(document, ensure_ascii=ascii) for ascii in (True, False)], []
    for path in sorted((run / "quarantine").glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for entry in map(json.loads, file):
                place = f"{entry['file']}:{entry['row']}"
                if document == place or any(name in entry["sample"] for name in quoted):
                    detail = f" ({shown(entry['detail'])})" if entry["detail"] else ""
                    lines.append(f"{shown(document)}: quarantined, not read: {shown(entry['reason'])}{detail}")
                    lines.append(f"  {shown(place)}, in {shown(path)}")
                    if len(lines) >= 2 * DOCUMENTS_SHOWN:
                        return lines
    return lines


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
    set_aside = chosen["reason"] == QUARANTINED
    verdict = "kept" if chosen["keep"] else QUARANTINED if set_aside else f"dropped by rule {chosen['reason']!r}"
    lines = [
        f"{shown(document['id'])}: {verdict}",
        f"  source {shown(document['source'])}, {shown(document['file'])} row {document['row']}",
    ]
    if set_aside:
        return [
            *lines,
            *_marks(inputs, part, row, document["id"]),
            "  no rule was asked: what was measured is not all of this document",
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


def _marks(inputs: Inputs, part: str, row: int, document: str) -> list[str]:
    """Which stages could not handle the document, and where their tracebacks are."""
    aligned = [name for name, parts in inputs.parts.items() if parts == inputs.parts["documents"]]
    reasons = [marks_of(inputs.folders[name] / part).get(row) for name in aligned]
    lines = [f"  {reason}" for reason in dict.fromkeys(reasons) if reason is not None]
    for folder in sorted((inputs.folders["documents"].parent / "quarantine").glob("*/")):
        path = listing(folder, part)
        if path.exists() and any(json.loads(line).get("id") == document for line in path.open(encoding="ascii")):
            lines.append(f"  traceback in {shown(path)}")
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
