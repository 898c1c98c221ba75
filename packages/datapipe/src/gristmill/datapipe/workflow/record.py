"""RUN/run.json: the DAG as it runs. Written on every change, so that a dashboard can tail it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gristmill.base.files import canonical_json, read_json, write_json
from gristmill.datapipe.workflow.stage import Shuffle, Stage, Step

FORMAT = "gristmill.run/1"
RECORDED_LIBRARIES = ("gristmill-datapipe", "numpy", "pyarrow", "ray", "numba", "tokenizers", "torch", "transformers")
WRITE_INTERVAL_SECONDS = 1.0


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


class RunRecord:
    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / "run.json"
        self._lock = threading.Lock()
        self._written = 0.0
        earlier = {node["name"]: node for node in read_json(self._path)["nodes"]} if self._path.exists() else {}
        self._earlier: dict[str, dict[str, Any]] = earlier
        self.nodes: dict[str, NodeRecord] = {}
        self.quarantine: dict[str, Any] = {"total": 0, "documents": 0, "by_reason": {}}
        self.values: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "status": "running",
            "started_at": _now(),
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

    def write(self, force: bool = True) -> None:
        with self._lock:
            if not force and time.monotonic() - self._written < WRITE_INTERVAL_SECONDS:
                return
            self._written = time.monotonic()
            nodes = [asdict(node) for node in self.nodes.values()]
            write_json(self._path, {**self.values, "nodes": nodes, "quarantine": self.quarantine})

    def finish(self, status: str) -> None:
        self.values["status"], self.values["finished_at"] = status, _now()
        self.write()


def _now() -> str:
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
