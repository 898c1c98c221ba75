"""What a worker does with a partition of a stage or shuffle, or with a whole step: read, run, write, vouch for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.errors import GristmillError
from gristmill.base.files import atomic_path, replace_folder, sha256_file, sha256_folder
from gristmill.datapipe.workflow import buckets
from gristmill.datapipe.workflow.ledger import Entry
from gristmill.datapipe.workflow.stage import Inputs, Shuffle, Stage, Step, read_part


@dataclass
class StageJob:
    """One partition of a stage: read its rows, annotate them, write the rows that come back."""

    stage: Stage
    over: Path
    requires: dict[str, Path]
    needs: dict[str, Path]
    folder: Path
    keys: dict[str, str]

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def stateful(self) -> bool:
        return type(self.stage).setup is not Stage.setup

    def setup(self) -> None:
        self.stage.setup(self.needs)

    def __call__(self, part: str) -> dict[str, Any]:
        started = time.monotonic()
        table = read_part(self.over / part, self.stage.columns)
        previous = {name: read_part(folder / part) for name, folder in self.requires.items()}
        result = self.stage.annotate(table, previous)
        if result.num_rows != table.num_rows:
            raise GristmillError(f"stage {self.stage.name!r} returned {result.num_rows} rows for {table.num_rows}")
        return _write_part(self.folder / part, result, self.keys[part], started)


@dataclass
class ScatterJob:
    """One partition of what a shuffle is over, cut into buckets: a file under `folder`, for the gathering alone."""

    shuffle: Shuffle
    over: Path
    requires: dict[str, Path]
    needs: dict[str, Path]
    folder: Path
    keys: dict[str, str]
    starts: dict[str, int]
    into: buckets.Into

    @property
    def name(self) -> str:
        return self.shuffle.name

    @property
    def stateful(self) -> bool:
        return type(self.shuffle).setup is not Shuffle.setup

    def setup(self) -> None:
        self.shuffle.setup(self.needs)

    def __call__(self, part: str) -> dict[str, Any]:
        started = time.monotonic()
        table = read_part(self.over / part, self.shuffle.columns)
        previous = _read_aligned(self.requires, self.shuffle.requires, part)
        entries = self.shuffle.scatter(table, previous, self.starts[part])
        path = self.folder / part
        buckets.write(path, entries, self.into.bucket_of(entries[self.shuffle.by]), len(self.into.names))
        seconds = round(time.monotonic() - started, 3)
        # Not hashed: it lives until the gathering, and its fingerprint says what it was made of.
        entry = Entry(self.keys[part], "", entries.num_rows, path.stat().st_size, seconds)
        return {"entry": vars(entry), "rows": table.num_rows}


@dataclass
class GatherJob:
    """One bucket of a shuffle, from what all partitions sent it."""

    shuffle: Shuffle
    scattered: Path
    parts: tuple[str, ...]
    beside: dict[str, Path]
    needs: dict[str, Path]
    folder: Path
    keys: dict[str, str]
    into: buckets.Into

    name, stateful, setup = ScatterJob.name, ScatterJob.stateful, ScatterJob.setup

    def __call__(self, part: str) -> dict[str, Any]:
        started = time.monotonic()
        index = self.into.names.index(part)
        entries = buckets.read([self.scattered / name for name in self.parts], index)
        previous = _read_aligned(self.beside, self.shuffle.beside, part)
        bucket = self.into.bucket(index)
        result = self.shuffle.gather(entries, bucket, previous)
        return _write_part(self.folder / part, result, self.keys[part], started, self.shuffle.counts(result, bucket))


@dataclass
class StepJob:
    """A whole step: run it in its work folder, then put that folder in its place."""

    step: Step
    inputs: Inputs
    work: Path
    folder: Path
    key: str
    stateful: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.step.name

    def setup(self) -> None:
        pass

    def __call__(self, _piece: str) -> dict[str, Any]:
        started = time.monotonic()
        counts = self.step.run(self.inputs, self.work)
        sha256 = sha256_folder(self.work)
        replace_folder(self.work, self.folder)
        seconds = round(time.monotonic() - started, 3)
        return {"entry": vars(Entry(self.key, sha256, seconds=seconds, counts=counts))}


def _read_aligned(
    folders: Mapping[str, Path], columns: Mapping[str, tuple[str, ...]], part: str
) -> dict[str, pa.Table]:
    return {name: read_part(folder / part, columns[name]) for name, folder in folders.items()}


def _write_part(
    path: Path, table: pa.Table, key: str, started: float, counts: Mapping[str, int] | None = None
) -> dict[str, Any]:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    seconds = round(time.monotonic() - started, 3)
    entry = Entry(key, sha256_file(path), table.num_rows, path.stat().st_size, seconds, dict(counts or {}))
    return {"entry": vars(entry), "rows": table.num_rows}
