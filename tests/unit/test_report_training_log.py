"""A log that is followed: only what was appended is parsed, and what was rewritten is read anew."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from tests.support.training_logs import line, routed, step_event, write_log

from gristmill.report.columns import NotThere
from gristmill.report.training import log as module
from gristmill.report.training.log import TrainingLog, parsed, reading


@pytest.fixture
def log(tmp_path) -> TrainingLog:
    write_log(tmp_path, [step_event(step, 10.0 - step) for step in (1, 2, 3)])
    log = TrainingLog(tmp_path / "events.jsonl")
    log.follow()
    return log


def append(log: TrainingLog, text: str) -> None:
    with log.path.open("a") as file:
        file.write(text)


def steps(log: TrainingLog) -> list[float]:
    log.follow()
    return log.steps["step"].tolist()


def test_only_what_was_appended_is_parsed(log, monkeypatch):
    lines = []
    monkeypatch.setattr(module, "parsed", lambda line: lines.append(line) or parsed(line))
    append(log, line(step_event(4, 6.0)))
    assert steps(log) == [1, 2, 3, 4] and len(lines) == 1
    assert steps(log) == [1, 2, 3, 4] and len(lines) == 1
    assert log.steps["loss"].tolist() == [9, 8, 7, 6]


def test_a_torn_last_line_waits_for_its_rest(log):
    whole = line(step_event(4))
    append(log, whole[:20])
    assert steps(log) == [1, 2, 3]
    append(log, whole[20:])
    assert steps(log) == [1, 2, 3, 4]


def test_a_line_broken_by_a_kill_is_passed_over(log):
    append(log, '{"type": "step", "st\n' + line(step_event(4)) + "\x00\xff\n" + line(step_event(5)))
    assert steps(log) == [1, 2, 3, 4, 5]


def test_a_file_that_was_cut_off_or_written_anew_is_read_anew(log):
    log.path.write_text(line(step_event(1, 5.0)))
    assert steps(log) == [1] and log.steps["loss"].tolist() == [5]
    log.path.write_text("".join(line(step_event(step, 4.0)) for step in range(1, 50)))  # longer than what was read
    assert steps(log) == list(range(1, 50)) and set(log.steps["loss"].tolist()) == {4.0}
    log.path.unlink()
    with pytest.raises(NotThere):
        log.follow()


def test_a_log_that_goes_back_is_cut_where_the_run_was(log):
    append(log, line({"type": "validation", "step": 3, "loss": 7.0}) + line({"type": "checkpoint", "step": 2}))
    append(log, line(step_event(3, 1.0)) + line(step_event(4, 0.5)))
    assert steps(log) == [1, 2, 3, 4] and log.steps["loss"].tolist() == [9, 8, 1, 0.5]
    assert log.all_of("validation") == [] and len(log.all_of("checkpoint")) == 1 and log.resumed == [3]


def test_columns_that_come_late_or_stop_have_gaps(log):
    for step in range(4, 3000):
        more = {"norms": {"experts": 0.5}} if 100 <= step < 200 else {}
        append(log, line(step_event(step, None if step == 7 else 1.0, **more)))
    assert len(steps(log)) == 2999 and np.isnan(log.steps["loss"][6])
    assert np.flatnonzero(np.isfinite(log.steps["norms/experts"])).tolist() == list(range(99, 199))
    assert np.isnan(log.steps["no such name"]).all()


def test_loads_are_left_in_the_file_and_read_there(log):
    routers = [routed(step) for step in (4, 5, 6)]
    for step, router in zip((4, 5, 6), routers):
        append(log, line(step_event(step, router=router)))
    log.follow()
    assert log.steps["router/load"].tolist()[3:] == [1, 1, 1] and log.steps["router/entropy"].shape == (6, 2)
    assert np.allclose(log.steps["router/busiest"][3:], [router["busiest"] for router in routers])
    for row, router in zip((3, 4, 5), routers):
        assert np.allclose(log.load(row), router["load"], atol=1e-4)
    assert log.load(0) == [] and log.row_of(5.5) == 4 and log.row_of(0) == 0


@pytest.mark.parametrize("spelt", [{"separators": (",", ":")}, {"indent": None}, {"sort_keys": True}])
def test_an_event_is_the_same_however_it_is_spelt(spelt):
    event = step_event(1, router=routed(1), note='a "load": [[ in a text ]] ')
    light = parsed(json.dumps(event, **spelt).encode())
    assert light["note"] == event["note"] and light["router"]["entropy"] == event["router"]["entropy"]
    assert light["router"]["load"] in (True, event["router"]["load"])


def test_many_may_ask_while_a_run_writes(tmp_path):
    write_log(tmp_path, [step_event(1)])
    wrong, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            with reading(tmp_path) as log:
                seen = log.steps["step"]
                if seen.tolist() != list(range(1, len(seen) + 1)) or len(log.steps["loss"]) != len(seen):
                    wrong.append(seen)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    with (tmp_path / "events.jsonl").open("a") as file:
        for step in range(2, 400):
            text = line(step_event(step))
            file.write(text[: step % 30])
            file.flush()
            file.write(text[step % 30 :])
            file.flush()
    done.set()
    for thread in threads:
        thread.join()
    with reading(tmp_path) as log:
        assert not wrong and log.steps.count == 399
