"""From one command to the processes of a run: `local` starts them here, `ray` has Ray Train start them on its cluster.

Other starters (torchrun, Slurm) tell each process of the others by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and
nothing is left to start then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gristmill.base.config import to_mapping
from gristmill.base.errors import GristmillError, UsageError
from gristmill.trainer import loop
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.parallel import process
from gristmill.trainer.parallel.world import MEETING
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
    started = os.environ.get("WORLD_SIZE")
    if started and config.launcher != "none" and int(started) != config.nproc:
        raise UsageError(
            f"WORLD_SIZE is {started}, as if processes were started already, and --nproc {config.nproc}: unset it, or "
            "leave --launcher out"
        )
    if started or config.launcher == "none":
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
        with _children(given, config) as processes, _passed_on(processes) as passed:
            while None in (codes := [one.poll() for one in processes]) and not any(codes):
                time.sleep(LOOK_SECONDS)
            if any(codes):
                _fail(processes, passed, Path(name))


@contextlib.contextmanager
def _children(given: Path, config: TrainConfig) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes; none is left at the end. Each has a pipe from this one, and ends when that does."""
    # They meet in a file, and talk on this machine's own address: no port of theirs is open to others.
    about = {"WORLD_SIZE": str(config.nproc), MEETING: f"file://{given.parent}/meeting"}
    if sys.platform == "linux":
        about |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    processes = []
    try:
        for rank in range(config.nproc):
            words = [sys.executable, "-P", "-m", process.__name__, str(given)]
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(config.threads)}
            with _log(given.parent, rank).open("wb") as log:
                # -P: what lies in the current folder is not code
                processes.append(
                    subprocess.Popen(
                        words, env=os.environ | about | own, stdin=subprocess.PIPE, stderr=log if rank else None,
                        stdout=subprocess.DEVNULL, start_new_session=True,
                    )
                )  # fmt: skip
        yield processes
    finally:
        for one in processes:
            if one.poll() is None:
                one.kill()
            one.wait()
            assert one.stdin is not None
            one.stdin.close()


@contextlib.contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """SIGINT and SIGTERM go to the processes, which end after the step that is under way; answers those that came."""
    passed: list[int] = []

    def send(number: int, _frame: Any) -> None:
        passed.append(number)
        for one in processes:
            if one.poll() is None:
                one.send_signal(number)

    previous = {number: signal.signal(number, send) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield passed
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fail(processes: Sequence[subprocess.Popen[bytes]], passed: Sequence[int], logs: Path) -> NoReturn:
    """Tell why the processes ended that did, and with their exit code."""
    stops = (0, 130, 143)
    until = time.monotonic() + FAREWELL_SECONDS
    while None in (codes := _codes(processes, passed)):
        if not set(codes) <= {None, *stops} and time.monotonic() > until:
            break
        time.sleep(LOOK_SECONDS)
    ended = {rank: code for rank, code in enumerate(codes) if code not in (None, *stops, process.LOST)}
    if killed := [rank for rank, code in ended.items() if code < 0]:
        name = signal.Signals(-ended[killed[0]]).name
        raise GristmillError(f"process {killed[0]} of {len(processes)} was ended by {name}; {GOES_ON}")
    if 0 in ended:  # it has told why
        raise SystemExit(ended[0])
    for rank, code in ended.items():
        lines = _log(logs, rank).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        told = [line for line in lines if line.startswith("trainer:")]
        print("\n".join(told[-1:] or lines[-30:]), file=sys.stderr)
        print(f"trainer: that was process {rank} of {len(processes)}; {GOES_ON}", file=sys.stderr)
        raise SystemExit(code)
    if process.LOST in codes:
        raise GristmillError(f"the processes lost touch with each other; {GOES_ON}")
    raise KeyboardInterrupt if 130 in codes else SystemExit(143)


def _codes(processes: Sequence[subprocess.Popen[bytes]], passed: Sequence[int]) -> list[Any]:
    """Exit codes, None of who is at work; who was ended by a signal that was passed on has stopped by it."""
    codes = [one.poll() for one in processes]
    return [128 - code if code is not None and -code in passed else code for code in codes]


def _log(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.log"
