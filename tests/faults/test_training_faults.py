"""What may happen to a training run: a full disk, a truncated checkpoint, other settings or shards, a signal. Each is
told in one line that names it, and after the mend the run ends in the weights of one that nothing disturbed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.scripts import environment
from tests.support.training_runs import config, events_of, same_weights
from tests.support.training_shards import write_shards

from gristmill.base.errors import DataError
from gristmill.base.files import read_json, write_json
from gristmill.trainer import loop
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import TrainConfig


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    loop.train(config(shards, folder))
    return folder


def interrupted(shards: Path, folder: Path, whole: Path) -> TrainConfig:
    """A copy of the run as if it had been stopped."""
    shutil.copytree(whole, folder)
    about = config(shards, folder)
    write_json(folder / "run.json", read_json(folder / "run.json") | {"status": "interrupted"})
    return about


def command(about: TrainConfig, before: str = "") -> list[str]:
    """`trainer run`, in a process that does `before` first."""
    names = ("mixture", "data", "output", "tokens", "checkpoint_every", "validate_every", "validate_tokens")
    flags = [f"--{name.replace('_', '-')}={getattr(about, name)}" for name in names]
    flags += [f"--batch.{name}={getattr(about.batch, name)}" for name in ("sequence", "sequences", "micro")]
    shape = ("width", "layers", "heads", "kv_heads", "head_dim", "experts", "top_k", "expert_width")
    flags += [f"--model.{name.replace('_', '-')}={getattr(about.model, name)}" for name in shape]
    return [sys.executable, "-c", f"{before}\nfrom gristmill.trainer import cli; cli.main()", "run", *flags]


def run(about: TrainConfig, limit: Callable[[], None] | None = None) -> tuple[int, str]:
    done = subprocess.run(
        command(about), capture_output=True, text=True, env=environment(), preexec_fn=limit, check=False, timeout=300
    )
    return done.returncode, done.stderr


def test_a_full_disk_is_told_by_name_and_with_room_again_the_run_goes_on(
    shards: Path, tmp_path: Path, whole: Path
) -> None:
    about = config(shards, tmp_path / "run")
    size = (checkpoint.newest(whole) / "optimizer.safetensors").stat().st_size

    def limited() -> None:  # weights fit, the optimiser's state does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))

    code, error = run(about, limited)
    last = error.strip().splitlines()[-1]
    assert code == 1 and "Traceback" not in error, error
    assert last.startswith("trainer: ") and "optimizer.safetensors" in last and "File too large" in last, last
    assert read_json(about.folder / "run.json")["status"] == "failed"
    assert not list(about.folder.glob("checkpoints/.step-*"))  # nothing takes up room
    code, error = run(about)
    assert code == 0, error
    assert same_weights(about.folder, whole)
    assert events_of(about.folder) == events_of(whole)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_truncated_checkpoint_is_refused_with_the_mend(shards: Path, tmp_path: Path, whole: Path, file: str) -> None:
    about = interrupted(shards, tmp_path / "run", whole)
    newest = checkpoint.newest(about.folder)
    path = newest / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{file}.*delete {newest} to go on from the checkpoint before it"):
        loop.train(about)
    shutil.rmtree(newest)
    assert loop.train(about)["status"] == "done"
    assert same_weights(about.folder, whole)


def test_another_learning_rate_is_refused_by_name(shards: Path, tmp_path: Path, whole: Path) -> None:
    about = interrupted(shards, tmp_path / "run", whole)
    done = subprocess.run(
        [*command(about), "--optimizer.learning-rate=0.5"], capture_output=True, text=True, check=False, timeout=300,
        env=environment(),
    )  # fmt: skip
    assert done.returncode == 2 and "optimizer.learning_rate = 0.003, now 0.5" in done.stderr


def test_other_shards_are_refused(shards: Path, tmp_path: Path, whole: Path) -> None:
    """Published anew with other text, or altered where they lie."""
    about = interrupted(shards, tmp_path / "run", whole)
    altered = Path(shutil.copytree(shards, tmp_path / "altered"))
    path = next(altered.glob("sources/odd/tokens/**/*.u16"))
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(DataError, match="altered"):
        loop.train(config(altered, about.folder))
    anew = write_shards(_folder(tmp_path / "anew"), noise=0.2)
    with pytest.raises(DataError, match="data state is of plan"):
        loop.train(config(anew, about.folder))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


SLOW = """
import time
from gristmill.trainer import loop
real = loop.train_step
def step(*args, **options):
    time.sleep(0.3)
    return real(*args, **options)
loop.train_step = step
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_with_its_code(
    shards: Path, tmp_path: Path, whole: Path, number: signal.Signals, code: int
) -> None:
    about = config(shards, tmp_path / "run")
    process = subprocess.Popen(command(about, SLOW), stderr=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 120
    events = about.folder / "events.jsonl"
    while not (events.exists() and events_of(about.folder, "step")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in error, error
    stopped = checkpoint.newest(about.folder)
    assert read_json(about.folder / "run.json")["status"] == "interrupted"
    assert 1 <= checkpoint.step_of(stopped) < 8
    assert checkpoint.position(stopped).next_sequence == checkpoint.step_of(stopped) * 4
    assert loop.train(about)["status"] == "done"
    assert same_weights(about.folder, whole)
    assert events_of(about.folder) == events_of(whole)
