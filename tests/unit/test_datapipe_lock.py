"""The lock of a run folder: one runner, who dies without leaving anything locked, on one machine or on several."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from gristmill.base.errors import GristmillError
from gristmill.datapipe.workflow import lock
from gristmill.datapipe.workflow.lock import RunLock


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)


def lease(folder: Path, **changes: object) -> None:
    written = {"host": "elsewhere", "process": 7, "owner": "x", "beat": 1} | changes
    (folder / ".lease").write_text(json.dumps(written))


def test_a_second_runner_is_refused_and_a_third_may_come_after(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(GristmillError, match=r"another run \(process \d+ on .+\) is at work here; wait for it, or"):
            RunLock(tmp_path).__enter__()
        held = json.loads((tmp_path / ".lease").read_text())
        time.sleep(0.1)
        assert json.loads((tmp_path / ".lease").read_text())["beat"] > held["beat"]
    assert not (tmp_path / ".lease").exists()
    with RunLock(tmp_path):
        pass


def test_a_runner_on_another_machine_counts_while_its_lease_beats(tmp_path: Path) -> None:
    over = threading.Event()

    def beat() -> None:
        number = 0
        while not over.wait(0.05):
            lease(tmp_path, beat=(number := number + 1))

    lease(tmp_path)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(GristmillError, match=r"process 7 on elsewhere"):
            RunLock(tmp_path).__enter__()
    finally:
        over.set()
        thread.join()
    with RunLock(tmp_path):  # it stands still now
        assert json.loads((tmp_path / ".lease").read_text())["host"] != "elsewhere"


def test_a_lease_of_this_machine_whose_process_is_gone_is_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease(tmp_path, host=RunLock(tmp_path)._me["host"])
    monkeypatch.setattr(lock, "STALE_SECONDS", 1e9)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lease").read_text())["owner"] != "x"


def test_who_stood_still_and_lost_the_lease_hears_of_it_and_leaves_it_alone(tmp_path: Path) -> None:
    lost = threading.Event()
    with RunLock(tmp_path, lost.set):
        lease(tmp_path)
        assert lost.wait(5)
    assert json.loads((tmp_path / ".lease").read_text())["owner"] == "x"


def test_half_a_lease_is_none(tmp_path: Path) -> None:
    (tmp_path / ".lease").write_text('{"host": "else')
    with RunLock(tmp_path):
        pass
