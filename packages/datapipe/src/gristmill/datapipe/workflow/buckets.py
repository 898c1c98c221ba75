"""Between scattering and gathering: a file per partition that holds its entries bucket by bucket, mapped when read.

An Arrow file of one batch, uncompressed, with the places where buckets begin in its metadata: a bucket is read from
every partition without reading the others, and nothing is kept in memory but what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.files import atomic_path
from gristmill.datapipe.workflow.stage import Bucket

BUCKETS, SMALL, LARGE = 64, 1 << 20, 1 << 25
"""Few enough buckets that reading is sequential, of few enough entries that sorting one takes little memory: a million
entries each up to 64 buckets, then 64 larger ones up to 32 million entries (about 2 GB while gathering), then more."""
OFFSETS = b"offsets"


@dataclass(frozen=True)
class Into:
    """The buckets of a shuffle: hash ranges, or the partitions of an output, named as the files that come of them."""

    names: tuple[str, ...]
    starts: NDArray[np.int64] | None = None
    """[names + 1] the row of the run at which each partition begins, and the run's end; None for hash ranges."""

    @classmethod
    def hashes(cls, entries: float) -> Into:
        size = min(max(entries / BUCKETS, SMALL), LARGE)
        return cls(tuple(f"part-{number:05d}.parquet" for number in range(max(1, int(np.ceil(entries / size))))))

    @classmethod
    def partitions(cls, rows: Mapping[str, int]) -> Into:
        return cls(tuple(rows), np.cumsum([0, *rows.values()], dtype=np.int64))

    def bucket_of(self, by: pa.ChunkedArray) -> NDArray[np.int64]:
        values = by.to_numpy()
        if self.starts is not None:
            return np.searchsorted(self.starts, values, side="right") - 1
        # Of the upper 32 bits, scaled: with a power of two of buckets that would be the uppermost bits alone.
        return (((values >> np.uint64(32)) * np.uint64(len(self.names))) >> np.uint64(32)).astype(np.int64)

    def bucket(self, index: int) -> Bucket:
        if self.starts is None:
            return Bucket()
        return Bucket(int(self.starts[index]), int(self.starts[index + 1] - self.starts[index]))

    def identity(self) -> list[object]:
        return [list(self.names), None if self.starts is None else self.starts.tolist()]


def write(path: Path, entries: pa.Table, bucket: NDArray[np.int64], count: int) -> None:
    """Sorted by bucket; within one, entries stay in their order."""
    order = np.argsort(bucket, kind="stable")
    offsets = np.searchsorted(bucket[order], np.arange(count + 1))
    table = entries.take(order).combine_chunks()
    table = table.replace_schema_metadata({OFFSETS: offsets.astype("<i8").tobytes()})
    with atomic_path(path) as temporary, pa.ipc.new_file(temporary, table.schema) as file:
        file.write_table(table)


def read(paths: Sequence[Path], index: int) -> pa.Table:
    """The entries of one bucket, partition after partition."""
    pieces = []
    for path in paths:
        with pa.memory_map(str(path)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        offsets = np.frombuffer(table.schema.metadata[OFFSETS], "<i8")
        start, end = int(offsets[index]), int(offsets[index + 1])
        pieces.append(table.slice(start, end - start).replace_schema_metadata(None))
    return pa.concat_tables(pieces).combine_chunks()
