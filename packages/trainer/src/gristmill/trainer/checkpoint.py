"""A checkpoint is a folder that is whole or absent: weights, optimiser state, and everything else as JSON.

checkpoints/step-00000200/{model.safetensors, optimizer.safetensors, state.json}; state.json holds the sha256 of both.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gristmill.base.config import from_mapping
from gristmill.base.errors import DataError
from gristmill.base.files import atomic_path, read_json, replace_folder, sha256_file, write_json
from gristmill.trainer import tensor_file
from gristmill.trainer.optim import adamw
from gristmill.trainer.tensor_file import Unwritten

FORMAT = "gristmill.checkpoint/1"
_FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps done, the next sequence of the plan and what decided the order up to it (its identity
    there), tokens and seconds spent."""

    step: int = 0
    next_sequence: int = 0
    plan: str = ""
    tokens: int = 0
    seconds: float = 0.0


def save(folder: Path, position: Position, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Write checkpoints/step-N under the run `folder`, then remove all but the newest `keep`."""
    with _building(folder, position.step) as temporary:
        for name, tensors in zip(_FILES, (model.state_dict(), adamw.state(model, optimizer))):
            with atomic_path(temporary / name) as path:
                save_file({key: value.detach().contiguous() for key, value in tensors.items()}, path)
        random_state = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode("ascii")
        _write_state(temporary, position, _FILES, random_state=random_state)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return _folder(folder, position.step)


def save_weights(folder: Path, position: Position, tensors: Mapping[str, Unwritten]) -> Path:
    """Write a checkpoint of weights alone, one part at a time: to be read, not trained on."""
    with _building(folder, position.step) as temporary:
        tensor_file.write(temporary / _FILES[0], tensors, {})
        _write_state(temporary, position, _FILES[:1])
    return _folder(folder, position.step)


def checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted(path for path in found if re.fullmatch(r"step-\d+", path.name))


def latest(folder: Path) -> Path | None:
    return (checkpoints(folder) or [None])[-1]


def newest(folder: Path) -> Path:
    """Raises DataError where there is none."""
    found = latest(folder)
    if found is None:
        raise DataError(f"{folder}: no checkpoint yet; train further with trainer resume {folder}")
    return found


def restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Load weights, optimiser state and the random generator's state; answers where the run stood.

    Raises:
        DataError: a file is missing, or its hash is not the one written with it.
    """
    state = _verified(checkpoint, _FILES)
    model.load_state_dict(load_file(checkpoint / _FILES[0]))
    adamw.load_state(model, optimizer, load_file(checkpoint / _FILES[1]), str(checkpoint / _FILES[1]))
    torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(state["random_state"])), dtype=torch.uint8))
    return position(checkpoint)


def weights_file(checkpoint: Path) -> Path:
    """The safetensors file of the model's weights, verified."""
    _verified(checkpoint, _FILES[:1])
    return checkpoint / _FILES[0]


def position(checkpoint: Path) -> Position:
    state = read_json(checkpoint / "state.json")
    fields = {key: state[key] for key in Position.__dataclass_fields__ if key in state}
    return from_mapping(Position, fields, str(checkpoint / "state.json"))


@contextlib.contextmanager
def _building(folder: Path, step: int) -> Iterator[Path]:
    """A folder beside the step's checkpoint that takes its place when the block ends."""
    final = _folder(folder, step)
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    yield temporary
    replace_folder(temporary, final)


def _write_state(folder: Path, position: Position, files: tuple[str, ...], **more: str) -> None:
    hashes = {name: sha256_file(folder / name) for name in files}
    write_json(folder / "state.json", {"format": FORMAT, **asdict(position), **more, "sha256": hashes})


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _verified(checkpoint: Path, names: tuple[str, ...]) -> dict:
    state = read_json(checkpoint / "state.json")
    if state.get("format") != FORMAT:
        raise DataError(f"{checkpoint / 'state.json'}: format {state.get('format')!r} is not known to this version")
    for name in names:
        path = checkpoint / name
        mend = f"delete {checkpoint} to go on from the checkpoint before it"
        if not path.exists():
            raise DataError(f"{path}: no such file; {mend}")
        if sha256_file(path) != state["sha256"][name]:
            raise DataError(
                f"{path}: its sha256 is not the one in state.json, so the file was damaged or changed; {mend}"
            )
    return state
