"""Where tokens went: the load of every expert of every layer at a step, and of one layer's experts over time.

Loads are read from the log's lines when they are asked for; a line that is shown is a step as it was, not a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import Array, NotThere
from gristmill.report.training.log import TrainingLog, reading
from gristmill.report.training.thinning import evenly
from gristmill.report.training.trainings import Trainings, card, chosen, one

DEAD_SHARE = 0.1  # an expert with less than a tenth of the even share is called starved
COLUMNS, CELLS = 160, 8000  # of a picture of one layer over time
BY_LAYER = ("entropy", "busiest", "dead", "dropped")
LAST = 2**53  # no step is beyond


def routers(trainings: Trainings, asked: Asked) -> dict[str, Any]:
    """Parameters: runs, step. Of each run with experts the last step that tells of them, up to `step`."""
    step = asked.integer("step", LAST, 0, LAST)
    found = []
    for name, folder in chosen(trainings, asked).items():
        with reading(folder) as log:
            if told := at_step(log, card(folder).get("moe_layers"), step):
                found.append({"name": name, **told})
    if not found:
        raise NotThere("a load of experts in events.jsonl", "a training of a model with experts")
    return {"runs": found}


def at_step(log: TrainingLog, moe_layers: Any, step: int = LAST) -> dict[str, Any] | None:
    """`load` has one row for each of `layers`, those that have experts; rows are of unlike length where layers' experts
    are (PR-MoE). None: no step tells of any."""
    rows = told_rows(log)
    if not len(rows):
        return None
    row = int(rows[max(int(np.searchsorted(rows, log.row_of(step), "right")) - 1, 0)])
    event, load = log.event(row), log.load(row)
    multiple = np.concatenate([one * len(one) for one in load])  # of the even share
    names = layers(moe_layers, len(load))
    told = {name: _numbers(log, name, row) for name in BY_LAYER}
    bias = _numbers(log, "bias_range", row)
    steps = log.steps["step"]
    return {
        "step": int(steps[row]),
        "first_step": int(steps[rows[0]]),
        "last_step": int(steps[rows[-1]]),
        "layers": names,
        "experts": [len(one) for one in load],
        "load": [one.tolist() for one in load],
        "starved": int((multiple < DEAD_SHARE).sum()),
        "most": float(multiple.max()),
        "dropped": float(np.mean(told["dropped"])) if told["dropped"] else None,
        "bias_range": max(bias, default=None),
        "by_layer": {name: values for name, values in told.items() if len(values) == len(load)},
        "logits": _logits(log, row, event, names),
    }


def experts(trainings: Trainings, asked: Asked) -> dict[str, Any]:
    """Parameters: training, layer (its number in the model), from, to (steps), columns.

    Of one layer, each expert's load over its even share, at steps that lie evenly in the window.
    """
    default = next((name for name, folder in trainings.items() if _has_experts(folder)), None)
    if default is None:
        raise NotThere("a load of experts in events.jsonl", "a training of a model with experts")
    name, folder = one(trainings, asked, default)
    low, high = asked.integer("from", 0, 0, LAST), asked.integer("to", LAST, 0, LAST)
    with reading(folder) as log:
        rows = told_rows(log)
        if not len(rows):
            raise NotThere(f"a load of experts in {name}/events.jsonl", "a training of a model with experts")
        names = layers(card(folder).get("moe_layers"), len(log.load(int(rows[-1]))))
        layer = asked.integer("layer", names[0], 0, LAST)
        if layer not in names:
            raise AskedWrong(f"layer: {layer} has no experts; those that have: {', '.join(map(str, names))}")
        steps = log.steps["step"]
        inside = rows[(steps[rows] >= low) & (steps[rows] <= high)]
        count = len(log.load(int(rows[-1]))[names.index(layer)])
        columns = asked.integer("columns", max(min(COLUMNS, CELLS // max(count, 1)), 20), 2, 1000)
        shown = inside[evenly(len(inside), columns)].tolist() if len(inside) else []
        loads = [log.load(row)[names.index(layer)] for row in shown]
        return {
            "name": name,
            "layer": layer,
            "layers": names,
            "experts": count,
            "steps": [int(steps[row]) for row in shown],
            "of_steps": len(inside),
            "multiple": np.stack([one * len(one) for one in loads]).round(3).tolist() if loads else [],
        }


def layers(moe_layers: Any, count: int) -> list[int]:
    """Their numbers in the model; counted from 0 where run.json tells of others, or of none."""
    fits = isinstance(moe_layers, list) and len(moe_layers) == count and all(type(one) is int for one in moe_layers)
    return list(moe_layers) if fits else list(range(count))


def told_rows(log: TrainingLog) -> Array:
    """The rows of steps that tell of loads."""
    return np.flatnonzero(log.steps["router/load"] > 0)


def _has_experts(folder: Any) -> bool:
    with reading(folder) as log:
        return bool(len(told_rows(log)))


def _numbers(log: TrainingLog, name: str, row: int) -> list[float]:
    """By layer; one number, or none, of older runs."""
    told = np.atleast_1d(log.steps[f"router/{name}"][row])
    return told[np.isfinite(told)].tolist()


def _logits(log: TrainingLog, row: int, event: dict[str, Any], names: Sequence[int]) -> dict[str, Any] | None:
    """The newest histograms of the routers' logits, up to a step."""
    observed = np.flatnonzero(log.steps["router/logits"][: row + 1] > 0)
    if not len(observed):
        return None
    event = event if observed[-1] == row else log.event(int(observed[-1]))
    logits = event["router"]["logits"]
    step = int(log.steps["step"][observed[-1]])
    return {"step": step, "layers": list(names), **{key: logits[key] for key in ("low", "high", "share")}}
