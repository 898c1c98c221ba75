"""From one command to the processes of a run: `local` starts them here, `ray` has Ray Train start them on its cluster.

Other starters (torchrun, Slurm) tell each process of the others by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and
nothing is left to start then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gristmill.base.config import to_mapping
from gristmill.base.errors import GristmillError
from gristmill.trainer import loop
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.run_folder import read_run

LOOK_SECONDS = 0.1
FAREWELL_SECONDS = 3.0
"""For so long after one process failed others may tell what they know."""
GOES_ON = "what is done is kept, and the same command goes on from the newest checkpoint"


def train(config: TrainConfig) -> dict[str, Any]:
    """loop.train() in as many processes as the configuration asks for.

    Raises:
        GristmillError: what loop.train() raises; or a process was lost.
    """
    if "WORLD_SIZE" in os.environ or config.launcher == "none":
        return loop.train(config)
    config.require_paths()
    if config.launcher == "ray":
        from gristmill.trainer.parallel.on_ray import train_on_ray

        train_on_ray(config)
    else:
        _start_here(config)
    return read_run(config.folder)


def resume(folder: Path) -> dict[str, Any]:
    """Go on with the run in `folder`, with the configuration stored there, and as many processes."""
    return train(loop.stored_config(folder))


def _start_here(config: TrainConfig) -> None:
    with tempfile.TemporaryDirectory(prefix="gristmill-") as name:
        given = Path(name) / "config.json"
        given.write_text(json.dumps(to_mapping(config)), encoding="utf-8")
        with _children(given, config) as processes, _passed_on(processes):
            while None in (codes := [process.poll() for process in processes]) and not any(codes):
                time.sleep(LOOK_SECONDS)
            if any(codes):
                _fail(processes, Path(name))


@contextlib.contextmanager
def _children(given: Path, config: TrainConfig) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes; none is left at the end. Each has a pipe from this one, and ends when that does."""
    about = {"WORLD_SIZE": str(config.nproc), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    processes = []
    try:
        for rank in range(config.nproc):
            words = [sys.executable, "-m", "gristmill.trainer.parallel.process", str(given)]
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(config.threads)}
            with _log(given.parent, rank).open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        words, env=os.environ | about | own, stdin=subprocess.PIPE, stderr=log if rank else None,
                        stdout=subprocess.DEVNULL, start_new_session=True,
                    )
                )  # fmt: skip
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


@contextlib.contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """SIGINT and SIGTERM go to the processes, which end after the step that is under way."""

    def send(number: int, _frame: Any) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, send) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fail(processes: Sequence[subprocess.Popen[bytes]], logs: Path) -> NoReturn:
    """Tell why the processes ended that did, and with their exit code."""
    codes = [process.poll() for process in processes]
    until = time.monotonic() + FAREWELL_SECONDS
    while None in codes and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        codes = [process.poll() for process in processes]
    if killed := [rank for rank, code in enumerate(codes) if code and code < 0]:
        name = signal.Signals(-codes[killed[0]]).name  # pyright: ignore[reportOptionalOperand]
        raise GristmillError(f"process {killed[0]} of {len(processes)} was ended by {name}; {GOES_ON}")
    if codes[0] in (130, 143):
        raise KeyboardInterrupt if codes[0] == 130 else SystemExit(143)
    if codes[0]:  # it has told why
        raise SystemExit(codes[0])
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    lines = _log(logs, rank).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise GristmillError(f"process {rank} of {len(processes)} failed ({code}): {lines[-1]}; {GOES_ON}")


def _log(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.log"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
