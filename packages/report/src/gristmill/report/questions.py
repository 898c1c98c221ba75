"""What a page asks while it is looked at, beyond what it was sent with: one function per question.

A question is answered from a run and the request's parameters, as JSON-able values. Served, each is GET /api/NAME; a
page that is a file holds the answers to the questions of AT_FIRST, and says of the others that they need a server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gristmill.report import listing
from gristmill.report.asked import Asked
from gristmill.report.live_run import LiveFolder, LiveRun
from gristmill.report.run_folder import Panel, panel_of
from gristmill.report.shards import inspector

Question = Callable[[LiveRun, Asked], Panel]
FolderQuestion = Callable[[LiveFolder, Asked], Panel]

QUESTIONS: dict[str, Question] = {
    "shard_window": inspector.window,
    "shard_facts": inspector.facts,
    "shard_list": inspector.listing,
    "shard_check": inspector.check,
}
FOLDER_QUESTIONS: dict[str, FolderQuestion] = {"runs": listing.runs}
"""Of several runs, asked by the page over all of them."""
AT_FIRST: tuple[tuple[str, dict[str, str]], ...] = (
    ("shard_window", {}),
    ("shard_facts", {}),
    ("shard_list", {}),
)
"""Questions, with their parameters, that every page is sent with the answers to."""


def answer(name: str, run: LiveRun, asked: Asked) -> Panel:
    """{"missing", "made_by"} where the run has no such part, {"error"} where it cannot be read.

    Raises:
        AskedWrong: a parameter is.
    """
    return panel_of(lambda: QUESTIONS[name](run, asked))


def at_first(run: LiveRun) -> list[dict[str, Any]]:
    return [{"question": name, "asked": asked, "answer": answer(name, run, Asked(asked))} for name, asked in AT_FIRST]
