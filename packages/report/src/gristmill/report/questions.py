"""What a page asks while it is looked at, beyond what it was sent with: one function per question.

A question is answered from a run and the request's parameters, as JSON-able values. Served, each is GET /api/NAME; a
page that is a file holds the answers to the questions of AT_FIRST, and says of the others that they need a server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gristmill.report import listing, workflow
from gristmill.report.asked import Asked
from gristmill.report.desk import answers as desk
from gristmill.report.heads import questions as scores
from gristmill.report.live_run import LiveFolder, LiveRun
from gristmill.report.reading import questions as reading
from gristmill.report.run_folder import Panel, panel_of
from gristmill.report.shards import inspector
from gristmill.report.training import questions as about_trainings

Question = Callable[[LiveRun, Asked], Panel]
FolderQuestion = Callable[[LiveFolder, Asked], Panel]

QUESTIONS: dict[str, Question] = {
    **reading.QUESTIONS,
    "score_histogram": scores.histogram,
    "probe_judge": scores.probe_and_judge,
    "shard_window": inspector.window,
    "shard_facts": inspector.facts,
    "shard_list": inspector.listing,
    "shard_check": inspector.check,
    "workflow": workflow.ask,
    "stage": workflow.stage,
    **desk.QUESTIONS,
    **about_trainings.QUESTIONS,
}
FOLDER_QUESTIONS: dict[str, FolderQuestion] = {
    "runs": listing.runs,
    "folder_settings": listing.settings,
    "folder_compared": listing.compared,
    **about_trainings.FOLDER_QUESTIONS,
}
"""Of several runs, asked by the page over all of them."""
AT_FIRST: tuple[tuple[str, dict[str, str]], ...] = (
    *reading.AT_FIRST,
    ("probe_judge", {}),
    ("shard_window", {}),
    ("shard_facts", {}),
    ("shard_list", {}),
    *desk.AT_FIRST,
    *about_trainings.AT_FIRST,
)
"""Questions, with their parameters, that every page is sent with the answers to."""


def answer(name: str, run: LiveRun, asked: Asked) -> Panel:
    """{"missing", "made_by"} where the run has no such part, {"error"} where it cannot be read.

    Raises:
        AskedWrong: a parameter is.
    """
    return panel_of(lambda: QUESTIONS[name](run, asked), tell=True)


def at_first(run: LiveRun) -> list[dict[str, Any]]:
    stages = panel_of(lambda: {"asked": workflow.every_stage(run)}).get("asked", [])
    wanted = [*AT_FIRST, *(("stage", asked) for asked in stages)]
    return [{"question": name, "asked": asked, "answer": answer(name, run, Asked(asked))} for name, asked in wanted]
