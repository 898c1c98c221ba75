"""datatrove's tokenised files: NAME.ds holds tokens, .ds.index a u64 end per document, .ds.loss a byte per token.

.ds.metadata, where it was kept: "TOKENIZER|BYTES PER TOKEN", the number of tokens, the same for people. Read from
datatrove/pipeline/tokens/tokenizer.py (0.10).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gristmill.base.errors import DataError
from gristmill.shards.importers.flat import Found, Indexed, by_ends, indexed, mapped

DTYPES = {2: "<u2", 4: "<u4"}


def find(path: Path, name: str, eos_id: int, masks: bool) -> Found:
    """`path`: NAME.ds. `masks`: the source has loss masks; where this file has none, all of it is learnt from.

    Raises:
        DataError: no index, truncated, or files that do not belong together.
    """
    sidecars = (beside(path, part) for part in ("index", "loss", "metadata"))
    return indexed(_open, path, name, eos_id, (path, *(file for file in sidecars if file.is_file())), masks)


def beside(path: Path, part: str) -> Path:
    return path.with_name(f"{path.name}.{part}")


def _open(path: Path) -> Indexed:
    index, loss = beside(path, "index"), beside(path, "loss")
    if not index.is_file():
        raise DataError(
            f"{index}: no such file: documents cannot be found without it; "
            "to tell them apart by EOS, import it as plain numbers (kind numpy, with a dtype)"
        )
    ends = mapped(index, "<u8")
    dtype = np.dtype(DTYPES[_token_size(path, int(ends[-1]) if len(ends) else 0)])
    masks = mapped(loss, "<u1") if loss.is_file() else None
    return Indexed(path, mapped(path, dtype), len(ends), by_ends(ends), masks)


def _token_size(path: Path, tokens: int) -> int:
    """Bytes per token: what the metadata says, or else what makes the file as long as its index."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    size, metadata = path.stat().st_size, beside(path, "metadata")
    if not metadata.is_file():
        for width in DTYPES:
            if size == tokens * width:
                return width
        raise DataError(
            f"{path}: {size:,} bytes cannot be the {tokens:,} tokens of its index: one of them is truncated"
        )
    lines = metadata.read_text(encoding="utf-8", errors="replace").splitlines()
    width, count = (lines[0].rpartition("|")[2], lines[1]) if len(lines) > 1 else ("", "")
    if width not in ("2", "4") or not count.isdecimal() or len(count) > 19:
        raise DataError(
            f"{metadata}: not TOKENIZER|2 or TOKENIZER|4 and a number of tokens; delete it if it is damaged"
        )
    if int(count) != tokens or size != tokens * int(width):
        raise DataError(
            f"{path}: {size:,} bytes, its index ends at token {tokens:,}, and its metadata tells of {int(count):,} "
            f"tokens of {width} bytes: one of them is truncated"
        )
    return int(width)
