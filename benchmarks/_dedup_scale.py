"""The whole search for exact and near duplicates, as pipelines run it, on a corpus that is written for it.

As a script: documents are ingested, then the nodes run with two workers on Ray; prints seconds and what they counted.
Ray and the workers' compiled kernels are there before the clock starts, and ingest is not timed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gristmill.base.errors import GristmillError
from gristmill.base.files import read_json

WORKERS = 2
WARM_DOCUMENTS = 2000


@dataclass(frozen=True)
class Measured:
    seconds: float
    duplicates: dict[str, int]
    """Documents that are not the first of their cluster: by node, exact and near."""
    worker_gb: float
    """The most that one worker had in memory at any time, in 10^9 bytes."""
    driver_gb: float


def measure(inputs: Sequence[Path], scratch: Path) -> Measured:
    """One search in a process of its own, whose memory and whose workers' memory is watched.

    Raises:
        GristmillError: it failed; with the last line that it wrote.
    """
    run, log = scratch / "run", scratch / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen([sys.executable, __file__, run, *inputs], stdout=subprocess.PIPE, stderr=errors)
        peaks = _watch(process.pid)
        out = process.communicate()[0].decode()
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise GristmillError(f"the search for duplicates failed: {said[-1] if said else 'it said nothing'}")
    shutil.rmtree(run)
    answer = json.loads(out.splitlines()[-1])
    driver = peaks.pop(process.pid, 0.0)
    return Measured(answer["seconds"], answer["duplicates"], max(peaks.values(), default=0.0), driver)


def _watch(driver: int) -> dict[int, float]:
    """Fills, while the driver lives, the peak memory of the driver and of each worker of its Ray, in GB."""
    peaks: dict[int, float] = {}

    def watch() -> None:
        while Path(f"/proc/{driver}/cmdline").exists() and _command(driver):
            for process in _descendants(driver):
                if process == driver or _command(process).startswith("ray::"):  # as Ray names its workers
                    peaks[process] = max(peaks.get(process, 0.0), _peak(process))
            time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()
    return peaks


def _descendants(root: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        if line := _read(path):
            parents[int(path.parent.name)] = int(line.rpartition(")")[2].split()[1])
    found, fresh = {root}, {root}
    while fresh:
        fresh = {process for process, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def _peak(process: int) -> float:
    """The kernel's own high-water mark of resident memory: no peak between two looks is missed."""
    lines = dict(line.split(":", 1) for line in _read(Path(f"/proc/{process}/status")).splitlines())
    return int(lines.get("VmHWM", "0 kB").split()[0]) * 1024 / 1e9


def _command(process: int) -> str:
    return _read(Path(f"/proc/{process}/cmdline"))


def _read(path: Path) -> str:
    """Nothing, where the process has gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def search(run: Path, inputs: Sequence[Path]) -> dict[str, Any]:
    from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
    from gristmill.datapipe.stages.duplicates import NearConfig, duplicate_nodes
    from gristmill.datapipe.workflow.executor import start
    from gristmill.datapipe.workflow.runner import Runner

    run.mkdir(parents=True)
    few = run / "few.parquet"
    pq.write_table(pq.read_table(inputs[0]).slice(0, WARM_DOCUMENTS), few)
    ray = start(WORKERS)  # the runners below find it there
    ingest = Ingest(tuple(map(str, inputs)))
    small = IngestConfig(rows_per_partition=100)  # work for every worker
    Runner(run / "warm", Ingest((str(few),), small), duplicate_nodes(NearConfig()), workers=WORKERS).run()
    Runner(run / "whole", ingest, [], workers=WORKERS).run()
    started = time.monotonic()
    Runner(run / "whole", ingest, duplicate_nodes(NearConfig()), workers=WORKERS).run()
    seconds = time.monotonic() - started
    ray.close()
    counts = {node["name"]: node["counts"] for node in read_json(run / "whole" / "run.json")["nodes"]}
    return {"seconds": seconds, "duplicates": {name: counts[name]["duplicates"] for name in ("exact", "near")}}


if __name__ == "__main__":
    print(json.dumps(search(Path(sys.argv[1]), list(map(Path, sys.argv[2:])))))
