"""The policy desk: how long a page waits for a threshold that moves, over a million documents under thirty rules.

./dev bench report            a million documents, 300 movements
./dev bench report --quick    a hundred thousand, 60 movements

Times are what a client on the same machine waits, from the question to the last byte of its answer. Movements go
through the thresholds in turn, most of them of rules before those that choose from clusters what is left; each sets one
to a value it never had, and leaves the others where they were moved to. An answer names the documents nearest to the
threshold; their texts are a second question.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlencode

import numpy as np

from _report_runs import make, rules
from _results import publish, row
from gristmill.base import cli
from gristmill.base.errors import GristmillError

MEGA = 2**20
SERVE = "import sys; from gristmill.report.cli import main; sys.argv[:1] = ['report']; main()"


@dataclass(frozen=True)
class Config:
    quick: bool = False
    """A tenth of the documents."""
    corpus: Path | None = None
    """Not used: the numbers are made up."""


def main(arguments: list[str]) -> int:
    config = cli.parse_config(Config, arguments, "bench report", __doc__ or "")
    documents, movements = (100_000, 60) if config.quick else (1_000_000, 300)
    with tempfile.TemporaryDirectory() as scratch, served(make(Path(scratch) / "run", documents)) as (client, process):
        ask(client, "data")  # which every page has, with a desk or without
        before = resident_mb(process)
        layout, opened = ask(client, "desk")
        grown = resident_mb(process) - before
        moved, texts = move(client, layout, movements)
        curves = [ask(client, "desk_curves", rule=rule, side=side)[1] for rule, side in thresholds(layout)[::6]]
        held = resident_mb(process) - before
    rows = [
        row("the desk opens: columns read, clusters sorted", [opened], "s"),
        row("a threshold moves", moved, "ms"),
        row("  95 of 100 take at most", [quantiles(moved, n=20)[-1]], "ms"),
        row("texts of the nearest documents", texts, "ms"),
        row("the curve of one threshold", [1000 * seconds for seconds in curves], "ms"),
        row("memory of the desk", [grown], "MB"),
        row("  after all movements", [held], "MB"),
    ]
    keys = {
        "movement_ms": median(moved), "movement_p95_ms": quantiles(moved, n=20)[-1], "movement_max_ms": max(moved),
        "open_seconds": opened, "memory_mb": held,
    }  # fmt: skip
    publish("report", {"documents": documents, "rules": len(rules()), "movements": movements}, rows, keys)
    return 0


def move(client: http.client.HTTPConnection, layout: dict[str, Any], movements: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each movement, and of reading what lies at the boundary after some of them."""
    moved, texts = list[float](), list[float]()
    stops = {rule["name"]: rule["stops"] for rule in layout["rules"] if "stops" in rule}
    every, changes = thresholds(layout), dict[str, dict[str, float]]()
    draw = np.random.default_rng(0)
    for number in range(movements):
        rule, side = every[number % len(every)]
        # The looser half of what can be asked, so that something is left for the rules that come later.
        values = stops[rule][len(stops[rule]) // 2 :] if side == "max" else stops[rule][: len(stops[rule]) // 2]
        changes.setdefault(rule, {})[side] = float(draw.uniform(values[0], values[-1]))
        answer, seconds = ask(client, "desk_moved", changes=json.dumps(changes), rule=rule, side=side)
        moved.append(1000 * seconds)
        rows = [one["row"] for near in answer["boundary"].values() for one in near]
        if number % 5 == 0 and rows:
            texts.append(1000 * ask(client, "desk_documents", rows=",".join(map(str, rows)))[1])
    return moved, texts


def thresholds(layout: dict[str, Any]) -> list[tuple[str, str]]:
    """Of all sources together; a source with bounds of its own keeps those."""
    return [
        (rule["name"], one["side"])
        for rule in layout["rules"]
        for one in rule.get("thresholds", [])
        if one["source"] is None and rule["name"] != "no_tokens"
    ]


@contextmanager
def served(run: Path) -> Iterator[tuple[http.client.HTTPConnection, int]]:
    """A connection to `report open`, and the number of its process."""
    with subprocess.Popen([sys.executable, "-c", SERVE, "open", run], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            if not address:
                raise GristmillError("report open did not start")
            client = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=600)
            yield client, server.pid
            client.close()
        finally:
            server.terminate()


def ask(client: http.client.HTTPConnection, question: str, **parameters: str) -> tuple[dict[str, Any], float]:
    """The answer, and the seconds until it was there."""
    started = time.perf_counter()
    client.request("GET", f"/api/{question}?{urlencode(parameters)}")
    reply = client.getresponse()
    body = reply.read()
    seconds = time.perf_counter() - started
    answer = json.loads(body)
    if reply.status != 200 or "error" in answer:
        raise GristmillError(f"{question}: {answer}")
    return answer, seconds


def resident_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024 / MEGA


if __name__ == "__main__":
    sys.exit(cli.guarded("bench report", lambda: main(sys.argv[1:])))
