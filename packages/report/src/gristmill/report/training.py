"""What a training run left in events.jsonl, as curves short enough to draw: loss, validation, and training_health's.

Only whole lines count, so a run that is still training can be read; of a step that was written twice the later counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.base.files import read_json
from gristmill.report import training_health
from gristmill.report.columns import Array
from gristmill.report.training_health import finite, picked, tokens


def read_events(path: Path) -> list[dict[str, Any]]:
    """The whole lines of an events.jsonl; a last line that is still being written is left out, and so is what is no
    event of a step."""
    events: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # a run killed in mid-line and resumed leaves one broken line behind
            if isinstance(event, dict) and finite(event.get("step")):
                events.append(event)
    return _latest(events)


def summarise(folder: Path) -> dict[str, Any]:
    """One training run: its card, curves over tokens, the routers' state, alarms, and samples."""
    card = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    events = read_events(folder / "events.jsonl")
    steps = [event for event in events if event.get("type") == "step" and finite(event.get("loss"))]
    validation = [event for event in events if event.get("type") == "validation"]
    evaluation = read_json(folder / "evaluation.json") if (folder / "evaluation.json").exists() else None
    facts = ("status", "parameters", "active_parameters", "steps", "tokens", "seconds", "seed")
    return {
        "name": folder.resolve().name,
        "card": {key: card[key] for key in facts if card.get(key) is not None},
        "steps": _loss_curve(steps),
        "validation": _validation_curve(validation, steps),
        "router": training_health.router(steps, card.get("moe_layers") or []),
        "norms": training_health.curves(steps, "norms"),
        "updates": training_health.curves(steps, "updates"),
        "cost": training_health.cost(steps),
        "alarms": training_health.alarms(events),
        "samples": training_health.samples(events),
        "evaluation": {key: value for key, value in evaluation.items() if key != "per_document"}
        if evaluation
        else None,
    }


def smooth(values: Array, span: float) -> Array:
    """Exponential mean with the start's bias taken out, so that the first point is the first value."""
    decay = 1.0 - 1.0 / max(span, 1.0)
    out = np.empty(len(values))
    total = weight = 0.0
    for index, value in enumerate(values.tolist()):
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        out[index] = total / weight
    return out


def _latest(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A resumed run writes some steps twice; the later line of a (type, step) is the one that counts. A step may raise
    several alarms."""
    by_step: dict[tuple[Any, ...], dict[str, Any]] = {}
    for event in events:
        by_step[(str(event.get("type")), event["step"], str(event.get("alarm")))] = event
    return sorted(by_step.values(), key=lambda event: event["step"])


def _loss_curve(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not steps:
        return None
    loss = np.array([event["loss"] for event in steps], dtype=np.float64)
    speed = [event["tokens_per_second"] for event in steps if finite(event.get("tokens_per_second"))]
    pick = picked(len(steps))
    return {
        "step": [steps[index]["step"] for index in pick],
        "tokens": [tokens(steps[index]) for index in pick],
        "loss": loss[pick].tolist(),
        "smooth": smooth(loss, max(len(loss) / 100, 4.0))[pick].tolist(),
        "last_step": steps[-1]["step"],
        "last_tokens": steps[-1].get("tokens"),
        "tokens_per_second": float(np.median(speed)) if speed else None,
        "grad_norm": steps[-1].get("grad_norm"),
    }


def _validation_curve(
    validation: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    if not validation:
        return None
    at = np.array([event["step"] for event in validation], dtype=np.float64)
    seen = np.interp(at, [event["step"] for event in steps], [tokens(event) for event in steps]) if steps else at
    return {
        "step": at.tolist(),
        "tokens": seen.tolist(),
        "loss": [event.get("loss") for event in validation],
        "bits_per_byte": [event.get("bits_per_byte") for event in validation],
        "by_source": validation[-1].get("by_source") or {},
    }
