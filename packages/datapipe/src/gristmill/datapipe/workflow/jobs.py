"""What a worker does with a partition of a stage or shuffle, or with a whole step: read, run, write, vouch for it."""

from __future__ import annotations

import functools
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.errors import GristmillError
from gristmill.base.files import atomic_path, replace_folder, sha256_file, sha256_folder, writing
from gristmill.datapipe.workflow import buckets, quarantine
from gristmill.datapipe.workflow.ledger import Entry
from gristmill.datapipe.workflow.stage import Inputs, Shuffle, Stage, Step, read_part


@dataclass
class StageJob:
    """One partition of a stage: read its rows, annotate them, write the rows that come back.

    Documents that the stage cannot handle are listed in `quarantine` and marked; see workflow.quarantine.
    """

    stage: Stage
    over: Path
    requires: dict[str, Path]
    needs: dict[str, Path]
    folder: Path
    keys: dict[str, str]
    quarantine: Path

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def stateful(self) -> bool:
        return type(self.stage).setup is not Stage.setup and not self.stage.setup_is_small

    def setup(self) -> None:
        self.stage.setup(self.needs)

    def __call__(self, part: str) -> dict[str, Any]:
        started = time.monotonic()
        table = read_part(self.over / part, self.stage.columns)
        previous = {name: read_part(folder / part) for name, folder in self.requires.items()}
        name_of = functools.partial(quarantine.name_of, self.over / part)
        result, faults = quarantine.annotate(self.stage, table, previous, name_of)
        quarantine.write_listing(quarantine.listing(self.quarantine, part), self.name, self.over / part, faults)
        marks = quarantine.together([_marks((table, *previous.values())), {row: f.reason for row, f in faults.items()}])
        counts = {"quarantined": len(faults)} if faults else {}
        return _write_part(self.folder / part, quarantine.marked(result, marks), self.keys[part], started, counts)


@dataclass
class _ShuffleJob:
    shuffle: Shuffle
    folder: Path
    """Where this job writes."""
    keys: dict[str, str]
    ranges: buckets.Ranges
    needs: dict[str, Path]

    @property
    def name(self) -> str:
        return self.shuffle.name

    @property
    def stateful(self) -> bool:
        return type(self.shuffle).setup is not Shuffle.setup

    def setup(self) -> None:
        self.shuffle.setup(self.needs)


@dataclass
class ScatterJob(_ShuffleJob):
    """One partition of what a shuffle is over, scattered into ranges: a file for the gathering alone."""

    over: Path
    requires: dict[str, Path]
    starts: dict[str, int]

    def __call__(self, part: str) -> dict[str, Any]:
        started = time.monotonic()
        table = read_part(self.over / part, self.shuffle.columns)
        previous = _read_aligned(self.requires, self.shuffle.requires, part)
        entries = self.shuffle.scatter(table, previous, self.starts[part])
        path = self.folder / part
        buckets.write(path, entries, self.ranges.of(entries[self.shuffle.by]), self.ranges.count)
        seconds = round(time.monotonic() - started, 3)
        # Not hashed: it lives until the gathering, and its fingerprint says what it was made of.
        entry = Entry(self.keys[part], "", entries.num_rows, path.stat().st_size, seconds)
        return {"entry": vars(entry), "rows": table.num_rows}


@dataclass
class GatherJob(_ShuffleJob):
    """One bucket of a shuffle, from what all partitions sent it."""

    scattered: Path
    parts: tuple[str, ...]
    buckets: dict[str, range]
    """The ranges of each piece of the output."""
    beside: dict[str, Path]
    onto: tuple[str, ...]
    """The partitions that the ranges are, where they are no hashes."""

    def __call__(self, piece: str) -> dict[str, Any]:
        started = time.monotonic()
        ranges, counts, tables, marks = self.buckets[piece], Counter[str](), [], quarantine.Marks()
        entries = buckets.read([self.scattered / part for part in self.parts], ranges)
        if not self.onto:
            tables.append(self._gather(entries, buckets.Bucket(), {}, counts))
        else:
            where = self.ranges.of(entries[self.shuffle.by])
            for index in ranges:
                own = entries if len(ranges) == 1 else entries.filter(pa.array(where == index))
                previous = _read_aligned(self.beside, self.shuffle.beside, self.onto[index])
                tables.append(self._gather(own, self.ranges.bucket(index), previous, counts))
                marks = _marks(previous.values()) if self.shuffle.aligned else {}  # a piece is one partition then
        result = quarantine.marked(pa.concat_tables(tables), marks)
        return _write_part(self.folder / piece, result, self.keys[piece], started, counts)

    def _gather(
        self, entries: pa.Table, bucket: buckets.Bucket, previous: Mapping[str, pa.Table], counts: Counter[str]
    ) -> pa.Table:
        result = self.shuffle.gather(entries, bucket, previous)
        if self.shuffle.aligned and result.num_rows != bucket.rows:
            raise GristmillError(f"shuffle {self.name!r} returned {result.num_rows} rows for {bucket.rows}")
        counts.update(self.shuffle.counts(result, bucket))
        return result


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
        if not self.step.resumes:  # an attempt may have died here
            shutil.rmtree(self.work, ignore_errors=True)
        with writing(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
            counts = self.step.run(self.inputs, self.work)
        sha256 = sha256_folder(self.work)
        replace_folder(self.work, self.folder)
        seconds = round(time.monotonic() - started, 3)
        return {"entry": vars(Entry(self.key, sha256, seconds=seconds, counts=counts))}


def _read_aligned(
    folders: Mapping[str, Path], columns: Mapping[str, tuple[str, ...]], part: str
) -> dict[str, pa.Table]:
    return {name: read_part(folder / part, columns[name]) for name, folder in folders.items()}


def _marks(tables: Iterable[pa.Table]) -> quarantine.Marks:
    return quarantine.together(quarantine.marks_in(table.schema.metadata) for table in tables)


def _write_part(
    path: Path, table: pa.Table, key: str, started: float, counts: Mapping[str, int] | None = None
) -> dict[str, Any]:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    seconds = round(time.monotonic() - started, 3)
    entry = Entry(key, sha256_file(path), table.num_rows, path.stat().st_size, seconds, dict(counts or {}))
    return {"entry": vars(entry), "rows": table.num_rows}
