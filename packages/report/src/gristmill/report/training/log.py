"""A training run's events.jsonl, followed by its length: what was read once is kept as columns, and only what was
appended is parsed.

Loads of experts are the bulk of a log and are not kept: a step remembers where its line lies, and load() reads it
there. A log that goes back to an earlier step (a run resumed without its last steps) is cut there, as the run was.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.base.errors import DataError
from gristmill.report.columns import Array, NotThere

Event = dict[str, Any]
BLOCK, ENDS = (
    1 << 24,
    4096,
)  # bytes read at once; bytes at either end of what was read that tell whether it still stands
MOST_COLUMNS, MOST_LAYERS = 600, 4096  # names come from the file, and how long a list is, too


class Columns:
    """Numbers of rows by name, float64; NaN where a row has none. A name's column has a second axis where its rows are
    lists: as wide as the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self._arrays: dict[str, Array] = {}

    def add(self, values: Mapping[str, float | list[float]]) -> None:
        for name, value in values.items():
            array = self._arrays.get(name)
            if array is None:
                if len(self._arrays) >= MOST_COLUMNS:
                    continue
                shape = (
                    (max(1024, 2 * self.count), len(value)) if isinstance(value, list) else max(1024, 2 * self.count)
                )
                array = self._arrays[name] = np.full(shape, np.nan)
            elif len(array) <= self.count:
                more = np.full((2 * self.count - len(array), *array.shape[1:]), np.nan)
                array = self._arrays[name] = np.concatenate([array, more])
            try:
                if array.ndim == 1 or len(value) == array.shape[1]:  # pyright: ignore[reportArgumentType]
                    array[self.count] = value
            except (TypeError, ValueError, OverflowError):
                array[self.count] = np.nan  # no numbers
        self.count += 1

    def cut(self, count: int) -> None:
        for array in self._arrays.values():
            array[count:] = np.nan
        self.count = count

    def names(self, start: str = "") -> list[str]:
        return [name for name in self._arrays if name.startswith(start)]

    def __getitem__(self, name: str) -> Array:
        """All NaN, if there is no such column."""
        array = self._arrays.get(name)
        if array is None:
            return np.full(self.count, np.nan)
        if len(array) < self.count:  # not seen in a while
            more = np.full((2 * self.count - len(array), *array.shape[1:]), np.nan)
            array = self._arrays[name] = np.concatenate([array, more])
        return array[: self.count]


class TrainingLog:
    """`steps` has a row for each logged step; `others` the events that are none, by type; `resumed` the steps that the
    log went back to."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self._forget()

    def follow(self) -> None:
        """Read what was appended; all of it, where the file is not the one that was read.

        Raises:
            NotThere: there is no such file.
        """
        try:
            with self.path.open("rb") as file:
                if not self._still_stands(file):
                    self._forget()
                file.seek(self.read)
                rest = b""
                while block := file.read(BLOCK):
                    *lines, rest = (rest + block).split(b"\n")  # what follows the last line's end waits
                    for line in lines:
                        self._take(line)
                self._remember(file)
        except FileNotFoundError:
            raise NotThere(self.path.name, "trainer run") from None

    def event(self, row: int) -> Event:
        """The whole event of a row of `steps`."""
        with self.path.open("rb") as file:
            file.seek(int(self.steps["(line)"][row]))
            try:
                return json.loads(file.read(int(self.steps["(length)"][row])))
            except ValueError:
                raise DataError(f"{self.path}: was changed while it was read") from None

    def load(self, row: int) -> list[Array]:
        """The share of assignments of each expert, by layer that has experts; none where the step does not tell."""
        told = (self.event(row).get("router") or {}).get("load")
        rows = [np.array(one, np.float64) for one in told] if isinstance(told, list) else []
        return [one / max(one.sum(), 1e-12) for one in rows]

    def row_of(self, step: float) -> int:
        """The row of the last step that is not after `step`; the first one, if all are."""
        return max(int(np.searchsorted(self.steps["step"], step, "right")) - 1, 0)

    def _forget(self) -> None:
        self.read, self._ends = 0, (b"", b"")
        self.steps, self.resumed = Columns(), list[int]()
        self.others: dict[str, dict[tuple[int, str], Event]] = {}

    def _still_stands(self, file: Any) -> bool:
        return self._ends == self._read_ends(file)

    def _remember(self, file: Any) -> None:
        self._ends = self._read_ends(file)

    def _read_ends(self, file: Any) -> tuple[bytes, bytes]:
        """Of what was read so far: how it begins, and how it ends."""
        file.seek(0)
        head = file.read(min(ENDS, self.read))
        file.seek(max(self.read - ENDS, 0))
        return head, file.read(min(ENDS, self.read))

    def _take(self, line: bytes) -> None:
        at, self.read = self.read, self.read + len(line) + 1
        try:
            event = parsed(line)
            kind, step = event["type"], event["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # a run killed in mid-line and resumed leaves a broken line behind
        if not isinstance(kind, str) or isinstance(step, bool) or math.isnan(number(step)):
            return
        step = int(step)
        if kind == "step":
            self._take_step(step, event | {"(line)": at, "(length)": len(line)})
        else:  # a step may raise several alarms, and be gone on from twice; of the same the later counts
            own = event.get("time") if kind == "resume" else event.get("alarm")
            self.others.setdefault(kind, {})[step, str(own)] = event

    def _take_step(self, step: int, event: Event) -> None:
        before = self.steps["step"]
        if len(before) and step <= before[-1]:
            self.steps.cut(int(np.searchsorted(before, step)))
            for kind, events in self.others.items():
                self.others[kind] = {key: event for key, event in events.items() if key[0] < step}
            self.resumed.append(step)
        self.steps.add(flat(event) | {"step": step})

    def all_of(self, kind: str) -> list[Event]:
        """The events of a type, by step."""
        return [event for _, event in sorted(self.others.get(kind, {}).items(), key=lambda item: item[0][0])]


@contextmanager
def reading(folder: Path) -> Iterator[TrainingLog]:
    """The log of a training run's folder, up to date; nobody else reads on meanwhile."""
    log = _log_at(folder.resolve() / "events.jsonl")
    with log.lock:
        log.follow()
        yield log


@lru_cache(maxsize=64)
def _log_at(path: Path) -> TrainingLog:
    return TrainingLog(path)


def parsed(line: bytes) -> Event:
    """An event, with `true` instead of the load of experts: nine tenths of a line's length, and looked at seldom."""
    start = line.find(b'"load": [[')
    end = line.find(b"]]", start)
    if start >= 0 and end >= 0:
        try:
            return json.loads(line[:start] + b'"load": true' + line[end + 2 :])
        except ValueError:
            pass  # not as the trainer writes it
    return json.loads(line)


def flat(event: Event) -> dict[str, float | list[float]]:
    """A step's numbers by name: loss, norms/experts, router/entropy (of each layer)."""
    out: dict[str, float | list[float]] = {}
    for name, value in event.items():
        if isinstance(value, (int, float)):
            out[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key in ("load", "logits"):
                    out[f"{name}/{key}"] = bool(inner)  # whether there are some
                elif isinstance(inner, (int, float)) or (
                    name == "router" and isinstance(inner, list) and 0 < len(inner) <= MOST_LAYERS
                ):
                    out[f"{name}/{key}"] = inner
    return out


def number(value: Any) -> float:
    """NaN for what is no finite number."""
    if not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan
