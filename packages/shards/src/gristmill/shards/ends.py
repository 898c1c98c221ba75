"""The file of document ends: a 64-byte header that ties it to its token file, then u32 end offsets.

Documents are found by these offsets and never by looking for EOS, which a document may hold in its text.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from gristmill.base.errors import DataError
from gristmill.shards.entries import ENDS_HEADER_BYTES, Dtype, ShardEntry

HEADER = struct.Struct(
    "<8sIIQQ32s"
)  # magic, version, token width in bytes, tokens, documents, sha256 of the token file
HEADER_BYTES = HEADER.size
assert HEADER_BYTES == ENDS_HEADER_BYTES
MAGIC, VERSION = b"TKSHARD1", 1
WIDTH = {"u16": 2, "u32": 4}


def ends_header(dtype: Dtype, token_count: int, document_count: int, sha256: str) -> bytes:
    return HEADER.pack(MAGIC, VERSION, WIDTH[dtype], token_count, document_count, bytes.fromhex(sha256))


def map_ends(path: Path, dtype: Dtype, entry: ShardEntry) -> np.ndarray:
    """u32 [documents]: the offset after each document's last token, memory-mapped.

    Raises:
        DataError: a header of another kind or version, or one that belongs to other tokens; or ends that do not ascend
            to the number of tokens.
    """
    size = path.stat().st_size
    data = np.asarray(np.memmap(path, np.uint8, "r")) if size else np.empty(0, np.uint8)
    if size < HEADER_BYTES or bytes(data[:8]) != MAGIC:
        raise DataError(
            f"{path}: not a file of document ends (no {MAGIC.decode()} at its start); pull or write it again"
        )
    _magic, version, width, tokens, documents, sha256 = HEADER.unpack(bytes(data[:HEADER_BYTES]))
    if version != VERSION:
        raise DataError(f"{path}: version {version}, this one reads {VERSION}; update gristmill-shards")
    if (width, tokens, documents, sha256.hex()) != (
        WIDTH[dtype],
        entry.token_count,
        entry.document_count,
        entry.tokens.sha256,
    ):
        raise DataError(
            f"{path}: its header belongs to other tokens than {entry.tokens.path}; pull or write both again"
        )
    if size != HEADER_BYTES + 4 * documents:
        raise DataError(f"{path}: {size:,} bytes cannot be {documents:,} ends; pull or write it again")
    ends = data[HEADER_BYTES:].view("<u4")
    if not documents or int(ends[0]) < 1 or int(ends[-1]) != tokens:
        raise DataError(f"{path}: its {documents} ends do not cover the {tokens} tokens of {entry.tokens.path}")
    if np.any(ends[1:] <= ends[:-1]):
        raise DataError(f"{path}: its ends do not ascend; pull or write it again")
    return ends
