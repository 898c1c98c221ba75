"""Flat arrays of tokens: .npy with or without a header, and llm.c's .bin; documents by their index, or else by EOS.

| files | who writes them | documents |
|---|---|---|
| .npy (a real one) + .idx | nmoe (nmoe/data/index.py): 32-byte header, u64 (start, end) pairs | the pairs |
| .npy (no header) + .csv.gz | dolma, OLMo-core (dolma/tokenizer/memmap_writer.py): start,end,... per line | the lines |
| .bin | llm.c (dev/data/data_common.py), modded-nanogpt: 256 i32 of header, tokens, EOS *before* each document | EOS |
| any of these alone; nanoGPT's .bin without a header | | EOS |

llm.c cuts its stream of documents into files without regard to them: what a file begins with, up to the first EOS, is a
document of its own here.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from gristmill.base.errors import DataError, UsageError
from gristmill.shards.importers.flat import Found, Indexed, ScannedPart, by_ends, indexed, integers, mapped

NPY_MAGIC = b"\x93NUMPY"
LLMC = {20240520: (1, "<u2"), 20240801: (7, "<u4")}  # magic: version, type; the second is its Llama 3 variant
LLMC_HEADER = 256 * 4
NMOE_MAGIC, NMOE_VERSION = b"NMOEIDX\x00", 1
NMOE_HEADER = struct.Struct("<8sQQQ")  # magic, version, documents, reserved


def find(path: Path, name: str, eos_id: int, dtype: str = "") -> Found:
    """`dtype`: of the tokens of a file without a header, as numpy or the manifest calls it (uint16, u32, ...).

    Raises:
        DataError: truncated, another version, not 1-D integers, an index that does not cover the tokens, or no EOS.
        UsageError: no header and no dtype, or a header that says otherwise.
    """
    tokens = functools.partial(_tokens, dtype=dtype)
    empty = not len(tokens(path))
    spans = spans_path(path)
    if spans is None:
        return Found((path,), {name: ScannedPart(tokens, path, name, eos_id)}, 0 if empty else None)
    return indexed(functools.partial(_open, dtype=dtype, spans=spans), path, name, eos_id, (path, spans))


def spans_path(path: Path) -> Path | None:
    """The file beside a .npy that says where its documents are."""
    if path.suffix.lower() != ".npy":
        return None
    return next((file for end in (".idx", ".csv.gz") if (file := path.with_suffix(end)).is_file()), None)


def is_llmc(path: Path) -> bool:
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little") in LLMC


def _open(path: Path, dtype: str, spans: Path) -> Indexed:
    tokens = _tokens(path, dtype)
    starts, ends = _nmoe_spans(spans) if spans.suffix == ".idx" else _csv_spans(spans)
    gaps = starts != np.concatenate([np.zeros(1, starts.dtype), ends[:-1]]) if len(ends) else np.zeros(0, bool)
    if gaps.any():
        row = int(np.argmax(gaps))
        raise DataError(f"{spans}: document {row} begins at token {starts[row]}, not where the one before it ends")
    return Indexed(path, tokens, len(ends), by_ends(ends))


def _tokens(path: Path, dtype: str) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(LLMC_HEADER)
    if head.startswith(NPY_MAGIC):
        return _npy(path, dtype)
    magic = int.from_bytes(head[:4], "little")
    if path.suffix.lower() == ".bin" and magic in LLMC:
        return _llmc(path, head, dtype)
    if not dtype:
        raise UsageError(f"{path}: has no header that says what it holds; give its dtype (uint16 or uint32)")
    return mapped(path, integers(path, _dtype(dtype)))


def _npy(path: Path, dtype: str) -> np.ndarray:
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a .npy file that can be read: {error}") from None
    integers(path, array.dtype)
    if array.ndim != 1:
        raise DataError(f"{path}: has shape {array.shape}; tokens must be one long row")
    size = path.stat().st_size
    if array.size and size != array.offset + array.nbytes:
        raise DataError(f"{path}: {size:,} bytes, its header tells of {array.offset + array.nbytes:,}")
    if dtype and _dtype(dtype) != array.dtype:
        raise UsageError(f"{path}: its header says {array.dtype}, not {dtype}; leave the dtype out")
    return np.asarray(array)


def _llmc(path: Path, head: bytes, dtype: str) -> np.ndarray:
    if len(head) < LLMC_HEADER:
        raise DataError(f"{path}: truncated: {len(head)} bytes, its header alone has {LLMC_HEADER}")
    magic, version, count = struct.unpack("<3i", head[:12])
    known, kind = LLMC[magic]
    if version != known:
        raise DataError(f"{path}: version {version} of format {magic}, this reads version {known}")
    if dtype and _dtype(dtype) != np.dtype(kind):
        raise UsageError(f"{path}: its header says {np.dtype(kind)}, not {dtype}; leave the dtype out")
    tokens = mapped(path, kind, LLMC_HEADER)
    if len(tokens) != count:
        wrong = "truncated" if len(tokens) < count else "longer than its header says"
        raise DataError(f"{path}: {wrong}: {len(tokens):,} tokens, its header tells of {count:,}")
    return tokens


def _nmoe_spans(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        head = file.read(NMOE_HEADER.size)
    if head[: len(NMOE_MAGIC)] != NMOE_MAGIC or len(head) < NMOE_HEADER.size:
        raise DataError(f"{path}: not an index of nmoe (no NMOEIDX header); move it away to find documents by EOS")
    _magic, version, count, _reserved = NMOE_HEADER.unpack(head)
    if version != NMOE_VERSION:
        raise DataError(f"{path}: version {version}, this reads version {NMOE_VERSION}")
    size = path.stat().st_size - NMOE_HEADER.size
    if size != 16 * count:
        wrong = "truncated" if size < 16 * count else "too long"
        raise DataError(f"{path}: {wrong}: {size // 16:,} documents, its header tells of {count:,}")
    pairs = mapped(path, "<u8", NMOE_HEADER.size, 2 * count)
    return pairs[::2], pairs[1::2]


def _csv_spans(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=True),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=["f0", "f1"], column_types={"f0": pa.int64(), "f1": pa.int64()}
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not lines of start,end,...: {str(error).splitlines()[0]}") from None
    return table["f0"].to_numpy(), table["f1"].to_numpy()


def _dtype(name: str) -> np.dtype[Any]:
    """uint16, u16, <u2, ... as a numpy type; little-endian unless it says otherwise."""
    short = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "i16": "<i2", "i32": "<i4", "i64": "<i8"}
    try:
        return np.dtype(short.get(name, name))
    except TypeError:
        raise UsageError(f"dtype {name!r} is none; say uint16 or uint32") from None
