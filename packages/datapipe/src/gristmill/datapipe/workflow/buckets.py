"""Between scattering and gathering: a file per partition that holds its entries range by range, read a slice at a time.

Entries are scattered into many fine ranges: of hashes, or the partitions of an output. Once all are scattered and their
size is known, neighbouring ranges are joined into buckets that one worker gathers in memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.files import atomic_path
from gristmill.datapipe.workflow.stage import Bucket

HASH_RANGES = 1024
BUCKETS, SMALL, LARGE = 64, 16 << 20, 256 << 20
"""Bytes of entries in a bucket: up to 64 small buckets, then 64 larger ones, then more large ones. Few enough that
files are read in long slices, small enough that one is sorted in less than 2 GB."""
OFFSETS = b"offsets"


@dataclass(frozen=True)
class Ranges:
    """What entries are scattered into."""

    count: int
    starts: NDArray[np.int64] | None = None
    """[count + 1] the row of the run at which each partition begins, and the run's end; None for ranges of hashes."""

    @classmethod
    def of_hashes(cls) -> Ranges:
        return cls(HASH_RANGES)

    @classmethod
    def of_partitions(cls, rows: Mapping[str, int]) -> Ranges:
        return cls(len(rows), np.cumsum([0, *rows.values()], dtype=np.int64))

    def of(self, by: pa.ChunkedArray) -> NDArray[np.int64]:
        """The range of each entry, by a column of 64-bit hashes or of rows.

        Raises:
            ValueError: a row that the run has not: the entry would be lost.
        """
        values = by.to_numpy()
        if self.starts is None:
            return (values >> np.uint64(64 - HASH_RANGES.bit_length() + 1)).astype(np.int64)
        if len(values) and not (values.min() >= 0 and values.max() < self.starts[-1]):
            raise ValueError(f"rows {values.min()} to {values.max()} in a run of {self.starts[-1]} rows")
        return np.searchsorted(self.starts, values, side="right") - 1

    def bucket(self, index: int) -> Bucket:
        """Where a range of rows stands in the run."""
        if self.starts is None:
            return Bucket()
        return Bucket(int(self.starts[index]), int(self.starts[index + 1] - self.starts[index]))

    def joined(self, size: int) -> list[range]:
        """Neighbouring ranges that make one bucket, for so many bytes of entries."""
        wanted = math.ceil(size / min(max(size / BUCKETS, SMALL), LARGE)) or 1
        edges = np.linspace(0, self.count, min(wanted, self.count) + 1).astype(int).tolist()
        return [range(first, last) for first, last in itertools.pairwise(edges)]

    def identity(self) -> list[object]:
        return [self.count, None if self.starts is None else self.starts.tolist()]


def write(path: Path, entries: pa.Table, where: NDArray[np.int64], count: int) -> None:
    """Sorted by range; within one, entries stay in their order."""
    order = np.argsort(where, kind="stable")
    offsets = np.searchsorted(where[order], np.arange(count + 1))
    table = entries.take(order).combine_chunks()
    table = table.replace_schema_metadata({OFFSETS: offsets.astype("<i8").tobytes()})
    with atomic_path(path) as temporary, pa.ipc.new_file(temporary, table.schema) as file:
        file.write_table(table)


def read(paths: Sequence[Path], ranges: range) -> pa.Table:
    """The entries of some ranges, partition after partition. Each slice is copied: a file stays open no longer."""
    pieces: list[pa.Table] = []
    for path in paths:
        with pa.memory_map(str(path)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
            offsets = np.frombuffer(table.schema.metadata[OFFSETS], "<i8")
            start, end = int(offsets[ranges.start]), int(offsets[ranges.stop])
            if start < end or not pieces:
                pieces.append(table.take(pa.array(np.arange(start, end))).replace_schema_metadata(None))
    return pa.concat_tables(pieces).combine_chunks()
