"""What a run tells while it goes on: rates and times left that are true, and a sign of life where nothing finishes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gristmill.base import progress
from gristmill.base.progress import Pace, Progress, duration
from gristmill.datapipe.workflow.display import ANNOTATE, GATHER, LOOK, READ, SCATTER, STEP, Display
from gristmill.datapipe.workflow.record import NodeRecord, RunRecord


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    made = RunRecord(tmp_path, "test")
    for name, kind in (("documents", "ingest"), ("language", "stage"), ("near", "shuffle"), ("heads", "step")):
        made.add(NodeRecord(name, kind, []))
    return made


Take = Callable[[], list[str]]


@pytest.fixture
def take(capsys: pytest.CaptureFixture[str]) -> Take:
    """The lines that were written since it was last called."""
    return lambda: capsys.readouterr().err.splitlines()


def work(display: Display, clock: Clock, name: str, pieces: int, seconds: float, documents: int = 100) -> None:
    for _ in range(pieces):
        clock.now += seconds
        display.advance(name, documents)


# Pace -----------------------------------------------------------------------------------------------------------------


def test_a_rate_is_of_the_last_minute_and_what_was_there_before_is_none(clock: Clock) -> None:
    pace = Pace(3, clock, pieces=900, documents=5000)
    for piece in range(1, 11):  # slow at first
        clock.now += 10
        pace.update(pieces=900 + piece, documents=5000 + 10 * piece)
    assert pace.rates() == {"pieces": pytest.approx(0.1), "documents": pytest.approx(1)}
    for piece in range(11, 131):  # then twenty times as fast, for a minute
        clock.now += 0.5
        pace.update(pieces=900 + piece, documents=5000 + 10 * piece)
    assert pace.rates()["pieces"] == pytest.approx(2, rel=0.05)
    assert pace.seconds_left("pieces", 1230) == pytest.approx(100, rel=0.05)


def test_nothing_is_said_before_there_is_ground(clock: Clock) -> None:
    pace = Pace(3, clock, pieces=0)
    for piece in range(1, 50):  # many at once are no measure yet
        clock.now += 0.1
        pace.update(pieces=piece)
    assert clock.now < 1005 and pace.rates() == {} and pace.seconds_left("pieces", 100) is None
    clock.now += 2
    pace.update(pieces=70)
    assert pace.rates()["pieces"] == pytest.approx(10, rel=0.05)
    slow = Pace(3, clock, pieces=0)
    for piece in (1, 2):
        clock.now += 600
        slow.update(pieces=piece)
    assert slow.rates() == {}
    clock.now += 600
    slow.update(pieces=3)  # longer than the window: as far back as it takes
    assert slow.seconds_left("pieces", 6) == pytest.approx(1800)


def test_the_time_that_workers_take_to_start_is_forgotten_soon(clock: Clock) -> None:
    pace = Pace(3, clock, pieces=0)
    clock.now += 30  # two workers start, then finish a piece each every four seconds
    told = []
    for pair in range(1, 6):
        clock.now += 4
        for piece in (2 * pair - 1, 2 * pair):
            pace.update(pieces=piece)
        told.append(pace.rates().get("pieces"))
    assert told[:2] == [None, None] and told[2:] == [pytest.approx(0.5)] * 3


def test_a_rate_falls_while_nothing_happens(clock: Clock) -> None:
    pace = Pace(3, clock, pieces=0)
    for piece in range(1, 11):
        clock.now += 1
        pace.update(pieces=piece)
    before = pace.seconds_left("pieces", 20)
    clock.now += 100
    after = pace.seconds_left("pieces", 20)
    assert before == pytest.approx(10) and after is not None and after > 100


def test_a_pace_remembers_a_minute_however_many_updates_there_are(clock: Clock) -> None:
    pace = Pace(3, clock, done=0)
    for done in range(1, 20_001):
        clock.now += 0.01
        pace.update(done=done)
    assert len(pace._marks) < 70 and pace.rates()["done"] == pytest.approx(100, rel=0.05)


def test_durations_are_short() -> None:
    assert [duration(s) for s in (0.4, 89, 91, 5399, 5400, 100_000, 200_000)] == [
        "0 s", "89 s", "2 min", "90 min", "1.5 h", "27.8 h", "2.3 days",
    ]  # fmt: skip


# A log ----------------------------------------------------------------------------------------------------------------


def test_one_line_per_interval_has_partitions_cached_rate_and_time_left(
    record: RunRecord, clock: Clock, take: Take
) -> None:
    display = Display(record, workers=2, clock=clock)
    clock.now += 30  # Ray starts
    display.begin("language", ANNOTATE, total=1040, cached=1000)
    display.tick()
    assert take() == ["language: 1,040 partitions, 1,000 cached"]
    work(display, clock, "language", 2, seconds=5)
    display.tick()
    assert take() == ["language: 1,002/1,040 partitions (1,000 cached)"]  # two workers: both their first
    work(display, clock, "language", 1, seconds=5)
    display.tick()
    assert take() == []  # the interval is not over
    work(display, clock, "language", 1, seconds=5)
    display.tick()
    assert take() == [
        "language: 1,004/1,040 partitions (1,000 cached), 20 documents/s, about 3 min left"
    ]  # 36 at one in 5 seconds
    node = record.nodes["language"]
    assert (node.documents, node.documents_per_second, node.eta_seconds) == (400, 20.0, 180.0)
    clock.now += 60
    display.tick()
    assert take() == []  # nothing new
    display.end("language", "done in 75.0 s")
    assert take() == ["language: done in 75.0 s"]
    assert (node.documents_per_second, node.eta_seconds, node.documents) == (None, None, 400)


def test_phases_of_a_node_are_told_apart_and_measured_apart(record: RunRecord, clock: Clock, take: Take) -> None:
    display = Display(record, workers=0, clock=clock)
    display.begin("near", SCATTER, 10)
    work(display, clock, "near", 10, seconds=2)
    display.tick()
    assert record.nodes["near"].phase == "scatter" and record.nodes["near"].documents_per_second == 50
    display.begin("near", GATHER, 64, cached=4)
    assert record.nodes["near"].eta_seconds is None  # scattering says nothing of gathering
    work(display, clock, "near", 4, seconds=30)
    display.tick()
    node = record.nodes["near"]
    assert node.phase == "gather" and node.eta_seconds == pytest.approx(56 * 30) and node.documents == 1000
    assert node.documents_per_second is None  # what is gathered are no documents
    assert take() == [
        "near, scatter: 10 partitions",
        "near, gather: 64 buckets, 4 cached",  # told where a phase lasts
        "near, gather: 8/64 buckets (4 cached), about 28 min left",
    ]


def test_quarantined_rows_are_told_while_ingest_goes_on(record: RunRecord, clock: Clock, take: Take) -> None:
    display = Display(record, workers=0, clock=clock)
    display.begin("documents", LOOK, 1)
    display.begin("documents", READ, 8)  # looking was over at once
    display.tick()
    clock.now += 12
    display.advance("documents", 4000, quarantined=3)
    display.tick()
    assert take() == [
        "documents, read: 8 pieces", "documents, read: 1/8 pieces, 3 quarantined",
    ]  # fmt: skip
    assert record.nodes["documents"].quarantined == 3


def test_where_nothing_finishes_for_long_a_line_shows_life(record: RunRecord, clock: Clock, take: Take) -> None:
    display = Display(record, workers=0, clock=clock)
    display.begin("language", ANNOTATE, 40)
    display.begin("heads", STEP, 1)
    display.tick()
    assert take() == ["language: 40 partitions", "heads: at work"]
    work(display, clock, "language", 3, seconds=20)
    display.tick()
    take()
    told = []
    for _ in range(700):
        clock.now += 1
        display.tick()
        told += take()
    assert told == [
        "heads: at work for 5 min",
        "language: 3/40 partitions, 0.83 documents/s, about 74 min left, nothing finished for 5 min",
        "heads: at work for 10 min",
        "language: 3/40 partitions, 0.45 documents/s, about 2.3 h left, nothing finished for 10 min",
    ]


def test_control_characters_do_not_reach_the_terminal(record: RunRecord, take: Take) -> None:
    display = Display(record, workers=0)
    display.begin("language", ANNOTATE, 1)
    display.end("language", "failed: a\x1b[2Jb.jsonl \u202e")
    display.say("Traceback\n  File \x9b31m")
    assert take() == [
        r"language: failed: a\x1b[2Jb.jsonl \u202e", "Traceback", r"  File \x9b31m",
    ]  # fmt: skip


def test_the_end_is_told_in_one_line(record: RunRecord, take: Take) -> None:
    record.nodes["documents"].status = "cached"
    record.nodes["language"].status = "done"
    record.nodes["heads"].counts, record.nodes["heads"].status = {"kept": 1234, "documents": 5000}, "done"
    record.quarantine = {"total": 7, "documents": 5000, "by_reason": {"not JSON": 7}}
    display = Display(record, workers=0)
    display.begin("near", SCATTER, 3)
    record.nodes["near"].status = "running"
    display.finish("interrupted")
    assert take() == [
        "interrupted in 0 s: 5,000 documents, 1,234 kept, 7 quarantined; nodes: 1 cached, 2 done, 1 interrupted"
    ]


def test_a_reader_of_stderr_that_goes_away_does_not_end_the_beat(
    record: RunRecord, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    display = Display(record, workers=0, clock=clock)
    display.begin("language", ANNOTATE, 9)
    work(display, clock, "language", 1, seconds=20)
    monkeypatch.setattr("gristmill.datapipe.workflow.record.CHANGED_SECONDS", 0.0)

    class Gone(io.StringIO):
        def write(self, _text: str, /) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    display.tick()
    assert (tmp_path / "run.json").exists()


# A terminal -----------------------------------------------------------------------------------------------------------


def test_in_a_terminal_there_is_a_bar_per_running_node(
    record: RunRecord, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with Display(record, workers=0, clock=clock) as display:
        display.begin("language", ANNOTATE, 40, cached=10)
        display.begin("near", SCATTER, 5)
        work(display, clock, "language", 4, seconds=30)
        display.tick()
        with Progress("grade", 12, "documents") as inside:  # a step in this process has its bar among them
            inside.update(3)
            live = progress.Bars._live
            live.refresh()
            shown = {task.description: (task.completed, task.total, task.fields["told"]) for task in live.tasks}
        display.say("a [red]line[/red] :smile:")
        display.end("language", "done")
    assert progress.Bars._live is None
    assert shown == {
        "language": (14, 40, "3.3 documents/s, about 13 min left"), "near, scatter": (0, 5, ""), "grade": (3, 12, ""),
    }  # fmt: skip
    written = screen.getvalue()
    assert "14/40 partitions (10 cached)" in written and "a [red]line[/red] :smile:" in written
