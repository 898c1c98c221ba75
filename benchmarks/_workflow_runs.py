"""What bench workflow times, each in a process of its own: a bare loop, a run, and a whole pipeline that is all cached.

The DAG of the first two: ingest, then two stages that measure each document, one with a model (language: actors on Ray)
and one without (Gopher's two families of heuristics: tasks). All that a policy asks for takes longer, and would hide
more of what a runner costs. Before its clock starts, a process has done the same with a small input: kernels are
compiled, Ray and its workers are there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gristmill.base.errors import GristmillError

PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"
CACHED = ("language", "heuristics", "url", "sketch")
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Measured:
    seconds: float
    worker_mb: float
    """The most that one worker of Ray had in memory at any time, in 10^6 bytes."""
    driver_mb: float


# Here -----------------------------------------------------------------------------------------------------------------


def bare(folder: Path, inputs: Sequence[Path], rows: int) -> Measured:
    return _measure("bare", folder, 0, rows, inputs)


def run(folder: Path, inputs: Sequence[Path], rows: int, workers: int) -> Measured:
    return _measure("run", folder, workers, rows, inputs)


def pipeline(folder: Path, inputs: Sequence[Path], rows: int) -> float:
    """Seconds from the start of filter_olmo3.py to its end, report included; of its nodes only those of CACHED."""
    words = ["--input", *inputs, "--output", folder, "--ingest.rows-per-partition", rows, "--only", *CACHED]
    started = time.monotonic()
    _end(_start([PIPELINES / "filter_olmo3.py", *words], folder), folder)
    return time.monotonic() - started


def _measure(what: str, folder: Path, workers: int, rows: int, inputs: Sequence[Path]) -> Measured:
    process = _start([__file__, what, folder, workers, rows, *inputs], folder)
    peaks: dict[int, float] = {}
    watching = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
    watching.start()
    answer = json.loads(_end(process, folder).splitlines()[-1])
    watching.join()
    driver = peaks.pop(process.pid, 0.0)
    return Measured(answer["seconds"], max(peaks.values(), default=0.0), driver)


def _start(words: Sequence[object], folder: Path) -> subprocess.Popen[str]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.log").open("w") as log:
        return subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=log, text=True)


def _end(process: subprocess.Popen[str], folder: Path) -> str:
    """What it printed. Raises GristmillError where it failed."""
    out = process.communicate()[0]
    if process.returncode:
        said = folder.with_name(f"{folder.name}.log").read_text(errors="replace").strip().splitlines()
        raise GristmillError(f"a run of the benchmark failed: {said[-1] if said else 'it said nothing'}")
    return out


def _watch(process: subprocess.Popen[str], peaks: dict[int, float]) -> None:
    """Fills, while the process lives, the peak memory of it and of each worker of its Ray, in MB."""
    while process.poll() is None:
        for each in _tree(process.pid):
            try:
                if each.pid == process.pid or "".join(each.cmdline()).startswith("ray::"):
                    peaks[each.pid] = max(peaks.get(each.pid, 0.0), _peak(each.pid))
            except (psutil.Error, OSError):
                continue  # it has gone
        time.sleep(LOOK_SECONDS)


def _tree(root: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(root)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _peak(process: int) -> float:
    """The kernel's own high-water mark of resident memory: no peak between two looks is missed. MB; 0 once it ends."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(lines.get("VmHWM", "0 kB").split()[0]) * 1024 / 1e6


# In that process ------------------------------------------------------------------------------------------------------


def _nodes() -> list[Any]:
    from gristmill.datapipe.filters.heuristics import HeuristicsConfig
    from gristmill.datapipe.filters.language import LanguageConfig
    from gristmill.datapipe.stages.measure import Heuristics, Language

    return [Language(LanguageConfig()), Heuristics(HeuristicsConfig(families=("gopher", "repetition")))]


def _runner(folder: Path, inputs: Sequence[Path], rows: int, workers: int) -> Any:
    from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
    from gristmill.datapipe.workflow.runner import Runner

    ingest = Ingest(tuple(map(str, inputs)), IngestConfig(rows_per_partition=rows))
    return Runner(folder, ingest, _nodes(), name="bench", workers=workers)


def _bare_loop(folder: Path, inputs: Sequence[Path], rows: int, nodes: Sequence[Any]) -> None:
    """The same functions on the same partitions, one after another; without ledger, hashes, fsync, renaming and Ray."""
    import pyarrow.parquet as pq

    from gristmill.datapipe.workflow.stage import read_part

    for name in ("documents", *(node.name for node in nodes)):
        (folder / name).mkdir(parents=True)
    for node in nodes:
        node.setup({})
    for number, path in enumerate(inputs):
        parts = _ingest(path, folder / "documents", f"{number:05d}", rows)
        for node in nodes:
            for part in parts:
                found = node.annotate(read_part(folder / "documents" / part, node.columns), {})
                pq.write_table(found, folder / node.name / part, compression="zstd")


def _ingest(path: Path, folder: Path, key: str, rows: int) -> list[str]:
    """JSON lines into partitions of documents, as ingest makes them. Answers their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gristmill.datapipe.document import SCHEMA
    from gristmill.datapipe.ingest import documents
    from gristmill.datapipe.ingest.ingest import IngestConfig
    from gristmill.datapipe.ingest.readers import read_rows
    from gristmill.datapipe.ingest.rows import Bad

    config, made, parts = IngestConfig(rows_per_partition=rows), list[documents.Document](), list[str]()
    maker = documents.Documents(path.name, "text", "id", "source", "", ())

    def write() -> None:
        columns = [documents._array(column, field.type) for column, field in zip(zip(*made, strict=True), SCHEMA)]
        table, dictionary = pa.Table.from_arrays(columns, schema=SCHEMA), documents.REPEATED
        parts.append(documents.part_name(key, len(parts)))
        pq.write_table(table, folder / parts[-1], compression="zstd", use_dictionary=dictionary)  # pyright: ignore[reportArgumentType]
        made.clear()

    size = 0
    for row in read_rows(path, path.name, "text", config.max_line_bytes, None, config.page):
        document = None if isinstance(row, Bad) else maker.document(row)
        if isinstance(document, tuple):
            made.append(document)
            size += len(document[1])
        if len(made) >= rows or size >= config.bytes_per_partition:
            write()
            size = 0
    if made:
        write()
    return parts


def main(what: str, folder: Path, workers: int, rows: int, inputs: list[Path]) -> None:
    warm = folder.with_name("warm.jsonl")
    with inputs[0].open("rb") as file, warm.open("wb") as few:
        few.writelines(file.readline() for _ in range(200))
    if what == "bare":
        import pyarrow as pa

        pa.set_cpu_count(1)  # as in a worker of Ray that has one processor
        nodes = _nodes()
        _bare_loop(folder.with_name("warm"), [warm], 50, nodes)
        started = time.monotonic()
        _bare_loop(folder, inputs, rows, nodes)
        print(json.dumps({"seconds": time.monotonic() - started}))
        return
    from gristmill.datapipe.workflow.executor import start

    ray = start(workers)  # the runners below find it there
    _runner(folder.with_name("warm"), [warm], 10, workers).run()
    runner = _runner(folder, inputs, rows, workers)
    started = time.monotonic()
    runner.run()
    seconds = time.monotonic() - started
    ray.close()
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), list(map(Path, sys.argv[5:])))
