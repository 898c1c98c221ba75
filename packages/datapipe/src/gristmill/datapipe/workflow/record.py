"""RUN/run.json: the DAG as it runs, for whoever looks on; docs/workflow.md says what each field means.

While a runner lives it is written every few seconds: one that says "running" and was not written for long is of a
runner that died. No piece of work is done or left undone because of what stands here: that is the ledger's.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any

from gristmill.base.errors import DataError
from gristmill.base.files import canonical_json, read_object, write_json
from gristmill.base.progress import duration, per_second
from gristmill.base.terminal import shown
from gristmill.datapipe.workflow.stage import Shuffle, Stage, Step

FORMAT = "gristmill.run/1"
RECORDED_LIBRARIES = ("gristmill-datapipe", "numpy", "pyarrow", "ray", "numba", "tokenizers", "torch", "transformers")
CHANGED_SECONDS, BEAT_SECONDS = 1.0, 5.0
"""How soon a change is written, and how often `updated_at` moves where there is none."""
SILENT_SECONDS = 60.0
"""A run whose `updated_at` stands still for so long has no runner any more."""


KINDS: dict[type, str] = {Stage: "stage", Shuffle: "shuffle", Step: "step"}


def kind_of(node: object) -> str:
    return next((word for kind, word in KINDS.items() if isinstance(node, kind)), "ingest")


def plain_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What of a node its outputs depend on, as JSON holds it."""
    return json.loads(canonical_json(identity))


@dataclass
class NodeRecord:
    name: str
    kind: str
    requires: list[str]
    identity: dict[str, Any] | None = None
    """Version, settings, model files and libraries, as of the run that last finished it."""
    status: str = "pending"
    partitions: int = 0
    partitions_done: int = 0
    partitions_cached: int = 0
    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    started_at: str | None = None
    """When this run began to work at it; None where it did not."""
    phase: str = ""
    """What a running node is at, where it does one thing after another: look, read, scatter, gather."""
    documents: int = 0
    """What this run has worked through so far: those of cached partitions do not count."""
    documents_per_second: float | None = None
    eta_seconds: float | None = None
    """Until the phase is done. This and the rate are those of the last minute; None without ground for them."""
    quarantined: int = 0


class RunRecord:
    """What is set in `values` and `nodes` is written by write(); `may_write` forbids it from then on."""

    def __init__(self, folder: Path, name: str, may_write: Callable[[], bool] = lambda: True) -> None:
        """Raises DataError where the run.json that is there is damaged."""
        self._path, self._may_write = folder / "run.json", may_write
        self._lock = threading.Lock()
        self._written = self._started = time.monotonic()
        self._changed = False
        earlier = read_record(folder)["nodes"] if self._path.exists() else []
        self._earlier: dict[str, dict[str, Any]] = {node["name"]: node for node in earlier}
        self.nodes: dict[str, NodeRecord] = {}
        self.quarantine: dict[str, Any] = {"total": 0, "documents": 0, "by_reason": {}}
        self.values: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "status": "running",
            "started_at": now(),
            "updated_at": now(),
            "finished_at": None,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "versions": _versions(),
            "machine": {"cpus": os.cpu_count(), "memory_gb": _memory_gb(), "python": platform.python_version()},
        }

    def add(self, record: NodeRecord) -> NodeRecord:
        """Register a node; what an earlier run learned of it (seconds, counts) stands until this run learns better."""
        known = self._earlier.get(record.name)
        if known:
            record.seconds, record.counts, record.identity = known["seconds"], known["counts"], known.get("identity")
        self.nodes[record.name] = record
        return record

    def changed(self) -> None:
        """Something was set that readers should see soon."""
        self._changed = True

    def write(self, at_once: bool = True) -> None:
        """Where not `at_once`, only what was changed a second ago, or that the runner lives still."""
        with self._lock:
            waits = time.monotonic() - self._written
            if not at_once and waits < (CHANGED_SECONDS if self._changed else BEAT_SECONDS):
                return
            if self._may_write():
                self._written, self._changed, self.values["updated_at"] = time.monotonic(), False, now()
                nodes = [asdict(node) for node in self.nodes.values()]
                write_json(self._path, {**self.values, "nodes": nodes, "quarantine": self.quarantine})

    def finish(self, status: str) -> None:
        for node in self.nodes.values():
            if node.status == "running":  # nobody is at work any more
                node.status = status
        self.values["status"], self.values["finished_at"] = status, now()
        try:
            self.write()
        except OSError:
            if status == "done":  # else this would stand in the way of why it is not
                raise

    def summary(self) -> str:
        """The run in a line: `done in 312 s: 8,000 documents, 6,123 kept, 12 quarantined; 14 nodes done, 3 cached`."""
        up_to_date = [node.counts for node in self.nodes.values() if node.status in ("done", "cached")]
        kept = [counts["kept"] for counts in up_to_date if "kept" in counts]
        parts = [f"{self.quarantine['documents']:,} documents", *(f"{count:,} kept" for count in kept[-1:])]
        parts.append(f"{self.quarantine['total']:,} quarantined")
        states = Counter(node.status for node in self.nodes.values())
        nodes = ", ".join(f"{count} {status}" for status, count in states.items())
        seconds = duration(time.monotonic() - self._started)
        return f"{self.values['status']} in {seconds}: {', '.join(parts)}; nodes: {nodes}"


def read_record(folder: Path) -> dict[str, Any]:
    """RUN/run.json as a runner wrote it.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path, mend = folder / "run.json", "delete it, and run the pipeline to have it made again"
    record = read_object(path, mend, format=str)
    if record["format"] != FORMAT:
        raise DataError(f"{path}: not of a pipeline's run ({FORMAT}), but {record['format']}")
    if not _holds(record, OF_RUN) or not all(_holds(node, OF_NODE) for node in record["nodes"]):
        raise DataError(f"{path}: not whole; {mend}")
    return record


OF_RUN: dict[str, type | UnionType] = {
    "name": str, "status": str, "started_at": str, "versions": dict, "nodes": list, "quarantine": dict,
}  # fmt: skip
OF_NODE: dict[str, type | UnionType] = {
    "name": str, "kind": str, "requires": list, "status": str, "partitions": int, "partitions_done": int,
    "seconds": int | float, "counts": dict,
}  # fmt: skip
"""What readers count on."""


def _holds(value: Any, kinds: Mapping[str, type | UnionType]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in kinds.items())


def told(node: Mapping[str, Any]) -> list[str]:
    """What is known of a node that is running, for a line about it; `node` as in run.json."""
    parts = []
    if node.get("documents_per_second") is not None:
        parts.append(per_second(node["documents_per_second"], "documents"))
    if node.get("quarantined") or node["kind"] == "ingest":
        parts.append(f"{node.get('quarantined', 0):,} quarantined")
    if node.get("eta_seconds") is not None:
        parts.append(f"about {duration(node['eta_seconds'])} left")
    return parts


def table(record: Mapping[str, Any]) -> list[str]:
    """A run as text: how it stands, a line for each node, and what was quarantined. `record`: of read_record()."""
    first = f"{record['name']}: {record['status']}, started {record['started_at']}"
    heard = datetime.fromisoformat(record.get("updated_at") or record["started_at"])
    silent = (datetime.now(UTC) - heard).total_seconds()
    if record["status"] == "running" and silent > SILENT_SECONDS:
        first += f"; its runner has written nothing for {duration(silent)}: it died, and the same command goes on"
    lines = [first]
    for node in record["nodes"]:
        done = f"{node['partitions_done']}/{node['partitions']}"
        counted = [f"{key} {value:,}" for key, value in node["counts"].items() if isinstance(value, (int, float))]
        facts = told(node) if node["status"] == "running" else [node["error"]] if node["error"] else counted
        seconds = f"{node['seconds']:.1f} s"
        lines.append(f"  {node['name']:<18} {node['status']:<8} {done:>9}  {seconds:>10}  {', '.join(facts)}")
    quarantine = record["quarantine"]
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in quarantine["by_reason"].items())
    lines.append(f"  quarantined: {quarantine['total']:,}{f' ({reasons})' if reasons else ''}")
    return [shown(line) for line in lines]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {}
    for library in RECORDED_LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
