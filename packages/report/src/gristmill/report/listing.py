"""All runs at a folder, a line each, and where the settings of its trainings differ.

A line is made from what is small: run.json, the funnel, and the two ends of a training's log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from gristmill.base.errors import GristmillError
from gristmill.base.files import read_json
from gristmill.report import comparison
from gristmill.report.asked import Asked
from gristmill.report.columns import NotThere
from gristmill.report.live_run import LiveFolder
from gristmill.report.run_folder import NOT_AS_WRITTEN
from gristmill.report.runs import Run
from gristmill.report.training import trainings

FACTS = ("status", "started_at", "finished_at", "parameters", "active_parameters", "tokens", "seconds", "seed")
HEAD, TAIL = 1 << 20, 1 << 22  # bytes of a log that are read at its ends: a step has ten thousand, or less
SETTINGS_SHOWN = 300


def runs(folder: LiveFolder, _asked: Asked) -> dict[str, Any]:
    found = folder.runs()
    inside = trainings.of_runs(found)
    return {
        "folder": folder.folder.resolve().name,
        "runs": [_line(run) for run in found.values()],
        "trainings": list(inside),
    }


def settings(folder: LiveFolder, asked: Asked) -> dict[str, Any]:
    """Parameter: runs. Of their configurations, the settings that are not the same in all.

    Raises:
        NotThere: fewer than two trainings.
    """
    chosen = trainings.chosen(trainings.of_runs(folder.runs()), asked)
    if len(chosen) < 2:
        raise NotThere("a second training", "trainer run")
    told = {name: dict(_leaves("", trainings.card(path).get("config") or {})) for name, path in chosen.items()}
    keys = dict.fromkeys(key for one in told.values() for key in one if key != "output")
    differ = [key for key in keys if len({repr(one.get(key)) for one in told.values()}) > 1]
    rows = [
        {"setting": key, "values": [None if key not in one else str(one[key])[:200] for one in told.values()]}
        for key in differ[:SETTINGS_SHOWN]
    ]
    return {"names": list(chosen), "rows": rows, "same": len(keys) - len(differ), "more": len(differ) - len(rows)}


def compared(folder: LiveFolder, _asked: Asked) -> dict[str, Any]:
    """What `trainer compare --mixtures` wrote into this folder.

    Raises:
        NotThere: no such comparison.
    """
    return comparison.read_file(folder.folder / "comparison.json", "comparison.json", "trainer compare --mixtures")


def _line(run: Run) -> dict[str, Any]:
    line: dict[str, Any] = {"key": run.key, "kind": run.kind, "name": run.folder.resolve().name, "error": None}
    try:
        card = trainings.card(run.folder)
        line |= {fact: card.get(fact) for fact in FACTS} | {"name": card.get("name") or line["name"]}
        line |= _trained(run.folder, card) if run.kind == "training" else _kept(run.folder)
    except (GristmillError, *NOT_AS_WRITTEN) as failure:
        line["error"] = str(failure)
    return line


def _kept(folder: Path) -> dict[str, Any]:
    """Of a pipeline's run, what its policy kept. Its tokens are those of the documents, not those trained on."""
    told: dict[str, Any] = {"tokens": None, "trainings": len(list((folder / "training").glob("*/events.jsonl")))}
    path = folder / "selection" / "funnel.json"
    if path.exists():
        funnel = read_json(path)
        last = (funnel["rules"] or ["(all)"])[-1]
        for unit in ("documents", "tokens"):
            for name, rule in (("", "(all)"), ("_kept", last)):
                told[f"{unit}{name}"] = sum(row[unit] for row in funnel["rows"] if row["rule"] == rule)
    return told


def _trained(folder: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / "events.jsonl"
    state = path.stat()
    first, last, validation = _ends(path, state.st_size, state.st_mtime_ns)
    evaluation = read_json(folder / "evaluation.json") if (folder / "evaluation.json").exists() else validation
    return {
        "started_at": card.get("started_at") or _moment(first.get("time")),
        "logged_at": _moment(last.get("time")),
        "step": last.get("step", card.get("step")),
        "steps": card.get("steps"),
        "trained": last.get("tokens", card.get("tokens")),
        "tokens": None,
        "loss": last.get("loss"),
        "bits_per_byte": evaluation.get("bits_per_byte"),
        "measured": "evaluation" if evaluation is not validation else "own validation",
        "cost": last.get("cost"),
    }


@lru_cache(maxsize=1024)
def _ends(path: Path, size: int, _changed: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(first step, last step, last validation) of a log, as far as its ends tell; empty where they do not."""
    with path.open("rb") as file:
        head = file.read(HEAD).split(b"\n")[:-1]
        file.seek(max(size - TAIL, 0))
        tail = file.read(TAIL).split(b"\n")[:-1]
    return _event(head, "step"), _event(tail[::-1], "step"), _event(tail[::-1], "validation")


def _event(lines: list[bytes], kind: str) -> dict[str, Any]:
    for line in lines:
        if b'"' + kind.encode() + b'"' not in line[:64]:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("type") == kind:
            return event
    return {}


def _moment(seconds: Any) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{name}.{key}" if name else str(key), inner)]
    return [(name, value)]
