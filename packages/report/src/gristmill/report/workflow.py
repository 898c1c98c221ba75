"""How a run goes: each stage's state, progress and times, from run.json as the runner writes it, and from its ledger.

run.json tells of the present run alone. What it leaves out is told apart here: a stage that waits, one whose output is
of an earlier run, one whose output is older than what it is made of, and a runner that died without a word.
"""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gristmill.base.errors import DataError
from gristmill.base.files import fingerprint, read_json
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import NotThere
from gristmill.report.live_run import LiveRun

Panel = dict[str, Any]
SILENT_SECONDS = 60.0  # datapipe.workflow.record's: a runner writes every few seconds, this one is dead
SLOWEST = 200
OVER = ("done", "failed", "interrupted", "died")
"""What a run's status is when nobody works at it any more."""


def read(run: Path, now: datetime | None = None) -> Panel:
    """The run and its stages, in the order in which they can run. Times are seconds since the run began.

    Raises:
        NotThere: no pipeline's run.json.
    """
    path = run / "run.json"
    card = read_json(path) if path.exists() else {}
    if "nodes" not in card:
        raise NotThere("a run.json with stages", "the pipeline's runner")
    status, heard = card.get("status"), _time(card.get("updated_at"))
    if status == "running" and heard and ((now or datetime.now(UTC)) - heard).total_seconds() > SILENT_SECONDS:
        status = "died"
    began, ended = _time(card.get("started_at")), _time(card.get("finished_at")) or heard
    nodes: dict[str, Panel] = {node["name"]: node for node in card["nodes"]}
    states: dict[str, str] = {}
    for node in nodes.values():
        states[node["name"]] = _state(node, status, states, nodes)
    return {
        "status": status,
        "heard": card.get("updated_at"),
        "seconds": (ended - began).total_seconds() if began and ended else None,
        "nodes": [_told(node, states[name], began) for name, node in nodes.items()],
    }


def ask(run: LiveRun, asked: Asked) -> Panel:
    """The same, asked often while the run goes on: it costs one small file."""
    return read(run.folder)


def stage(run: LiveRun, asked: Asked) -> Panel:
    """One stage: what it is made with, where its output is, and how long each piece of its work took."""
    name = asked.text("name")
    path = run.folder / "run.json"
    nodes = {node["name"]: node for node in (read_json(path).get("nodes") or [])} if path.exists() else {}
    if name not in nodes:
        raise AskedWrong(f"name: {name!r} is no stage of this run")
    # A shuffle has two phases, each with entries of its own. A name that is no folder there is joined to no path.
    there = {entry.name for entry in (run.folder / "ledger").glob("*/")}
    phases = [one for one in (f"{name}.scattered", name) if one in there]
    identity = nodes[name].get("identity") or {}
    outputs = run.folder / "ledger" / "outputs.json"
    return {
        "name": name,
        "kind": nodes[name].get("kind"),
        "folder": read_json(outputs).get(name) if outputs.exists() else None,
        "fingerprint": fingerprint(identity) if identity else None,
        **{key: identity.get(key) for key in ("version", "config", "files", "libraries")},
        "phases": [
            {"phase": "scatter" if one != name else "gather" if len(phases) > 1 else ""}
            | run.kept(f"pieces of {one}", (f"ledger/{one}",), lambda one=one: _pieces(run.folder / "ledger" / one))
            for one in phases
        ],
    }


def every_stage(run: LiveRun) -> list[dict[str, str]]:
    """What a page that is a file asks of `stage`: all of them."""
    path = run.folder / "run.json"
    card = read_json(path) if path.exists() else {}
    return [{"name": node["name"]} for node in card.get("nodes") or []]


def _state(node: Panel, run_status: str | None, states: dict[str, str], nodes: dict[str, Panel]) -> str:
    """running, done, cached, failed, interrupted as the runner says; of those that are pending, what it does not say.

    waiting: this run will come to it. not run: it was never made. earlier: this run did not look at it, its output is
    of an earlier one. stale: the same, and something that it is made from was made again or is amiss since.
    """
    status = node.get("status")
    if status == "running" and run_status in OVER:
        return "interrupted"
    if status != "pending":
        return str(status)
    if run_status not in OVER:
        return "waiting"
    if node.get("identity") is None and not node.get("counts"):
        return "not run"
    needs = [name for name in node.get("requires") or [] if name in nodes]
    return "earlier" if all(states.get(name) in ("cached", "earlier") for name in needs) else "stale"


def _told(node: Panel, state: str, began: datetime | None) -> Panel:
    at = _time(node.get("started_at"))
    running = state == "running"
    return {
        "name": node["name"],
        "kind": node.get("kind"),
        "requires": node.get("requires") or [],
        "state": state,
        "partitions": node.get("partitions") or 0,
        "done": node.get("partitions_done") or 0,
        "cached": node.get("partitions_cached") or 0,
        "began": (at - began).total_seconds() if at and began else None,
        # What an earlier run learned stands in run.json until this one learns better.
        "seconds": None if running or not (node.get("seconds") or state == "done") else node.get("seconds"),
        "phase": node.get("phase") if running else None,
        "documents": node.get("documents") or 0,
        "rate": node.get("documents_per_second") if running else None,
        "left": node.get("eta_seconds") if running else None,
        "quarantined": node.get("quarantined") or 0,
        "counts": node.get("counts") or {},
        "error": node.get("error"),
    }


def _pieces(folder: Path) -> Panel:
    """The entries of one ledger folder: their times in all, and the slowest."""
    entries: list[Panel] = []
    for path in folder.glob("[!.]*.json"):
        try:
            entries.append({"piece": path.name.removesuffix(".json"), **read_json(path)})
        except DataError:
            if path.exists():
                raise
            # else it was forgotten meanwhile, and is made anew
    entries.sort(key=lambda entry: (-(entry.get("seconds") or 0), entry["piece"]))
    seconds = [entry.get("seconds") or 0 for entry in entries]
    shown = ("piece", "rows", "bytes", "seconds", "fingerprint", "sha256")
    return {
        "pieces": len(entries),
        "rows": sum(entry.get("rows") or 0 for entry in entries),
        "bytes": sum(entry.get("bytes") or 0 for entry in entries),
        "seconds": sum(seconds),
        "median": statistics.median(seconds) if seconds else None,
        "slowest": [{key: entry.get(key) for key in shown} for entry in entries[:SLOWEST]],
    }


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
