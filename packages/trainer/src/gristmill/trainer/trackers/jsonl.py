"""events.jsonl: one JSON object per line, appended as things happen.

On resume, what came after the checkpoint is cut off: it will happen again, and must not stand there twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gristmill.base.files import atomic_path


class EventLog:
    """Append-only. Every event is flushed to the system at once, and to the disk by sync()."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Open the log, keeping only events up to `last_step` (-1: none), and dropping a line cut short by a crash."""
        kept = [event for event in read_events(path) if event["step"] <= last_step] if path.exists() else []
        with atomic_path(path) as temporary:
            temporary.write_text("".join(_line(event) for event in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, **values: Any) -> None:
        self._file.write(_line({"type": kind, "step": step, **values}))
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, in order; ends before a line that was cut short."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
