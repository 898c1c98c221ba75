"""A checkpoint is a folder that is whole or absent: weights, optimiser state, and everything else as JSON.

checkpoints/step-00000200/{model.safetensors, optimizer.safetensors, state.json}; state.json holds the sha256 of both.
Files hold whole tensors, whatever number of processes wrote them; each reads the rows that it is to have.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gristmill.base.config import from_mapping
from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_object, replace_folder, sha256_file, write_json, writing
from gristmill.trainer.checkpoints import tensor_file
from gristmill.trainer.checkpoints.tensor_file import Piece, Unwritten
from gristmill.trainer.parallel.world import ALONE, World

FORMAT = "gristmill.checkpoint/1"
FILES = ("model.safetensors", "optimizer.safetensors")
Pieces = Mapping[str, Mapping[str, Piece]]
"""By file, then by name."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps done, the next sequence of the plan and what decided the order up to it (its identity
    there), tokens and seconds spent."""

    step: int = 0
    next_sequence: int = 0
    plan: str = ""
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class State:
    """What a checkpoint holds beside tensors."""

    position: Position
    scheduled: bool = True
    """False: because of a signal. Roll-backs pass it by, so that a run takes the same way, disturbed or not."""
    extra: bool = False
    """Beside those of --checkpoint-every, as the best or after a roll-back: does not count in --keep-checkpoints."""
    back_to: int | None = None
    """The step that the run rolled back to here; checkpoints between the two are of a way that it left."""
    alarms: Mapping[str, Any] = field(default_factory=dict)
    patience: Mapping[str, Any] = field(default_factory=dict)
    random_state: str = ""
    """Of torch's generator, base64."""


def random_state() -> str:
    return base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode("ascii")


def write(folder: Path, state: State, pieces: Pieces, world: World = ALONE) -> Path:
    """Write checkpoints/step-N under the run `folder`, each process its pieces; all of them call this."""
    final = folder / "checkpoints" / f"step-{state.position.step:08d}"
    with _building(final, world) as temporary:
        for name, own in pieces.items():
            tensor_file.write_pieces(temporary / name, own, world.is_first, world.wait_beside)
        if world.is_first:
            _write_state(temporary, state, pieces)
    return final


def write_weights(folder: Path, state: State, weights: Mapping[str, Unwritten]) -> Path:
    """A checkpoint to be read, not trained on: one part of one tensor is in memory at a time."""
    final = folder / "checkpoints" / f"step-{state.position.step:08d}"
    with _building(final) as temporary:
        tensor_file.write(temporary / FILES[0], weights, {})
        _write_state(temporary, state, FILES[:1])
    return final


def _write_state(folder: Path, state: State, files: Iterable[str]) -> None:
    hashes = {name: sha256_file(folder / name) for name in files}
    more = {key: value for key, value in asdict(state).items() if key != "position"}
    write_json(folder / "state.json", {"format": FORMAT, **asdict(state.position), **more, "sha256": hashes})


def rotate(folder: Path, keep: int, reach: int = 1) -> None:
    """Remove all but the newest `keep`, one from before the last `reach` steps, and those that these call the best.

    What stays follows from what is there alone, so a process that is killed in between loses nothing: the next one
    does the rest.
    """
    states = {step_of(path): _state_of(path) for path in checkpoints(folder)}
    for step, back_to in [(step, state.back_to) for step, state in states.items() if state.back_to is not None]:
        states = {own: state for own, state in states.items() if not back_to < own < step}
    steps = [step for step, state in states.items() if state.scheduled]
    regular = [step for step in steps if not states[step].extra]
    aged = sum(step <= steps[-1] + 1 - reach for step in steps)
    kept = {*regular[-keep:], *steps[max(aged - 1, 0) : aged + 1], *steps[-1:], *list(states)[-1:]}
    kept |= {_best(states[step]) for step in kept}
    for old in checkpoints(folder):
        if step_of(old) not in kept:
            gone = old.with_name(f".{old.name}.old-{os.getpid()}")
            old.replace(gone)  # a process that is killed now leaves no half of one
            shutil.rmtree(gone)


def tidy(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote or removed a checkpoint."""
    for leftover in (folder / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover)


def checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted((path for path in found if re.fullmatch(r"step-\d+", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def latest(folder: Path) -> Path | None:
    return (checkpoints(folder) or [None])[-1]


def newest(folder: Path) -> Path:
    """Raises DataError where there is none."""
    found = latest(folder)
    if found is None:
        raise DataError(f"{folder}: no checkpoint yet; train further with trainer resume {folder}")
    return found


def find(folder: Path, which: str = "latest") -> Path:
    """The checkpoint that is called `latest`, `best` (by validation, of a run with patience), or that of a step.

    Raises:
        UsageError: the run has no such checkpoint.
        DataError: it has none at all.
    """
    last = newest(folder)
    step = {"latest": step_of(last), "best": _best(read_state(last))}.get(which, which)
    for path in checkpoints(folder):
        if str(step_of(path)) == str(step):
            return path
    have = ", ".join(str(step_of(path)) for path in checkpoints(folder))
    raise UsageError(
        f"{folder}: no checkpoint {which!r}; there are latest, those of the steps {have}, and best, if it was trained "
        "with --patience.validations"
    )


def before(folder: Path, step: int) -> Path | None:
    """The newest checkpoint from before a step to which a run can roll back."""
    found = [path for path in checkpoints(folder) if step_of(path) < step and _state_of(path).scheduled]
    return (found or [None])[-1]


@torch.no_grad()
def restore(checkpoint: Path, pieces: Pieces, world: World = ALONE) -> State:
    """Read into pieces, and take up the random generator's state; answers all that is no tensor.

    Raises:
        DataError: a file is missing or damaged, its hash is not the one written with it, or it is another model's.
    """
    state = _verified(checkpoint, FILES) if world.is_first else read_state(checkpoint)
    world.wait(long=True)  # else all would read what they hash
    for file, own in pieces.items():
        path = checkpoint / file
        found = tensor_file.read_file(path)
        for name in sorted(own.keys() ^ found.keys()):
            whose = "is none of this run's" if name in found else "is missing"
            raise DataError(f"{path}: {name} {whose}; is it of another model, or of other kinds of optimiser?")
        for name, piece in own.items():
            if found[name].shape != piece.shape:
                raise DataError(f"{path}: {name} is {list(found[name].shape)}, and this run's {list(piece.shape)}")
            piece.read(found[name])
    torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(state.random_state)), dtype=torch.uint8))
    return state


def weights_file(checkpoint: Path) -> Path:
    """The safetensors file of the model's weights, verified."""
    _verified(checkpoint, FILES[:1])
    return checkpoint / FILES[0]


def weights_hash(checkpoint: Path) -> str:
    """sha256 of the weights, as it was written with them."""
    return _read(checkpoint)["sha256"][FILES[0]]


def position(checkpoint: Path) -> Position:
    return read_state(checkpoint).position


def read_state(checkpoint: Path) -> State:
    """Raises DataError where state.json is damaged, or of another version."""
    values, where = _read(checkpoint), str(checkpoint / "state.json")
    own = {key: values[key] for key in State.__dataclass_fields__ if key in values}
    own["position"] = {key: values[key] for key in Position.__dataclass_fields__ if key in values}
    try:
        return from_mapping(State, own, where)
    except UsageError as error:
        raise DataError(f"{error}; {_mend(checkpoint)}") from None


@contextlib.contextmanager
def _building(final: Path, world: World = ALONE) -> Iterator[Path]:
    """A folder beside `final` that takes its place when the block ends, and leaves nothing if it fails."""
    temporary = final.with_name(f".{final.name}.tmp")  # the same one for all processes; only one run trains here
    if not world.is_first:
        with writing(temporary):
            yield temporary
        return
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(temporary):
            temporary.mkdir(parents=True)
            yield temporary
            replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _best(state: State) -> int | None:
    """The step whose checkpoint was the best by validation, where patience noted one."""
    return state.patience["best_step"] if state.patience.get("best") is not None else None


def _state_of(checkpoint: Path) -> State:
    try:
        return read_state(checkpoint)
    except DataError:  # a damaged one is told of when it is wanted
        return State(Position())


def _read(checkpoint: Path) -> dict[str, Any]:
    where, mend = checkpoint / "state.json", _mend(checkpoint)
    if not where.exists():
        raise DataError(f"{where}: no such file; {mend}")
    state = read_object(where, mend, format=str, sha256=dict)
    if state["format"] != FORMAT:
        raise DataError(f"{where}: format {state['format']!r} is not known to this version")
    return state


def _verified(checkpoint: Path, names: tuple[str, ...]) -> State:
    state, mend = _read(checkpoint), _mend(checkpoint)
    for name in names:
        path = checkpoint / name
        if not path.exists():
            raise DataError(f"{path}: no such file; {mend}")
        if sha256_file(path) != state["sha256"].get(name):
            raise DataError(
                f"{path}: its sha256 is not the one in state.json, so the file was damaged or changed; {mend}"
            )
    return read_state(checkpoint)


def _mend(checkpoint: Path) -> str:
    return f"delete {checkpoint} to go on from the checkpoint before it"
