"""Training runs' folders for the report, made up line by line as the trainer writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def line(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False) + "\n"


def step_event(step: int, loss: float | None = 3.0, **more: Any) -> dict[str, Any]:
    return {"type": "step", "step": step, "tokens": 128 * step, "loss": loss, "time": 1.7e9 + step, **more}


def write_log(folder: Path, events: Iterable[dict[str, Any]], card: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(map(line, events)), encoding="utf-8")
    if card is not None:
        (folder / "run.json").write_text(json.dumps(card))
    return folder


def routed(step: int, layers: int = 2, experts: int = 4, seed: int = 0) -> dict[str, Any]:
    """A step's `router`, as health.router_health writes it."""
    load = np.random.default_rng([seed, step]).dirichlet(np.ones(experts), layers).round(5)
    return {
        "load": load.tolist(), "entropy": [0.9 - 0.1 * layer for layer in range(layers)],
        "busiest": (load.max(axis=1) * experts).round(5).tolist(), "dead": [0] * layers, "bias_range": [],
        "balance_loss": [1.0] * layers, "sequence_loss": [1.0] * layers, "z_loss": [0.1] * layers,
        "dropped": [0.0] * layers, "logits": None,
    }  # fmt: skip
