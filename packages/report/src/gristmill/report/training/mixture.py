"""What a training read of each source against what its mixture wanted, how often it read it, and what is left.

Wanted is what run.json's plan says; read is what the steps of events.jsonl told, one by one. Neither is worked out from
the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gristmill.report.asked import Asked
from gristmill.report.columns import Array, NotThere
from gristmill.report.training.curves import axis_of
from gristmill.report.training.log import TrainingLog, reading
from gristmill.report.training.thinning import evenly
from gristmill.report.training.trainings import Trainings, card, chosen

POINTS, RECENT = 240, 50  # of a curve; a share "of late" looks back on this part of the logged steps
READ = "tokens_by_source/"


def mixtures(trainings: Trainings, asked: Asked) -> dict[str, Any]:
    """Parameter: runs."""
    found = [{"name": name, **told} for name, folder in chosen(trainings, asked).items() if (told := of_run(folder))]
    if not found:
        raise NotThere("plan in a training's run.json", "trainer run")
    return {"runs": found}


def of_run(folder: Path) -> dict[str, Any] | None:
    """None: its run.json has no plan."""
    about = card(folder)
    plan = about.get("plan")
    if not isinstance(plan, dict) or not plan.get("sources"):
        return None
    names = [str(source["source"]) for source in plan["sources"]]
    config = about.get("config") or {}
    start = int(config.get("first_sequence") or 0) * int((config.get("batch") or {}).get("sequence") or 0)
    with reading(folder) as log:
        tokens = axis_of(log, "tokens")
        read, recorded = _read(log, names)
        seen = int(tokens[-1]) if len(tokens) else 0
        wanted = _wanted(plan, names, start + tokens) - _wanted(plan, names, np.array([float(start)]))
        whole = recorded == log.steps.count and recorded > 0
        return {
            "mixture": plan.get("mixture"),
            "packing": plan.get("packing"),
            "tokens": seen,
            "budget": int(plan["tokens"]) - start,
            "steps": log.steps.count,
            "recorded": recorded,
            "phases": [
                {"name": phase["name"], "from": int(phase["tokens_before"]), "shares": _shares(phase, names).tolist(),
                 "sequence_length": phase["sequence_length"]}
                for phase in plan["phases"]
            ],
            "sources": [
                _source(plan, index, read[index, -1] if whole else None, wanted[index, -1] if len(tokens) else 0.0)
                for index in range(len(names))
            ],
            "curve": _curve(tokens, read, wanted) if whole else None,
            "furthest": float(np.abs(read - wanted).max()) if whole else None,
        }  # fmt: skip


def _read(log: TrainingLog, names: list[str]) -> tuple[Array, int]:
    """(tokens of each source up to each logged step, of how many steps that is known)."""
    steps = [log.steps[READ + name] for name in names]
    known = np.isfinite(np.stack(steps)).all(axis=0)
    return np.cumsum(np.where(known, np.stack(steps), 0.0), axis=1), int(known.sum())


def _wanted(plan: dict[str, Any], names: list[str], tokens: Array) -> Array:
    """Tokens of each source among the plan's first `tokens`, if shares held exactly: [sources, len(tokens)]."""
    phases = plan["phases"]
    starts = [float(phase["tokens_before"]) for phase in phases]
    out = np.zeros((len(names), len(tokens)))
    for phase, start, end in zip(phases, starts, [*starts[1:], np.inf]):
        out += _shares(phase, names)[:, None] * np.clip(tokens - start, 0, end - start)
    return out


def _shares(phase: dict[str, Any], names: list[str]) -> Array:
    weights = np.array([float(phase["weights"].get(name, 0)) for name in names])
    return weights / max(weights.sum(), 1e-12)


def _source(plan: dict[str, Any], index: int, read: float | None, wanted: float) -> dict[str, Any]:
    """`unique` is the text that the plan may read; `read` and what follows from it None where steps did not tell."""
    source = plan["sources"][index]
    unique, planned = int(source["windows"]) * int(plan["unit"]), int(source["tokens"])
    return {
        "name": str(source["source"]),
        "unique": unique,
        "wanted": wanted,
        "read": None if read is None else int(read),
        "epochs": None if read is None else read / unique,
        "left": None if read is None else max(unique - int(read), 0),
        "planned": planned,
        "planned_epochs": source["epochs"],
        "planned_left": max(unique - planned, 0),
    }


def _curve(tokens: Array, read: Array, wanted: Array) -> dict[str, Any]:
    """Shares of what was read: `so_far` since the start, `recent` of late; and `target`, of what was wanted so far."""
    at = evenly(len(tokens), POINTS)
    back = max(len(tokens) // RECENT, 1)
    before = np.maximum(at - back, -1)
    earlier = np.where(before >= 0, read[:, before], 0.0)
    lately = read[:, at] - earlier
    return {
        "x": tokens[at].tolist(),
        "recent_steps": back,
        "so_far": (read[:, at] / read[:, at].sum(axis=0)).tolist(),
        "recent": (lately / lately.sum(axis=0)).tolist(),
        "target": (wanted[:, at] / np.maximum(wanted[:, at].sum(axis=0), 1e-12)).tolist(),
    }
