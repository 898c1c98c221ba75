"""Checkpoints beside training: they hold the moment they were asked for, one at a time, and their errors come back."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gristmill.base.errors import UsageError, WriteError
from gristmill.trainer.checkpoints import checkpoint, checkpoint_writer, tensor_file
from gristmill.trainer.checkpoints.checkpoint import Position, State
from gristmill.trainer.checkpoints.checkpoint_writer import CheckpointWriter
from gristmill.trainer.checkpoints.tensor_file import Piece


def nothing() -> None:
    pass


def pieces(tensor: torch.Tensor) -> checkpoint.Pieces:
    return {"model.safetensors": {"w": Piece(tensor, tuple(tensor.shape), 0)}}


def save(
    writer: CheckpointWriter, step: int, tensor: torch.Tensor, first: Any = nothing, then: Any = nothing,
    best: int | None = None, **about: Any,
) -> None:  # fmt: skip
    patience = {"best": None if best is None else 2.5, "best_step": best or 0}
    writer.save(State(Position(step=step), patience=patience, **about), pieces(tensor), first, then)


def kept(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder)]


def test_a_checkpoint_holds_the_weights_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    weights, let_go, order = torch.arange(6.0).view(2, 3).t(), threading.Event(), []
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.prepare(pieces(weights))
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
        monkeypatch.setattr(checkpoint_writer.checkpoint.tensor_file, "write_pieces", full)
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
    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in (1, 2, 3):
            save(writer, step, torch.zeros(2), best=1)
            writer.wait()
        assert kept(tmp_path) == [1, 2, 3]
        save(writer, 4, torch.zeros(2), best=4)
        writer.wait()
        assert kept(tmp_path) == [1, 3, 4]  # 1 is the best again for a run that goes back to 3
        save(writer, 5, torch.zeros(2), scheduled=False)
        writer.wait()
        assert kept(tmp_path) == [1, 3, 4, 5] and checkpoint.before(tmp_path, 9) == checkpoint.find(tmp_path, "4")
        save(writer, 6, torch.zeros(2))
        writer.wait()
        assert kept(tmp_path) == [4, 6] and checkpoint.before(tmp_path, 6) == checkpoint.find(tmp_path, "4")
        assert checkpoint.before(tmp_path, 4) is None


def test_those_that_were_saved_in_between_do_not_count(tmp_path: Path) -> None:
    stay = []
    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in range(8):
            save(writer, step, torch.zeros(2), extra=step % 3 > 0)
            writer.wait()
            stay.append(kept(tmp_path))
    assert stay == [[0], [0, 1], [0, 2], [0, 3], [0, 3, 4], [0, 3, 5], [3, 6], [3, 6, 7]]


@pytest.mark.parametrize("every", [1, 3, 10])
def test_one_is_older_than_what_lasts_before_it_is_told(tmp_path: Path, every: int) -> None:
    """Told at the earliest at the next step, and dating from `reach` steps before that."""
    reach = 6
    with CheckpointWriter(tmp_path, keep=1, reach=reach) as writer:
        for step in range(0, 40, every):
            save(writer, step, torch.zeros(2))
            writer.wait()
            assert len(kept(tmp_path)) <= 3
            for told in range(max(step, reach) + 1, step + every + 1):
                assert checkpoint.before(tmp_path, told - reach + 1), (step, told)


def test_a_roll_back_removes_what_was_on_the_way_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed before that leaves it to the next one."""
    with CheckpointWriter(tmp_path, keep=3) as writer:
        for step in (1, 2, 3):
            save(writer, step, torch.zeros(2))
        writer.wait()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "rotate", lambda *_: None)
            save(writer, 4, torch.zeros(2), extra=True, back_to=1)
            writer.wait()
    assert kept(tmp_path) == [1, 2, 3, 4]
    checkpoint.rotate(tmp_path, keep=3)
    assert kept(tmp_path) == [1, 4]


def test_without_patience_no_checkpoint_is_the_best(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=2) as writer:
        save(writer, 0, torch.zeros(2))
    with pytest.raises(UsageError, match=r"no checkpoint 'best'; there are latest, those of the steps 0"):
        checkpoint.find(tmp_path, "best")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=2) as writer:
        save(writer, 1, torch.zeros(2))
    (tmp_path / "checkpoints" / ".step-00000002.tmp").mkdir()
    (tmp_path / "checkpoints" / ".step-00000002.tmp" / "model.safetensors").write_bytes(b"half")
    checkpoint.tidy(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


# ---- Pieces of several processes


def shared_out(tensors: dict[str, torch.Tensor], processes: int) -> list[dict[str, Piece]]:
    """Rows as FSDP deals them, in the order of the processes; scalars whole to all."""
    own: list[dict[str, Piece]] = [{} for _ in range(processes)]
    for name, tensor in tensors.items():
        shape, each = tuple(tensor.shape), -(-len(tensor) // processes) if tensor.ndim else 0
        for rank, pieces_ in enumerate(own):
            rows = tensor[rank * each : (rank + 1) * each] if shape else tensor
            pieces_[name] = Piece(rows, shape, min(rank * each, shape[0]) if shape else 0)
    return own


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_a_file_of_pieces_has_the_bytes_of_one_writer(tmp_path: Path, processes: int) -> None:
    """Of unlike numbers of rows, or none; of formats of unlike widths; and not contiguous."""
    tensors = {
        "narrow": torch.arange(10).to(torch.bfloat16).view(5, 2), "wide": torch.randn(2, 3, 4, dtype=torch.float64),
        "step": torch.tensor(7.0), "turned": torch.arange(24.0).view(4, 6).t(), "one": torch.randn(1, 5),
        "nothing": torch.zeros(0, 4),
    }  # fmt: skip
    whole = {name: Piece(tensor, tuple(tensor.shape), 0) for name, tensor in tensors.items()}
    tensor_file.write_pieces(tmp_path / "whole", whole, True, nothing)
    assert all(torch.equal(tensors[name], found) for name, found in load_file(tmp_path / "whole").items())
    own = shared_out(tensors, processes)
    for rank, some in enumerate(own):  # the first one makes the file, and all the others could come in any order
        tensor_file.write_pieces(tmp_path / "shared", some, rank == 0, nothing)
    assert (tmp_path / "shared").read_bytes() == (tmp_path / "whole").read_bytes()
    on_disk = tensor_file.read_file(tmp_path / "whole")
    for some in own:
        for name, piece in some.items():
            again = piece._replace(tensor=torch.full_like(piece.tensor, 9))
            again.read(on_disk[name])
            assert torch.equal(again.tensor, piece.tensor), name
