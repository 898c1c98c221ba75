"""The runner: what it costs over a bare loop, what a second worker brings, a re-run of cached work, and memory.

./dev bench workflow                three rounds over 1 GB of made-up text; 10 GB once; 1,000 cached partitions
./dev bench workflow --quick        one round over 20 MB; 200 MB; 100 partitions
./dev bench workflow --corpus DIR   documents of DIR/*.jsonl.gz, over and over, instead of made-up text

The bare loop calls the same functions on the same partitions in one process: JSON lines into documents, documents into
Parquet; for each stage read, annotate, write Parquet. It has no ledger, no hashes, no Ray, and does not sync or rename.
A run is Runner.run(), embedded Ray and its workers being up: all else is in its time, from hashing the input on.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from _results import Row, publish, row
from _workflow_runs import CACHED, Measured, bare, pipeline, run
from _workflow_text import Generated, Repeated
from gristmill.base import cli

MEGA = 1e6
FILES = 16


@dataclass(frozen=True)
class Config:
    quick: bool = False
    """One round, of a fiftieth of the size."""
    corpus: Path | None = None
    """A folder of *.jsonl.gz; without it, made-up text."""


def main(arguments: list[str]) -> int:
    config = cli.parse_config(Config, arguments, "bench workflow", __doc__ or "")
    text = Repeated(config.corpus) if config.corpus else Generated()
    size, rows, rounds, cached = (20 * MEGA, 256, 1, 100) if config.quick else (1000 * MEGA, 4096, 3, 1000)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        inputs = write_files(text, scratch / "inputs", size / FILES, FILES)
        timed, keys, small = in_rounds(scratch / "runs", inputs, rows, rounds)
        shutil.rmtree(scratch / "inputs")
        again = rerun(text, scratch, cached, 1 if config.quick else 5)
        memory, growth = ten_times(text, scratch, size / FILES, rows, small)
    keys |= {f"rerun_seconds_{cached}": again.median, "memory_growth_10x": growth}
    about = {
        "corpus": config.corpus.name if config.corpus else "made up", "megabytes": size / MEGA, "rounds": rounds,
        "rows_per_partition": rows, "cached_partitions": cached,
    }  # fmt: skip
    publish("workflow", about, [*timed, again, *memory], keys)
    return 0


def write_files(text: Generated | Repeated, folder: Path, size: float, files: int) -> list[Path]:
    """So many files of `size` bytes each."""
    folder.mkdir(parents=True)
    paths = [folder / f"text{number:03d}.jsonl" for number in range(files)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda at: text.write(paths[at], at, size), range(files)))
    return paths


# Time -----------------------------------------------------------------------------------------------------------------


def in_rounds(
    folder: Path, inputs: list[Path], rows: int, rounds: int
) -> tuple[list[Row], dict[str, float], list[Measured]]:
    """The bare loop, one worker and two, in turn. Also what two workers held in memory, round by round."""
    loop, one, two = list[Measured](), list[Measured](), list[Measured]()
    for _ in range(rounds):
        loop.append(emptied(folder, bare(folder / "bare", inputs, rows)))
        one.append(emptied(folder, run(folder / "one", inputs, rows, workers=1)))
        two.append(emptied(folder, run(folder / "two", inputs, rows, workers=2)))
    overhead = [
        100 * (with_runner.seconds / without.seconds - 1) for with_runner, without in zip(one, loop, strict=True)
    ]
    speedup = [a.seconds / b.seconds for a, b in zip(one, two, strict=True)]
    timed: list[Row] = []
    for name, each in (("bare loop", loop), ("run with one worker", one), ("run with two workers", two)):
        timed.append(row(name, [measured.seconds for measured in each], "s"))
    timed += [row("what the runner costs", overhead, "%"), row("speed of two workers over one", speedup, "x")]
    return timed, {"overhead_percent": median(overhead), "two_worker_speedup": median(speedup)}, two


def emptied(folder: Path, measured: Measured) -> Measured:
    shutil.rmtree(folder)
    return measured


def rerun(text: Generated | Repeated, scratch: Path, partitions: int, rounds: int) -> Row:
    """filter_olmo3.py again, when all that it is asked for is cached: from the start of its process to the end."""
    documents, folder = 4, scratch / "cached"
    folder.mkdir()
    text.write(folder / "text.jsonl", 0, 0, documents=partitions * documents)
    inputs = [folder / "text.jsonl"]
    pipeline(folder / "run", inputs, documents)
    seconds = [pipeline(folder / "run", inputs, documents) for _ in range(rounds)]
    shutil.rmtree(folder)
    return row(f"filter_olmo3.py --only {' '.join(CACHED)}: {partitions:,} cached partitions", seconds, "s")


# Memory ---------------------------------------------------------------------------------------------------------------


def ten_times(
    text: Generated | Repeated, scratch: Path, size: float, rows: int, small: list[Measured]
) -> tuple[list[Row], float]:
    """Peak resident memory of the largest worker and of the driver with ten times the input, over that with once."""
    inputs = write_files(text, scratch / "inputs", size, 10 * FILES)
    large = emptied(scratch / "runs", run(scratch / "runs" / "large", inputs, rows, workers=2))
    workers, drivers = [each.worker_mb for each in small], [each.driver_mb for each in small]
    found = [
        row("run with two workers over ten times as much", [large.seconds], "s"),
        row("peak memory of the largest worker", workers, "MB"),
        row("  over ten times as much", [large.worker_mb], "MB"),
        row("peak memory of the driver", drivers, "MB"),
        row("  over ten times as much", [large.driver_mb], "MB"),
    ]
    return found, max(large.worker_mb / median(workers), large.driver_mb / median(drivers))


if __name__ == "__main__":
    sys.exit(cli.guarded("bench workflow", lambda: main(sys.argv[1:])))
