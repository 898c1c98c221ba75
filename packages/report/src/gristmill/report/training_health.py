"""How a training run felt while it ran: its routers, norms by group of parameters, cost, alarms, and what it wrote.

Events of older runs have less; what is missing is left out. Texts are data, and go to the page as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gristmill.report.columns import Array

POINTS = 400  # more than a chart has pixels to tell apart
DEAD_SHARE = 0.1  # an expert with less than a tenth of the even share is called starved
ALARMS_SHOWN, TIMES_SHOWN, PROMPTS_SHOWN = 40, 6, 8
TEXT_LIMIT = 1200  # characters of a sample that are shown

Events = Sequence[Mapping[str, Any]]


def router(steps: Events, layers: Sequence[int]) -> dict[str, Any] | None:
    """`load` has one row for each of `layers`, those that have experts; rows are of unlike length where layers' experts
    are (PR-MoE)."""
    steps = [event for event in steps if (event.get("router") or {}).get("load")]
    if not steps:
        return None
    last = steps[-1]["router"]
    load = [np.array(row, dtype=np.float64) for row in last["load"]]
    load = [row / max(row.sum(), 1e-12) for row in load]
    multiple = np.concatenate([row * len(row) for row in load])  # of the even share
    pick = picked(len(steps))
    entropy = [_numbers(steps[index]["router"].get("entropy")) for index in pick]
    dropped = _numbers(last.get("dropped"))
    names = list(layers) if len(layers) == len(load) else list(range(len(load)))
    return {
        "step": steps[-1]["step"],
        "layers": names,
        "load": [row.tolist() for row in load],
        "starved": int((multiple < DEAD_SHARE).sum()),
        "most": float(multiple.max()),
        "dropped": float(np.mean(dropped)) if dropped else None,
        "bias_range": max(_numbers(last.get("bias_range")), default=None),
        "entropy": {
            "tokens": [tokens(steps[index]) for index in pick],
            "mean": [float(np.mean(values)) if values else None for values in entropy],
            "low": [min(values) if values else None for values in entropy],
        },
        "logits": _logits(steps, names),
    }


def curves(steps: Events, key: str) -> dict[str, Any] | None:
    """Of an event's numbers by group (`norms`, `updates`), one curve each."""
    steps = [event for event in steps if isinstance(event.get(key), dict)]
    if not steps:
        return None
    pick = picked(len(steps))
    groups = sorted({group for index in pick for group in steps[index][key]})
    return {
        "tokens": [tokens(steps[index]) for index in pick],
        "groups": {group: [_number(steps[index][key].get(group)) for index in pick] for group in groups},
    }


def cost(steps: Events) -> dict[str, float | None]:
    """mfu: the median, because a step that also saves or validates is no slower."""
    shares = [event["mfu"] for event in steps if finite(event.get("mfu"))]
    last = steps[-1] if steps else {}
    return {
        "mfu": float(np.median(shares)) if shares else None,
        "memory_gb": _number(last.get("memory_gb")),
        "cost": _number(last.get("cost")),
    }


def alarms(events: Events) -> dict[str, Any] | None:
    """The newest first."""
    found = [event for event in events if event.get("type") == "alarm"]
    shown = [
        {"step": event.get("step"), **{key: str(event.get(key) or "") for key in ("alarm", "policy", "told")}}
        for event in reversed(found[-ALARMS_SHOWN:])
    ]
    return {"count": len(found), "shown": shown} if found else None


def samples(events: Events) -> list[dict[str, Any]]:
    """By prompt, what was written to it, a few times over the run: [{"prompt", "times": [{"step", "text", "cut"}]}]."""
    found = [event for event in events if event.get("type") == "samples" and isinstance(event.get("samples"), list)]
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for index in picked(len(found), TIMES_SHOWN):
        for one in filter(lambda one: isinstance(one, dict), found[index]["samples"]):
            text = str(one.get("text", ""))
            seen = {"step": found[index]["step"], "text": text[:TEXT_LIMIT], "cut": len(text) > TEXT_LIMIT}
            by_prompt.setdefault(str(one.get("prompt", "")), []).append(seen)
    return [{"prompt": prompt, "times": times} for prompt, times in list(by_prompt.items())[:PROMPTS_SHOWN]]


def tokens(event: Mapping[str, Any]) -> Any:
    return event.get("tokens", event["step"])


def picked(count: int, points: int = POINTS) -> Array:
    return np.unique(np.linspace(0, count - 1, min(count, points)).round().astype(np.int64))


def finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _logits(steps: Events, names: Sequence[int]) -> dict[str, Any] | None:
    """The newest histograms of the routers' logits."""
    seen = [event for event in steps if event["router"].get("logits")]
    if not seen:
        return None
    logits = seen[-1]["router"]["logits"]
    return {"step": seen[-1]["step"], "layers": list(names), **{key: logits[key] for key in ("low", "high", "share")}}


def _numbers(value: Any) -> list[float]:
    """A list's finite numbers, or the one number that older runs have."""
    return [one for one in (value if isinstance(value, list) else [value]) if finite(one)]


def _number(value: Any) -> float | None:
    return value if finite(value) else None
