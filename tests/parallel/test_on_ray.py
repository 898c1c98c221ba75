"""`trainer run --launcher ray`: Ray Train starts the processes, and starts them anew when one is lost."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psutil
from tests.parallel.test_launch import SECONDS, STEPS, command, shards, until
from tests.support.training_runs import events_of, same_weights

from gristmill.trainer.checkpoints import checkpoint

__all__ = ["shards"]  # the fixture


def workers(of: int) -> list[psutil.Process]:
    """The processes of Ray Train below a process."""
    below = psutil.Process(of).children(recursive=True)
    return [one for one in below if "RayTrainWorker" in " ".join(_words(one))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended meanwhile
        return []


def test_told_to_stop_it_saves_and_another_number_of_processes_goes_on(shards: Path, tmp_path: Path) -> None:
    whole, on_ray = tmp_path / "whole", tmp_path / "ray"
    tokens = ("--tokens", str(8 * STEPS * 4 * 32), "--checkpoint-every", "50")
    subprocess.run(command(shards, whole, *tokens), check=True, capture_output=True)
    log = tmp_path / "log"
    with log.open("w") as file:
        words = command(shards, on_ray, *tokens, "--launcher", "ray", "--nproc", "2")
        running = subprocess.Popen(words, stdout=file, stderr=file)
        try:
            until(lambda: checkpoint.latest(on_ray) or running.poll() is not None)
            assert running.poll() is None, log.read_text()
            running.send_signal(signal.SIGTERM)
            assert running.wait(timeout=SECONDS) == 143, log.read_text()
        finally:
            running.kill()
    record = json.loads((on_ray / "run.json").read_text())
    at = checkpoint.read_state(checkpoint.newest(on_ray)).position.step
    assert record["status"] == "interrupted" and record["step"] == at < 8 * STEPS
    assert not events_of(on_ray, "resume"), "workers were started anew"
    assert f"stopped after step {at:,}; trainer resume {on_ray} goes on" in log.read_text()
    subprocess.run(command(shards, on_ray, *tokens), check=True, capture_output=True)
    assert same_weights(whole, on_ray)


def test_a_lost_worker_is_replaced_and_the_weights_are_those_of_one_process(shards: Path, tmp_path: Path) -> None:
    whole, on_ray = tmp_path / "whole", tmp_path / "ray"
    subprocess.run(command(shards, whole), check=True, capture_output=True)
    log = tmp_path / "log"
    with log.open("w") as file:
        words = command(shards, on_ray, "--launcher", "ray", "--nproc", "2")
        running = subprocess.Popen(words, stdout=file, stderr=file)
        try:
            until(lambda: checkpoint.latest(on_ray) or running.poll() is not None)
            assert running.poll() is None, log.read_text()
            found = workers(running.pid)
            assert len(found) == 2
            found[1].kill()
            assert running.wait(timeout=2 * SECONDS) == 0, log.read_text()
        finally:
            running.kill()
    record = json.loads((on_ray / "run.json").read_text())
    assert record["status"] == "done" and record["processes"] == 2
    assert same_weights(whole, on_ray)
