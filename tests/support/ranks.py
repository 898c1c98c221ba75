"""A function in several fresh processes that gloo joins; a file store brings them together, so no port is fixed."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

SECONDS = 240.0
"""A job that has not ended after so long hangs."""


def in_ranks(function: Callable[..., Any], n: int, *args: Any, seconds: float = SECONDS) -> list[Any]:
    """What function(rank, n, *args) returns in each of n processes: JSON, or tensors by name (a dictionary of those).

    Args:
        function: of a module's top level.
        args: JSON, and paths, which arrive as strings.

    Raises:
        AssertionError: a rank failed, or the job hangs; with every rank's last words. No process is left.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        job = {"module": function.__module__, "function": function.__qualname__, "args": args}
        (folder / "job.json").write_text(json.dumps(job, default=str))
        variables = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)]),
        }
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(n):
                with (folder / f"{rank}.log").open("wb") as log:
                    command = [sys.executable, "-m", "tests.support.ranks", str(folder), str(rank), str(n)]
                    processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=variables))
            failed = _wait(processes, seconds)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        if failed:
            logs = [(folder / f"{rank}.log").read_text(errors="replace")[-4000:] for rank in range(n)]
            told = "\n".join(f"--- rank {rank}\n{log}" for rank, log in enumerate(logs))
            raise AssertionError(f"{function.__qualname__} in {n} ranks: {failed}\n{told}")
        return [_read(folder, rank) for rank in range(n)]


def _wait(processes: list[subprocess.Popen[bytes]], seconds: float) -> str:
    """Until all have ended well; else what went wrong."""
    end = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in processes]
        if ended_badly := {rank: code for rank, code in enumerate(codes) if code}:
            return f"exit codes by rank {ended_badly}"
        if None not in codes:
            return ""
        if time.monotonic() > end:
            return f"no end after {seconds:g} s; exit codes {codes}"
        time.sleep(0.05)


def _read(folder: Path, rank: int) -> Any:
    tensors = folder / f"{rank}.safetensors"
    return load_file(tensors) if tensors.exists() else json.loads((folder / f"{rank}.json").read_text())


def _main(folder: Path, rank: int, n: int) -> None:
    torch.set_num_threads(1)
    job = json.loads((folder / "job.json").read_text())
    function = getattr(importlib.import_module(job["module"]), job["function"])
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=n, timeout=timedelta(seconds=SECONDS))
    result = function(rank, n, *job["args"])
    if isinstance(result, dict) and result and all(isinstance(value, torch.Tensor) for value in result.values()):
        save_file(
            {name: value.detach().clone().contiguous() for name, value in result.items()},
            folder / f"{rank}.safetensors",
        )
    else:
        (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()  # nobody hangs up while another is still at work
    dist.destroy_process_group()


def _last_words(*error: Any) -> None:
    traceback.print_exception(*error, file=sys.__stderr__)  # sys.stderr is torch's here, which would lose them
    assert sys.__stderr__ is not None
    sys.__stderr__.flush()
    os._exit(1)  # the process group's threads would wait for the other ranks


if __name__ == "__main__":
    sys.excepthook = _last_words
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
