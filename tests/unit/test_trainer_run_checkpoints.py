"""Checkpoints beside training: they hold the moment they were asked for, one at a time, and their errors come back."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gristmill.base.errors import UsageError, WriteError
from gristmill.trainer.checkpoints import checkpoint, checkpoint_writer
from gristmill.trainer.checkpoints.checkpoint import Position, State
from gristmill.trainer.checkpoints.checkpoint_writer import CheckpointWriter


def nothing() -> None:
    pass


def save(writer: CheckpointWriter, step: int, tensor: torch.Tensor, scheduled: bool = True, **more: Any) -> None:
    about = {"first": nothing, "then": nothing, "best": None} | more
    writer.save(State(Position(step=step), scheduled), {"model.safetensors": {"w": tensor}}, **about)


def test_a_checkpoint_holds_the_weights_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    weights, let_go, order = torch.arange(6.0).view(2, 3).t(), threading.Event(), []
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.prepare({"model.safetensors": {"w": weights}})
        first = lambda: (let_go.wait(10), order.append("first"))  # noqa: E731
        save(writer, 1, weights, first=first, then=lambda: order.append("then"))
        assert checkpoint.latest(tmp_path) is None
        weights += 100
        let_go.set()
        save(writer, 2, weights)  # waits for the one before
        assert order == ["first", "then"]
    for step, expected in ((1, weights - 100), (2, weights)):
        found = load_file(checkpoint.find(tmp_path, str(step)) / "model.safetensors")["w"]
        assert torch.equal(found, expected)


def test_what_goes_wrong_is_raised_where_training_asks_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    with CheckpointWriter(tmp_path, keep=2) as writer:
        save(writer, 1, torch.zeros(2))
        writer.wait()
        monkeypatch.setattr(checkpoint_writer.checkpoint.tensor_file, "write", full)
        save(writer, 2, torch.zeros(2))
        with pytest.raises(WriteError, match=r"step-00000002.*No space left"):
            while True:
                writer.check()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_the_last_error_is_not_lost(tmp_path: Path) -> None:
    def fails() -> None:
        raise WriteError("events.jsonl: cannot be written")

    with pytest.raises(WriteError, match="events"), CheckpointWriter(tmp_path, keep=2) as writer:
        save(writer, 1, torch.zeros(2), first=fails)


def test_the_newest_the_best_and_the_one_of_a_signal_stay(tmp_path: Path) -> None:
    def kept() -> list[int]:
        return [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)]

    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in (1, 2, 3):
            save(writer, step, torch.zeros(2), best=1)
            writer.wait()
        assert kept() == [1, 2, 3]
        save(writer, 4, torch.zeros(2), best=2)
        writer.wait()
        assert kept() == [2, 3, 4]
        save(writer, 5, torch.zeros(2), scheduled=False)
        writer.wait()
        assert kept() == [3, 4, 5] and checkpoint.before(tmp_path, 9) == checkpoint.find(tmp_path, "4")
        save(writer, 6, torch.zeros(2))
        writer.wait()
        assert kept() == [4, 6] and checkpoint.before(tmp_path, 6) == checkpoint.find(tmp_path, "4")
        assert checkpoint.before(tmp_path, 4) is None


def test_without_patience_no_checkpoint_is_the_best(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=2) as writer:
        save(writer, 0, torch.zeros(2))
    with pytest.raises(UsageError, match=r"no checkpoint 'best'; there are latest, those of the steps 0"):
        checkpoint.find(tmp_path, "best")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=2) as writer:
        save(writer, 1, torch.zeros(2))
    (tmp_path / "checkpoints" / ".step-00000002.tmp-1").mkdir()
    (tmp_path / "checkpoints" / ".step-00000002.tmp-1" / "model.safetensors").write_bytes(b"half")
    checkpoint.tidy(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
