"""Arms of a comparison, each trained several times from other seeds: mean and 95 % interval at equal tokens.

Trainings NAME-seed0, NAME-seed1, ... are one arm, as `trainer compare --mixtures` names them; any other is one alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.report.asked import Asked
from gristmill.report.columns import Array
from gristmill.report.training.curves import axis_of, held_out
from gristmill.report.training.log import reading
from gristmill.report.training.thinning import smooth, span_of
from gristmill.report.training.trainings import Trainings, card, chosen

SEEDED = re.compile(r"(.+)-seed\d+")
GRID = 200  # points of the training loss's curve
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 0.975 quantiles, 1 to 10 freedoms
Curve = tuple[Array, Array]  # tokens, values


def bands(trainings: Trainings, asked: Asked) -> dict[str, Any]:
    """Parameter: runs."""
    arms: dict[str, list[Path]] = {}
    for name, folder in (chosen(trainings, asked) if asked.text("runs") else trainings).items():
        match = SEEDED.fullmatch(name)
        arms.setdefault(match[1] if match else name, []).append(folder)
    return {"arms": [_arm(name, folders) for name, folders in arms.items()]}


def _arm(name: str, folders: Sequence[Path]) -> dict[str, Any]:
    losses, validations, units, data = list[Curve](), list[Curve](), set[str](), set[str]()
    for folder in folders:
        with reading(folder) as log:
            tokens, loss = axis_of(log, "tokens"), log.steps["loss"]
            rows = np.isfinite(loss) & np.isfinite(tokens)
            losses.append((tokens[rows], smooth(loss[rows], span_of(int(rows.sum())))))
            told = held_out(log, tokens)
        units.add(told["unit"])
        validations.append((np.array(told["all"]["x"]), np.array(told["all"]["y"])))
        data.add(str((card(folder).get("data") or {}).get("content_id") or ""))
    return {
        "name": name,
        "seeds": len(folders),
        "validates_on": data.pop()[:12] if len(data) == 1 else None,
        "unit": units.pop() if len(units) == 1 else None,
        "loss": _band(losses, _grid(losses)),
        "held_out": _band(validations, _common(validations)),
    }


def _grid(curves: Sequence[Curve]) -> Array:
    """Tokens that all seeds reached."""
    if any(not len(x) for x, _ in curves):
        return np.empty(0)
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    return np.linspace(low, high, GRID) if high > low else np.empty(0)


def _common(curves: Sequence[Curve]) -> Array:
    """Tokens at which all seeds were validated: nothing is read between validations."""
    return np.array(sorted(set.intersection(*(set(x.tolist()) for x, _ in curves))))


def _band(curves: Sequence[Curve], at: Array) -> dict[str, Any]:
    """Mean over seeds; `low` and `high` are its 95 % interval by Student's t, None with one seed."""
    if not len(at):
        return {"x": [], "mean": [], "low": None, "high": None}
    values_SN = np.stack([np.interp(at, x, y) for x, y in curves])
    mean = values_SN.mean(axis=0)
    if len(curves) < 2:
        return {"x": at.tolist(), "mean": mean.tolist(), "low": None, "high": None}
    reach = student(len(curves) - 1) * values_SN.std(axis=0, ddof=1) / len(curves) ** 0.5
    return {"x": at.tolist(), "mean": mean.tolist(), "low": (mean - reach).tolist(), "high": (mean + reach).tolist()}


def student(freedoms: int) -> float:
    """The t that 97.5 % lie below; beyond ten degrees of freedom to half a percent."""
    return STUDENT[freedoms - 1] if freedoms <= len(STUDENT) else 1.96 + 2.52 / freedoms
