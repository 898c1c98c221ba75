"""What a training run costs beside its steps: data, log, health, checkpoints, and starting again.

./dev bench train            five rounds after a warm-up: 20 steps of 8 windows of 256 tokens, a checkpoint after ten
./dev bench train --quick    one round: 4 steps of 2 windows of 64, a checkpoint after two

About 50 M weights, in fp32 on one thread. overhead_percent: wall time of the loop as `trainer run` has it over that of
the same steps on batches that are in memory, in the same round. Settings are the default's, but checkpoints come twenty
times as often, and observed steps five times. The wait for the last checkpoint, once in a run, is a row by itself.
checkpoint_pause_percent: how long training waits for a checkpoint before the last, of a bare step. resume_seconds: from
the start of a process to its first step. Checkpoints are written by another thread, best on another core.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from _results import publish, row
from _train_runs import VOCAB, bare, whole, write_shards
from gristmill.base import cli
from gristmill.base.errors import GristmillError
from gristmill.base.files import read_json, write_json
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.model.config import ModelSection, resolve
from gristmill.trainer.model.counts import count
from gristmill.trainer.watch.config import HealthConfig

MODEL = ModelSection(
    width=384, layers=8, heads=6, kv_heads=2, head_dim=64, experts=16, top_k=2, expert_width=256, tie_embeddings=False
)


@dataclass(frozen=True)
class Config:
    quick: bool = False
    """One round of four short steps."""
    corpus: Path | None = None
    """Not used: tokens are random."""


def main(arguments: list[str]) -> int:
    config = cli.parse_config(Config, arguments, "bench train", __doc__ or "")
    steps, windows, sequence, rounds = (4, 2, 64, 1) if config.quick else (20, 8, 256, 5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokens = steps * windows * sequence
        settings = TrainConfig(
            mixture="bench", data=str(write_shards(_made(folder / "data"), 2 * tokens)), tokens=tokens,
            checkpoint_every=steps // 2, validate_tokens=0, model=MODEL, device="cpu", health=HealthConfig(steps // 2),
            batch=BatchConfig(sequence, windows, windows),
        )  # fmt: skip
        plain, full, resumed = [], [], []
        for number in range(rounds + (0 if config.quick else 1)):
            run = replace(settings, output=str(folder / f"run-{number}"))
            plain.append(bare(run))
            full.append(whole(run))
            resumed.append(resume(run))
            shutil.rmtree(run.folder)
    plain, full, resumed = plain[-rounds:], full[-rounds:], resumed[-rounds:]  # without the warm-up
    overhead = [100 * (a.seconds / b - 1) for a, b in zip(full, plain, strict=True)]
    pauses = [100 * pause / (b / steps) for a, b in zip(full, plain, strict=True) for pause in a.pauses]
    rows = [
        row("bare step", [seconds / steps for seconds in plain], "s"),
        row("loop over bare steps", overhead, "percent more"),
        row("pause for a checkpoint", pauses, "percent of a step"),
        row("wait for the last checkpoint", [a.ending for a in full], "s"),
        row("process start to first step, resuming", resumed, "s"),
    ]
    keys = {
        "overhead_percent": median(overhead),
        "checkpoint_pause_percent": median(pauses),
        "resume_seconds": median(resumed),
    }
    about = {"parameters": count(resolve(MODEL, VOCAB)).total, "steps": steps, "windows": windows, "sequence": sequence}
    publish("train", about | {"rounds": rounds, "threads": 1}, rows, keys)
    return 0


def resume(run: TrainConfig) -> float:
    """Seconds that a new process takes to the first step after the checkpoint before the last."""
    shutil.rmtree(checkpoint.newest(run.folder))
    write_json(run.folder / "run.json", read_json(run.folder / "run.json") | {"status": "interrupted"})
    command = [sys.executable, __file__, "--resume", str(run.folder), str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GristmillError(f"bench train, resuming: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return float(done.stdout.splitlines()[-1])


def _resume(folder: str, started: str) -> None:
    from gristmill.trainer import loop

    def first_step(*_: object, **__: object) -> None:
        print(time.time() - float(started))
        sys.exit(0)

    loop.train_step = first_step  # pyright: ignore[reportAttributeAccessIssue]
    loop.resume(Path(folder))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    if sys.argv[1:2] == ["--resume"]:
        _resume(*sys.argv[2:])
        sys.exit(0)
    sys.exit(cli.guarded("bench train", lambda: main(sys.argv[1:])))
