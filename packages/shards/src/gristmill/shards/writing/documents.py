"""A batch of tokenised documents as the writer keeps it: checked, keyed, each with EOS at its end.

Token lists become binary values: Arrow moves those whole, and lists token by token (measured: 36 times slower).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gristmill.base.errors import DataError
from gristmill.shards.manifest import TokenizerInfo, numpy_dtype

REQUIRED = ("id", "tokens", "file", "row")
META_COLUMNS = ("id", "file", "row", "tokens", "score", "language")
ColumnType = Literal["float32", "int64", "string"]
COLUMN_TYPES: dict[str, pa.DataType] = {"float32": pa.float32(), "int64": pa.int64(), "string": pa.large_string()}
KEY, LENGTH = "_key", "_length"  # no column of a source begins with an underscore

compute: Any = pyarrow.compute  # its functions are made at import, and no checker knows them


@dataclasses.dataclass(frozen=True)
class Form:
    """What the documents of one source have in common. `columns`: metadata beyond META_COLUMNS, by type."""

    tokenizer: TokenizerInfo
    salt: str
    columns: dict[str, ColumnType]


def schema(form: Form, loss: bool) -> pa.Schema:
    """Of what normalise returns: `tokens` little-endian ids and `loss` bytes, both with EOS; LENGTH counts them."""
    names = {"id": "string", "file": "string", "row": "int64", "score": "float32", "language": "string"} | form.columns
    return pa.schema(
        [
            (KEY, pa.uint64()),
            *((name, COLUMN_TYPES[kind]) for name, kind in names.items()),
            (LENGTH, pa.int64()),
            ("tokens", pa.large_binary()),
            *([("loss", pa.large_binary())] if loss else []),
        ]
    )


def keys_of(ids: Iterable[str], salt: str) -> np.ndarray:
    """u64 [documents]: the first 8 bytes (big-endian) of blake2b(salt|id)."""
    prefix, blake2b = f"{salt}|".encode(), hashlib.blake2b
    digests = [blake2b(prefix + document_id.encode("utf-8")).digest()[:8] for document_id in ids]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def normalise(table: pa.Table, form: Form) -> pa.Table:
    """The batch in schema(form, whether it has loss masks), a single chunk.

    Raises:
        DataError: a missing column, a null, a value of another type, an id outside the vocabulary, a mask that does not
            fit its tokens; the message names the column or the document.
    """
    for name in (*REQUIRED, *form.columns):
        if name not in table.column_names:
            raise DataError(f"the batch has no column {name!r}; it has {', '.join(table.column_names)}")
    for name in REQUIRED:
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null().to_numpy()))
            raise DataError(f"column {name!r} is null in row {row} of a batch ({place(table, row)})")
    lengths, ids = _flat(table, "tokens")
    _check_ids(table, lengths, ids, form.tokenizer)
    ends = np.cumsum(lengths + 1)
    kind = numpy_dtype(form.tokenizer.dtype)
    columns: dict[str, Any] = {
        LENGTH: pa.array(lengths + 1),
        "tokens": _binary(_with_last(ids.astype(kind, copy=False), ends, form.tokenizer.eos_id), ends),
    }
    mask = _mask(table, lengths)
    if mask is not None:
        last = np.ones(len(lengths), np.uint8)  # EOS is learnt where its document's last token is
        last[lengths > 0] = mask[(np.cumsum(lengths) - 1)[lengths > 0]]
        columns["loss"] = _binary(_with_last(mask, ends, last), ends)
    into = schema(form, mask is not None)
    columns["id"] = _cast(table["id"], into.field("id"))
    columns[KEY] = pa.array(keys_of(columns["id"].to_pylist(), form.salt))
    for field in into:
        if field.name not in columns:
            given = field.name in table.column_names
            columns[field.name] = _cast(table[field.name], field) if given else pa.nulls(len(lengths), field.type)
    return pa.table([columns[name] for name in into.names], schema=into).combine_chunks()


def place(table: pa.Table, row: int) -> str:
    """Where a row comes from, for messages."""
    value = {name: table[name][row].as_py() for name in ("file", "row", "id") if name in table.column_names}
    return f"{value.get('file')}, row {value.get('row')}, id {value.get('id')!r}"


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(int64 length of each row's list, all values one after the other)."""
    kind = table.schema.field(name).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise DataError(f"column {name!r} holds {kind}; give a list of whole numbers per document")
    lengths = compute.list_value_length(table[name]).to_numpy().astype(np.int64)
    pieces = [chunk.flatten() for chunk in table[name].chunks]
    if any(piece.null_count for piece in pieces if not pa.types.is_null(piece.type)):
        raise DataError(f"a value inside column {name!r} is null; its lists must hold numbers only")
    if not lengths.sum():  # also lists of type null, which Arrow infers where all are empty
        return lengths, np.empty(0, np.uint8)
    if not (pa.types.is_integer(kind.value_type) or pa.types.is_boolean(kind.value_type)):
        raise DataError(f"column {name!r} holds {kind}; give a list of whole numbers per document")
    return lengths, np.concatenate([piece.to_numpy(zero_copy_only=False) for piece in pieces])


def _check_ids(table: pa.Table, lengths: np.ndarray, ids: np.ndarray, tokenizer: TokenizerInfo) -> None:
    if not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < tokenizer.vocab_size):
        return
    bad = int(np.argmax((ids < 0) | (ids >= tokenizer.vocab_size)))
    row = int(np.searchsorted(np.cumsum(lengths), bad, "right"))
    raise DataError(
        f"{place(table, row)}: token id {ids[bad]} is outside the vocabulary of {tokenizer.vocab_size} of "
        f"{tokenizer.name}; tokenise with the tokenizer that the manifest names"
    )


def _mask(table: pa.Table, lengths: np.ndarray) -> np.ndarray | None:
    """The loss masks as one u8 array of zeros and ones; None where the batch has none."""
    if "loss" not in table.column_names or table["loss"].null_count == table.num_rows:
        return None
    if table["loss"].null_count:
        row = int(np.argmax(table["loss"].is_null().to_numpy()))
        raise DataError(f"{place(table, row)}: has no loss mask where others do; give all documents one, or none")
    mask_lengths, mask = _flat(table, "loss")
    if (mask_lengths != lengths).any():
        row = int(np.argmax(mask_lengths != lengths))
        raise DataError(f"{place(table, row)}: its loss mask has {mask_lengths[row]} values for {lengths[row]} tokens")
    if len(mask) and (mask.min() < 0 or mask.max() > 1):
        row = int(np.searchsorted(np.cumsum(lengths), int(np.argmax((mask < 0) | (mask > 1))), "right"))
        raise DataError(f"{place(table, row)}: its loss mask holds other values than 0 and 1")
    return mask.astype(np.uint8, copy=False)


def _with_last(values: np.ndarray, ends: np.ndarray, last: np.ndarray | int) -> np.ndarray:
    """The values with one more at the end of each document; `ends` count it."""
    result = np.empty(len(values) + len(ends), values.dtype)
    given = np.ones(len(result), bool)
    given[ends - 1] = False
    result[given] = values
    result[ends - 1] = last
    return result


def _binary(values: np.ndarray, ends: np.ndarray) -> pa.Array:
    offsets = np.concatenate([[0], ends * values.itemsize]).astype(np.int64)
    return pa.Array.from_buffers(
        pa.large_binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(values.view(np.uint8))]
    )


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:  # a value that does not fit; types without a cast
        raise DataError(f"column {field.name!r} cannot be {field.type}: {error}") from None
