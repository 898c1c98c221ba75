"""A training run in a few lines: what it is, where it stands, what it cost, its alarms, and what it wrote.

Its curves and loads are asked for while they are looked at (curves.py, router.py); here is what every page has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gristmill.base.files import read_json
from gristmill.report.columns import Array
from gristmill.report.training import router
from gristmill.report.training.log import Event, TrainingLog, number, reading
from gristmill.report.training.thinning import evenly, smooth, span_of
from gristmill.report.training.trainings import Trainings, card

ALARMS_SHOWN, TIMES_SHOWN, PROMPTS_SHOWN = 40, 6, 8
TEXT_LIMIT = 1200  # characters of a sample that are shown
FACTS = ("status", "parameters", "active_parameters", "steps", "tokens", "seconds", "seed")


def of_all(trainings: Trainings) -> dict[str, Any]:
    return {"runs": [{**summarise(folder), "name": name} for name, folder in trainings.items()]}


def summarise(folder: Path) -> dict[str, Any]:
    about = card(folder)
    path = folder / "evaluation.json"
    evaluation = read_json(path) if path.exists() else None
    with reading(folder) as log:
        return {
            "name": folder.resolve().name,
            "card": {key: about[key] for key in FACTS if about.get(key) is not None},
            "steps": _steps(log),
            "validation": _validation(log),
            "router": router.at_step(log, about.get("moe_layers")),
            "cost": _cost(log),
            "alarms": _alarms(log),
            "samples": _samples(log),
            "evaluation": {key: value for key, value in evaluation.items() if key != "per_document"}
            if isinstance(evaluation, dict)
            else None,
        }


def _steps(log: TrainingLog) -> dict[str, Any] | None:
    """Where the run stands; `loss` is the running mean."""
    if not log.steps.count:
        return None
    loss, tokens = _known(log.steps["loss"]), log.steps["tokens"][-1]
    step = int(log.steps["step"][-1])
    return {
        "logged": log.steps.count,
        "last_step": step,
        "last_tokens": int(tokens) if np.isfinite(tokens) else None,
        "tokens_per_second": _median(log.steps["tokens_per_second"]),
        "loss": float(smooth(loss, span_of(len(loss)))[-1]) if len(loss) else None,
        "grad_norm": _last(log.steps["grad_norm"]),
    }


def _validation(log: TrainingLog) -> dict[str, Any] | None:
    """The last one."""
    events = log.all_of("validation")
    if not events:
        return None
    last = events[-1]
    by_source = last.get("by_source")
    return {
        **{key: last.get(key) for key in ("step", "loss", "bits_per_byte")},
        "count": len(events),
        "by_source": by_source if isinstance(by_source, dict) else {},
    }


def _cost(log: TrainingLog) -> dict[str, float | None]:
    """mfu: the median, because a step that also saves or validates is no slower."""
    return {
        "mfu": _median(log.steps["mfu"]),
        "memory_gb": _last(log.steps["memory_gb"]),
        "cost": _last(log.steps["cost"]),
    }


def _alarms(log: TrainingLog) -> dict[str, Any] | None:
    """The newest first."""
    found = log.all_of("alarm")
    shown = [
        {"step": event.get("step"), **{key: str(event.get(key) or "") for key in ("alarm", "policy", "told")}}
        for event in reversed(found[-ALARMS_SHOWN:])
    ]
    return {"count": len(found), "shown": shown} if found else None


def _samples(log: TrainingLog) -> list[dict[str, Any]]:
    """By prompt, what was written to it, a few times over the run: [{"prompt", "times": [{"step", "text", "cut"}]}]."""
    found = [event for event in log.all_of("samples") if isinstance(event.get("samples"), list)]
    by_prompt: dict[str, list[Event]] = {}
    for index in evenly(len(found), TIMES_SHOWN).tolist() if found else []:
        for one in filter(lambda one: isinstance(one, dict), found[index]["samples"]):
            text = str(one.get("text", ""))
            seen = {"step": found[index]["step"], "text": text[:TEXT_LIMIT], "cut": len(text) > TEXT_LIMIT}
            by_prompt.setdefault(str(one.get("prompt", "")), []).append(seen)
    return [{"prompt": prompt, "times": times} for prompt, times in list(by_prompt.items())[:PROMPTS_SHOWN]]


def _known(values: Array) -> Array:
    return values[np.isfinite(values)]


def _median(values: Array) -> float | None:
    return float(np.median(known)) if len(known := _known(values)) else None


def _last(values: Array) -> float | None:
    last = number(values[-1]) if len(values) else float("nan")
    return last if np.isfinite(last) else None
