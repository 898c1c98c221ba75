"""Parts of a source for writers in other processes: made of numbers, and noting in a file that they were read."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.writer import SourceSpec, write_source

TOKENIZER = TokenizerInfo(name="ids", sha256=hashlib.sha256(b"ids").hexdigest(), vocab_size=1000, eos_id=0)
SPEC = SourceSpec("docs", TOKENIZER, salt="s", valid_fraction=0.1, columns={"bytes": "int64"})
SIZES: dict[str, Any] = {"shard_tokens": 6_000, "ramp": (1_000, 2_000), "memory_tokens": 4_000}
PARTS = 6


def table(part: int, count: int = 60) -> pa.Table:
    draw = np.random.default_rng(part)
    lengths = draw.integers(1, 300, count)
    return pa.table(
        {
            "id": [f"{part}-{i}" for i in range(count)],
            "tokens": pa.array([draw.integers(1, 1000, n).tolist() for n in lengths], pa.list_(pa.uint16())),
            "file": [f"{part}.jsonl"] * count,
            "row": np.arange(count),
            "bytes": lengths * 4,
        }
    )


def read(part: int, log: Path, hang_at: int) -> Iterator[pa.Table]:
    """The part's tables; the log gets its number and the process. Part `hang_at` is given half, and no end."""
    with log.open("a") as file:
        file.write(f"{part} {os.getpid()}\n")
    whole = table(part)
    yield whole.slice(0, 30)
    if part == hang_at:
        time.sleep(600)
    yield whole.slice(30)


def parts(log: Path, hang_at: int = -1) -> dict[str, Callable[[], Iterator[pa.Table]]]:
    return {f"part {part}": functools.partial(read, part, log, hang_at) for part in range(PARTS)}


def calls(log: Path) -> list[tuple[int, int]]:
    """(part, process) of each reading so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(part), int(process)) for part, process in map(str.split, lines)]


def main(folder: str, log: str, workers: str, hang_at: str, hang_after: str) -> None:
    """Write the source with a resume key; hang in a part, or once so many tokens are in shards."""

    def progress(done: int, total: int) -> None:
        if done >= int(hang_after) > 0:
            print("hanging", flush=True)
            time.sleep(600)

    given = parts(Path(log), int(hang_at))
    write_source(Path(folder), SPEC, given, workers=int(workers), resume_key="k", progress=progress, **SIZES)


if __name__ == "__main__":
    main(*sys.argv[1:])
