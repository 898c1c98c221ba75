"""One shard at a time: which one holds what, and its files, named by what is in them.

A file's name carries the first hex digits of its sha256, so what stands under a name and has the right size is that
file: a restart writes only what is missing, and two versions of a source can stand side by side.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base import files
from gristmill.base.errors import GristmillError
from gristmill.shards import packing
from gristmill.shards.ends import ends_header
from gristmill.shards.manifest import FileEntry, ShardEntry, numpy_dtype
from gristmill.shards.writing import spool
from gristmill.shards.writing.documents import KEY, LENGTH, META_COLUMNS, Form
from gristmill.shards.writing.layout import Filling, Start, fill
from gristmill.shards.writing.spool import Cut

HASH_DIGITS = 8  # of the sha256, in a file's name
ROW_GROUP = 2**16


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """Shard `number` of a split: the documents and tokens from one cut to another."""

    split: str
    number: int
    first: Cut
    after: Cut
    tokens: int
    documents: int


def plan_shards(
    runs: Sequence[Path], documents: int, threshold: int, shard_tokens: int, ramp: Sequence[int]
) -> list[PlannedShard]:
    """Every shard of both splits, from keys and lengths alone. Keys from `threshold` on are validation."""
    planned: list[PlannedShard] = []
    for split, low, high in (("train", 0, threshold), ("valid", threshold, 2**64)):
        filling = Filling()
        begun: list[tuple[Start, Cut]] = []
        for some in spool.key_ranges(runs, low, high, documents):
            before = filling.documents
            filling, starts = fill(filling, some.lengths, shard_tokens, ramp)
            begun += [(start, some.cut(start.document - before, start.skip)) for start in starts]
        begun.append((Start(filling.tokens, filling.documents, 0), Cut(high, "")))
        for number, ((start, first), (stop, after)) in enumerate(itertools.pairwise(begun)):
            held = stop.document - start.document + (stop.skip > 0)
            planned.append(PlannedShard(split, number, first, after, stop.token - start.token, held))
    return planned


def built(scratch: Path, target: Path, shard: PlannedShard) -> ShardEntry | None:
    """The entry of a shard that an earlier attempt has written, if its record and files stand."""
    path = _record(scratch, shard)
    if not path.is_file():
        return None
    value = files.read_json(path)
    if value["shard"] != _plain(shard):
        return None
    entry = ShardEntry.model_validate(value["entry"])
    return entry if all(_stands(target, file) for file in entry.files) else None


def build_shard(
    scratch: Path, target: Path, runs: Sequence[Path], form: Form, shard: PlannedShard
) -> tuple[PlannedShard, ShardEntry]:
    """Gather the shard's documents, write its files below `target` and, last, its record into the spool."""
    rows = spool.read_span(runs, shard.first, shard.after)
    lengths = rows[LENGTH].to_numpy().copy()
    total = int(lengths.sum())
    stop = total
    if shard.after.skip:
        stop = total - int(lengths[-1]) + shard.after.skip
        lengths[-1] = shard.after.skip
    lengths[0] -= shard.first.skip
    if (stop - shard.first.skip, len(lengths)) != (shard.tokens, shard.documents):
        raise GristmillError(f"{scratch}: the spool has changed while it was read; delete it and run again")
    dtype = form.tokenizer.dtype
    tokens = _flat(rows["tokens"], numpy_dtype(dtype))[shard.first.skip : stop]
    ends = np.cumsum(lengths).astype("<u4")
    name = f"{shard.number // 1000:03d}/{shard.number:05d}"
    prefix = "" if shard.split == "train" else f"{shard.split}/"

    def put(kind: str, data: bytes | memoryview, suffix: str) -> FileEntry:
        return _put(target, f"{prefix}{kind}/{name}", data, suffix)

    token_file = put("tokens", tokens.data, dtype)
    header = ends_header(dtype, len(tokens), len(ends), token_file.sha256)
    loss = "loss" in rows.column_names
    entry = ShardEntry(
        tokens=token_file,
        ends=put("ends", header + ends.tobytes(), "u32"),
        meta=put("meta", _meta_bytes(rows, lengths, form), "parquet"),
        loss=put("loss", _flat(rows["loss"], np.dtype("u1"))[shard.first.skip : stop].data, "u8") if loss else None,
        token_count=len(tokens),
        document_count=len(ends),
        max_id=int(tokens.max()),
        key_low=f"{rows[KEY][0].as_py():016x}",
        key_high=f"{rows[KEY][-1].as_py():016x}",
        continues=shard.first.skip > 0,
        packed=packing.row_counts(ends),
    )
    files.write_json(_record(scratch, shard), {"shard": _plain(shard), "entry": entry.model_dump(mode="json")})
    return shard, entry


def _flat(column: pa.ChunkedArray, dtype: np.dtype) -> np.ndarray:
    """All values of a column of binary values, one after the other, without a copy."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    _valid, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]].view(dtype)


def _put(target: Path, stem: str, data: bytes | memoryview, suffix: str) -> FileEntry:
    raw = memoryview(data).cast("B")
    sha256 = hashlib.sha256(raw).hexdigest()
    entry = FileEntry(path=f"{stem}-{sha256[:HASH_DIGITS]}.{suffix}", bytes=len(raw), sha256=sha256)
    if not _stands(target, entry):
        with files.atomic_path(target / entry.path) as temporary:
            temporary.write_bytes(raw)
    return entry


def _stands(target: Path, entry: FileEntry) -> bool:
    path = target / entry.path
    return path.is_file() and path.stat().st_size == entry.bytes


def _meta_bytes(rows: pa.Table, lengths: np.ndarray, form: Form) -> bytes:
    names = (*META_COLUMNS, *form.columns)
    table = rows.drop_columns(["tokens"]).append_column("tokens", pa.array(lengths, pa.int64())).select(names)
    small = {pa.large_string(): pa.string()}  # what other readers of Parquet expect
    schema = pa.schema([field.with_type(small.get(field.type, field.type)) for field in table.schema])
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, table.num_rows, ROW_GROUP):
            writer.write_table(table.slice(start, ROW_GROUP).cast(schema), ROW_GROUP)
    return sink.getvalue().to_pybytes()


def _record(scratch: Path, shard: PlannedShard) -> Path:
    return scratch / f"{shard.split}-{shard.number:06d}.json"


def _plain(shard: PlannedShard) -> dict[str, object]:
    """As it reads after a way through JSON."""
    return {**dataclasses.asdict(shard), "first": [*shard.first], "after": [*shard.after]}
