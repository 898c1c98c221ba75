"""What every benchmark prints: one JSON file under benchmarks/results/, and the same as a table on stdout."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gristmill.base.files import write_json

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One measurement: medians, and the range of ours over the rounds. Without a peer those two fields stay None."""

    name: str
    ours: float
    unit: str
    min: float
    median: float
    max: float
    peer: float | None = None
    peer_name: str | None = None


def row(name: str, values: Sequence[float], unit: str) -> Row:
    median = statistics.median(values)
    return Row(name, median, unit, min(values), median, max(values))


def publish(bench: str, inputs: Mapping[str, Any], rows: Sequence[Row], keys: Mapping[str, float]) -> None:
    machine = {"cpus": os.cpu_count(), "processor": _processor(), "python": platform.python_version()}
    path = FOLDER / f"{bench}.json"
    write_json(
        path,
        {
            "bench": bench,
            "machine": machine,
            "inputs": dict(inputs),
            "rows": [asdict(r) for r in rows],
            "keys": dict(keys),
        },
    )
    width = max(len(r.name) for r in rows)
    print(f"{'':<{width}}  {'median':>10} {'min':>10} {'max':>10}  unit")
    for r in rows:
        print(f"{r.name:<{width}}  {r.median:>10.2f} {r.min:>10.2f} {r.max:>10.2f}  {r.unit}")
    for key, value in keys.items():
        print(f"{key} = {value:.3f}")
    print(f"written to {path}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
