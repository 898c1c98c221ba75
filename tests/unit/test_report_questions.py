"""Every question of the pages, asked with anything: an answer, or 400 with the parameter's name; never a fault."""

from __future__ import annotations

import builtins
import io
import json
import random

import pytest
from tests.unit.test_report_page import make_run

from gristmill.report import questions
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.live_run import LiveRun
from gristmill.report.run_folder import as_json

FAULT = ("KeyError", "IndexError", "TypeError", "AttributeError")
SOME = (
    *("", "0", "1", "-1", "2999", "99999999999999999999", "0.5", "nan", "inf", "1e400", "\x00", "\u202e", "a" * 11_000),
    *(
        "web",
        "random",
        "kept",
        "quality",
        "scores/quality",
        "heuristics.words",
        "general",
        "filtered",
        "select",
        "near",
    ),
    *("{}", "[]", "null", '{"rules":[]}', "../../etc/passwd", "/etc/passwd", "(", "[a-", "documents", "tokens"),
)
LOOKED_FOR: dict[str, None] = {}
"""Parameters that questions asked for, so far."""


class Noted(Asked):
    def text(self, name: str, default: str = "") -> str:
        LOOKED_FOR.setdefault(name)
        return super().text(name, default)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LiveRun:
    return LiveRun(make_run(tmp_path_factory.mktemp("report") / "run", documents=300, text_words=20))


@pytest.mark.parametrize("question", sorted(questions.QUESTIONS))
def test_a_question_is_answered_or_refused_by_name(
    run: LiveRun, question: str, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(question)
    for _ in range(25):
        names = draw.sample([*LOOKED_FOR], min(draw.randrange(4), len(LOOKED_FOR)))
        asked = Noted({name: draw.choice(SOME) for name in names})
        try:
            answer = questions.answer(question, run, asked)
        except AskedWrong as error:
            assert str(error)
            continue
        json.loads(as_json(answer))
        assert not str(answer.get("error", "")).startswith(FAULT), (names, answer)
        assert "Traceback" not in capfd.readouterr().err


def test_what_a_page_holds_at_first_are_answers(run: LiveRun) -> None:
    for one in questions.at_first(run):
        assert not str(one["answer"].get("error", "")).startswith(FAULT), one


def test_no_question_reads_outside_of_its_run(run: LiveRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever file is opened while questions are asked with paths lies in the run."""
    opened: list[str] = []
    real = io.open

    def noting(file, *rest, **more):
        opened.append(str(file))
        return real(file, *rest, **more)

    monkeypatch.setattr(builtins, "open", noting)
    monkeypatch.setattr(io, "open", noting)
    for question in questions.QUESTIONS:
        for name in list(LOOKED_FOR):
            try:
                questions.answer(question, run, Asked({name: "../../../etc/passwd"}))
            except AskedWrong:
                continue
    assert not [path for path in opened if ".." in path or "passwd" in path]
