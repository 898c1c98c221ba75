"""events.jsonl: one JSON object per line, appended as things happen.

On resume, what came after the checkpoint is cut off: it will happen again, and must not stand there twice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gristmill.base.errors import DataError
from gristmill.base.files import atomic_path, writing


class EventLog:
    """Append-only. Every event is flushed to the system at once, and to the disk by sync()."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Open the log, keeping only events up to `last_step` (-1: none), and dropping a line cut short by a crash."""
        kept = [event for event in read_events(path) if event["step"] <= last_step] if path.exists() else []
        with atomic_path(path) as temporary:
            temporary.write_text("".join(_line(event) for event in kept), encoding="utf-8")
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, **values: Any) -> None:
        """A number that is not finite is written as null, which JSON has."""
        with writing(self._path):
            self._file.write(_line({"type": kind, "step": step, **values}))
            self._file.flush()

    def sync(self) -> None:
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self._path):  # what a full disk did not take is tried again
            self._file.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, in order; ends before a line that was cut short.

    Raises:
        DataError: another line is no event.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = json.loads(line.decode("utf-8"))
                _ = event["type"], int(event["step"])
            except (ValueError, TypeError, KeyError):
                raise DataError(f"{path}: line {number} is no event; delete that line to go on") from None
            yield event


def _line(event: dict[str, Any]) -> str:
    try:
        return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:  # seldom: of all events, only those of a step that went wrong
        return json.dumps(_finite(event), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    match value:
        case Mapping():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
    return value
