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
COLUMNS = ("ours", "peer", "median", "min", "max")


@dataclass(frozen=True)
class Row:
    """One measurement. `ours` and `peer` are medians over the rounds.

    With a peer, min, median and max are those of the ratio, round by round, larger being better for us; without one
    they are those of ours, and the peer's two fields stay None.
    """

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


def against(name: str, ours: Sequence[float], peers: Sequence[float], peer_name: str, unit: str) -> Row:
    """Ours beside a peer's, of the same rounds in the same order; a larger number of `unit` is the better one."""
    ratios = [mine / theirs for mine, theirs in zip(ours, peers, strict=True)]
    spread = (min(ratios), statistics.median(ratios), max(ratios))
    return Row(name, statistics.median(ours), unit, *spread, statistics.median(peers), peer_name)


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
    for line in table(rows):
        print(line)
    for key, value in keys.items():
        print(f"{key} = {value:.4g}")
    print(f"written to {path}")


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as text: where one has a peer, both numbers and `x` before the ratio; else ours and its range."""
    width = max(len(r.name) for r in rows)
    heads = COLUMNS if any(r.peer_name for r in rows) else COLUMNS[2:]
    lines = [f"{'':<{width}}  " + " ".join(f"{head:>10}" for head in heads) + "  unit"]
    for r in rows:
        ratio = "x" if r.peer_name else ""
        cells = {"ours": _number(r.ours), "peer": _number(r.peer)}
        cells |= {head: ratio + _number(getattr(r, head)) for head in COLUMNS[2:]}
        end = f"{r.unit}, peer: {r.peer_name}" if r.peer_name else r.unit
        lines.append(f"{r.name:<{width}}  " + " ".join(f"{cells[head]:>10}" for head in heads) + f"  {end}")
    return lines


def _number(value: float | None) -> str:
    """Two decimals, or four significant digits where those would say little."""
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
