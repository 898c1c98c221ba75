"""Which trainings there are at a run or at a folder of runs, and which of them a question is about."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.base.files import read_json
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import NotThere
from gristmill.report.runs import Run

Trainings = Mapping[str, Path]  # folders by name
AT_ONCE = 12  # that are drawn together
UNDER_WAY = re.compile(r"-[0-9a-f]{8,}$")  # a node's identity, behind its name


def of_run(run: Path) -> dict[str, Path]:
    """Of a pipeline's run, those under way (.work/train_NAME-IDENTITY) too; or the one training whose
    folder it is.

    Raises:
        NotThere: it has none.
    """
    logs = sorted([*run.glob("events.jsonl"), *(run / "training").glob("*/events.jsonl")])
    found = {path.parent.resolve().name: path.parent for path in logs}
    for path in sorted((run / ".work").glob("*/events.jsonl")):
        name = UNDER_WAY.sub("", path.parent.name).removeprefix("train_")
        found[f"{name}, under way" if name in found else name] = path.parent
    if not found:
        raise NotThere("training/<name>/events.jsonl", "trainer run")
    return found


def of_runs(runs: Mapping[str, Run]) -> dict[str, Path]:
    """Of several runs: by the run's key, and where it is a pipeline's, by the key and the training's name."""
    found: dict[str, Path] = {}
    for key, run in runs.items():
        if run.kind == "training":
            found[key] = run.folder
        else:
            with contextlib.suppress(NotThere):
                found |= {f"{key}/{name}".lstrip("/"): folder for name, folder in of_run(run.folder).items()}
    return found


def chosen(trainings: Trainings, asked: Asked) -> dict[str, Path]:
    """Those that the parameter `runs` names, one a line; the first ones, if none is named."""
    names = [name for name in asked.text("runs").split("\n") if name] or list(trainings)
    for name in names:
        if name not in trainings:
            raise AskedWrong(f"runs: {name!r} is none of {', '.join(trainings)}")
    return {name: trainings[name] for name in dict.fromkeys(names[:AT_ONCE])}


def one(trainings: Trainings, asked: Asked, default: str) -> tuple[str, Path]:
    """The one that the parameter `training` names."""
    name = asked.choice("training", list(trainings), default)
    return name, trainings[name]


def card(folder: Path) -> dict[str, Any]:
    """run.json; empty where there is none."""
    path = folder / "run.json"
    told = read_json(path) if path.exists() else {}
    return told if isinstance(told, dict) else {}
