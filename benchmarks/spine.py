"""Seconds of each stage of the demo, and of the demo when everything is cached.

./dev bench spine            five rounds of the whole demo after a warm-up
./dev bench spine --quick    one round of the small demo
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from _results import Row, publish, row
from gristmill.base import cli
from gristmill.base.errors import GristmillError
from gristmill.base.files import read_json

DEMO = Path(__file__).resolve().parents[1] / "pipelines" / "demo.py"


@dataclass(frozen=True)
class Config:
    quick: bool = False
    """One round, of the small demo, without a warm-up."""
    corpus: Path | None = None
    """Not used: the demo gathers its own text."""


def main(arguments: list[str]) -> int:
    config = cli.parse_config(Config, arguments, "bench spine", __doc__ or "")
    size = ["--quick"] if config.quick else []
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if not config.quick:
            _demo(Path(scratch) / "warm", ["--quick"])
        for number in range(1 if config.quick else 5):
            folder = Path(scratch) / str(number)
            seconds.setdefault("whole demo", []).append(_demo(folder, size))
            for node in read_json(folder / "run.json")["nodes"]:
                seconds.setdefault(node["name"], []).append(node["seconds"])
            seconds.setdefault("again, all cached", []).append(_demo(folder, size))
    rows: list[Row] = [row(name, values, "s") for name, values in seconds.items()]
    medians = {r.name: r.median for r in rows}
    keys = {"demo_seconds": medians["whole demo"], "cached_seconds": medians["again, all cached"]}
    publish("spine", {"demo": "quick" if config.quick else "full", "workers": 2}, rows, keys)
    return 0


def _demo(folder: Path, size: list[str]) -> float:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, DEMO, "--output", folder, *size], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise GristmillError(f"the demo failed: {done.stderr.strip().splitlines()[-1]}")
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(cli.guarded("bench spine", lambda: main(sys.argv[1:])))
