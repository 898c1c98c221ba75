"""Curves of training runs over steps, tokens or hours, within a window, as short as they are drawn.

Every series keeps its extremes, whatever its length: one step in a hundred thousand that spikes is still there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import Array
from gristmill.report.training.log import Event, TrainingLog, number, reading
from gristmill.report.training.thinning import evenly, extremes, smooth, span_of
from gristmill.report.training.trainings import Trainings, chosen

AXES = ("tokens", "steps", "hours")
GROUPS = ("main", "norms", "routers")
MAIN = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "memory_gb", "cost")
POINTS, MOST_POINTS, MARKS = 400, 4000, 120
PAUSE = 60.0  # seconds without an event that may be a pause, where a step takes far less
Series = dict[str, list[float]]


def curves(trainings: Trainings, asked: Asked) -> dict[str, Any]:
    """Parameters: runs, axis, group, from, to (of the axis), points (of each series)."""
    axis, group = asked.choice("axis", AXES, AXES[0]), asked.choice("group", GROUPS, GROUPS[0])
    low, high = asked.number("from"), asked.number("to")
    if low is not None and high is not None and low >= high:
        raise AskedWrong(f"from: {low:g} is not below to, {high:g}")
    runs = chosen(trainings, asked)
    points = asked.integer("points", max(100, min(POINTS, 2400 // max(len(runs), 1))), 20, MOST_POINTS)
    window = (-np.inf if low is None else low, np.inf if high is None else high)
    told = []
    for name, folder in runs.items():
        with reading(folder) as log:
            told.append({"name": name, **_curves_of(log, axis, group, window, points)})
    return {"axis": axis, "group": group, "from": low, "to": high, "points": points, "runs": told}


def axis_of(log: TrainingLog, axis: str) -> Array:
    """Where each logged step lies: ascending; NaN where a step does not tell."""
    steps = log.steps["step"]
    if axis == "steps":
        return steps
    if axis == "tokens":
        tokens = log.steps["tokens"]
        return np.where(np.isfinite(tokens), tokens, steps)  # older runs tell none
    time = log.steps["time"]
    seen = time[np.isfinite(time)]
    return (np.maximum.accumulate(time) - seen[0]) / 3600 if len(seen) else time


def _curves_of(log: TrainingLog, axis: str, group: str, window: tuple[float, float], points: int) -> dict[str, Any]:
    x = axis_of(log, axis)
    known = x[np.isfinite(x)]
    inside = np.isfinite(x) & (x >= window[0]) & (x <= window[1])
    thin = _thinned(x, inside, points)
    told = {
        "steps": log.steps.count,
        "inside": int(inside.sum()),
        "reach": [float(known[0]), float(known[-1])] if len(known) else None,
    }
    if group == "norms":
        names = sorted([*log.steps.names("norms/"), *log.steps.names("updates/")])
        return told | {"series": {name: thin(log.steps[name]) for name in names}}
    if group == "routers":
        return told | {"series": {name: thin(values) for name, values in _routers(log).items()}}
    series = {name: thin(log.steps[name]) for name in MAIN}
    loss = log.steps["loss"]
    rows = np.flatnonzero(np.isfinite(loss))
    running = np.full(len(loss), np.nan)
    span = span_of(len(rows))
    running[rows] = smooth(loss[rows], span)
    series["smooth"] = thin(running, even=True)
    return told | {
        "series": series,
        "span": span,
        "held_out": held_out(log, x, window),
        "marks": _marks(log, x, window),
    }


def _thinned(x: Array, inside: Array, points: int) -> Callable[..., Series]:
    def thin(values: Array, even: bool = False) -> Series:
        rows = np.flatnonzero(inside & np.isfinite(values))
        if not len(rows):
            return {"x": [], "y": []}
        rows = rows[evenly(len(rows), points) if even else extremes(values[rows], points)]
        return {"x": x[rows].tolist(), "y": values[rows].tolist()}

    return thin


def _routers(log: TrainingLog) -> dict[str, Array]:
    """Of all layers with experts: what their routers tell, in one number a step."""

    def over_layers(name: str, how: Callable[[Array], Array]) -> Array:
        told = log.steps[f"router/{name}"]
        told = told[:, None] if told.ndim == 1 else told
        rows = np.isfinite(told).all(axis=1)
        out = np.full(len(told), np.nan)
        out[rows] = how(told[rows])
        return out

    return {
        "entropy": over_layers("entropy", lambda told: told.mean(axis=1)),
        "entropy_low": over_layers("entropy", lambda told: told.min(axis=1)),
        "busiest": over_layers("busiest", lambda told: told.max(axis=1)),
        "dead": over_layers("dead", lambda told: told.sum(axis=1)),
        "dropped": over_layers("dropped", lambda told: told.mean(axis=1)),
        "bias_range": over_layers("bias_range", lambda told: told.max(axis=1)),
        "balance_loss": over_layers("balance_loss", lambda told: told.mean(axis=1)),
        "z_loss": over_layers("z_loss", lambda told: told.mean(axis=1)),
    }


def held_out(log: TrainingLog, x: Array, window: tuple[float, float] = (-np.inf, np.inf)) -> dict[str, Any]:
    """Bits per byte (or, where bytes are not known, the loss) of validations, over all documents and by source."""
    events = log.all_of("validation")
    at = place(log, x, events)
    found = [(float(where), event) for where, event in zip(at, events) if window[0] <= where <= window[1]]
    unit = "bits_per_byte" if any(_finite(event.get("bits_per_byte")) for _, event in found) else "loss"
    sources = sorted({str(name) for _, event in found for name in _sources(event)})

    def series(values: list[tuple[float, Any]]) -> Series:
        known = [(where, value) for where, value in values if _finite(value)]
        rows = extremes(np.array([value for _, value in known]), POINTS).tolist() if known else []
        return {"x": [known[row][0] for row in rows], "y": [known[row][1] for row in rows]}

    return {
        "unit": unit,
        "all": series([(where, event.get(unit)) for where, event in found]),
        "sources": {
            name: series([(where, _of(_sources(event).get(name), unit)) for where, event in found]) for name in sources
        },
    }


def place(log: TrainingLog, x: Array, events: list[Event]) -> Array:
    """Where events lie on an axis: where their step does, or in between."""
    at = np.array([number(event["step"]) for event in events])
    rows = np.isfinite(x)
    if not rows.any():
        return np.full(len(events), np.nan)
    return np.interp(at, log.steps["step"][rows], x[rows])


def _marks(log: TrainingLog, x: Array, window: tuple[float, float]) -> list[dict[str, Any]]:
    """What happened at a step: alarms, roll backs, checkpoints, and where the log goes back or nothing was logged."""
    events = [
        *[{"kind": "alarm", "step": one["step"], "name": str(one.get("alarm")), "text": str(one.get("told") or "")}
          for one in log.all_of("alarm")],
        *[{"kind": "roll_back", "step": one["step"], "text": f"weights of step {_step(one.get('to'))} again"}
          for one in log.all_of("roll_back")],
        *[{"kind": "resumed", "step": step, "text": "the log goes on from an earlier step: the run was resumed"}
          for step in log.resumed],
        *[{"kind": "resumed", "step": one["step"], "text": _resumed(one)} for one in log.all_of("resume")],
        *_pauses(log),
        *[{"kind": "checkpoint", "step": one["step"], "text": ""} for one in log.all_of("checkpoint")],
    ]  # fmt: skip
    seen = zip(place(log, x, events).tolist(), events)
    inside = [{"x": where, **event} for where, event in seen if window[0] <= where <= window[1]]
    out = []
    for kind in ("alarm", "roll_back", "resumed", "pause", "checkpoint"):
        own = [mark for mark in inside if mark["kind"] == kind]
        out += [own[row] | {"of": len(own)} for row in evenly(len(own), MARKS).tolist()] if own else []
    return out


def _pauses(log: TrainingLog) -> list[dict[str, Any]]:
    """Where far more time lies between two steps than between others: the run was stopped, or waited."""
    time, steps = log.steps["time"], log.steps["step"]
    if len(time) < 3:
        return []
    between = np.diff(time)
    usual = float(np.nanmedian(between)) if np.isfinite(between).any() else 0.0
    rows = np.flatnonzero(between > max(PAUSE, 20 * usual))
    return [
        {"kind": "pause", "step": int(steps[row + 1]), "text": f"nothing for {between[row] / 60:,.0f} min before it"}
        for row in rows.tolist()
    ]


def _resumed(event: dict[str, Any]) -> str:
    processes, device = event.get("processes"), event.get("device")
    where = f" by {processes:,} process{'es' * (processes > 1)}" if isinstance(processes, int) else ""
    return f"the run went on{where}" + (f" on {device}" if isinstance(device, str) else "")


def _step(value: Any) -> str:
    return f"{int(value):,}" if _finite(value) else "?"


def _sources(event: Event) -> dict[str, Any]:
    told = event.get("by_source")
    return told if isinstance(told, dict) else {}


def _of(told: Any, unit: str) -> Any:
    return told.get(unit) if isinstance(told, dict) else None


def _finite(value: Any) -> bool:
    return bool(np.isfinite(number(value)))
