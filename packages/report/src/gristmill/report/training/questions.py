"""The questions about trainings, of one run and of a folder of runs: the same ones, over other trainings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gristmill.report.asked import Asked
from gristmill.report.columns import NotThere
from gristmill.report.live_run import LiveFolder, LiveRun
from gristmill.report.training import summary, trainings
from gristmill.report.training.bands import bands
from gristmill.report.training.curves import curves
from gristmill.report.training.mixture import mixtures
from gristmill.report.training.router import experts, routers
from gristmill.report.training.trainings import Trainings

Panel = dict[str, Any]

_ASKED: dict[str, Callable[[Trainings, Asked], Panel]] = {
    "trainings": lambda found, _asked: summary.of_all(found),
    "training_curves": curves,
    "training_bands": bands,
    "training_routers": routers,
    "training_experts": experts,
    "training_mixture": mixtures,
}


def _of_run(ask: Callable[[Trainings, Asked], Panel]) -> Callable[[LiveRun, Asked], Panel]:
    return lambda run, asked: ask(trainings.of_run(run.folder), asked)


def _of_folder(ask: Callable[[Trainings, Asked], Panel]) -> Callable[[LiveFolder, Asked], Panel]:
    def answer(folder: LiveFolder, asked: Asked) -> Panel:
        found = trainings.of_runs(folder.runs())
        if not found:
            raise NotThere("events.jsonl of a training", "trainer run")
        return ask(found, asked)

    return answer


QUESTIONS = {name: _of_run(ask) for name, ask in _ASKED.items()}
FOLDER_QUESTIONS = {f"folder_{name}": _of_folder(ask) for name, ask in _ASKED.items()}
AT_FIRST: tuple[tuple[str, dict[str, str]], ...] = (
    ("training_curves", {}),
    ("training_curves", {"group": "norms"}),
    ("training_curves", {"group": "routers"}),
    ("training_routers", {}),
    ("training_experts", {}),
    ("training_bands", {}),
    ("training_mixture", {}),
)
