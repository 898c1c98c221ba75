"""All runs at a folder, a line each: what their run.json says."""

from __future__ import annotations

from typing import Any

from gristmill.base.errors import GristmillError
from gristmill.base.files import read_json
from gristmill.report.asked import Asked
from gristmill.report.live_run import LiveFolder
from gristmill.report.runs import Run

FACTS = ("status", "started_at", "finished_at", "parameters", "active_parameters", "steps", "tokens", "seconds", "seed")


def runs(folder: LiveFolder, _asked: Asked) -> dict[str, Any]:
    return {"folder": folder.folder.resolve().name, "runs": [_line(run) for run in folder.runs().values()]}


def _line(run: Run) -> dict[str, Any]:
    card: dict[str, Any] = {}
    error = None
    try:
        if (run.folder / "run.json").exists():
            card = read_json(run.folder / "run.json")
    except GristmillError as failure:
        error = str(failure)
    return {
        "key": run.key,
        "kind": run.kind,
        "name": card.get("name") or run.folder.resolve().name,
        "error": error,
        **{fact: card.get(fact) for fact in FACTS},
    }
