"""What a source's manifest says of each shard, and whether the shards can be so beside one another.

A manifest may have tens of thousands of shards, and others write manifests too: entries are slotted dataclasses, which
pydantic fills and checks in half the time and a fifth of the memory of its models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from gristmill.base.terminal import shown

Dtype = Literal["u16", "u32"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", strict=True)]
# Hex: JSON readers in other languages lose integers over 2**53.
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", strict=True)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]
ShardCount = Annotated[int, Field(ge=1, lt=2**32, strict=True)]  # the ends are u32
RowLength = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,6}$", strict=True)]

ENDS_HEADER_BYTES = 64
PACKED_LENGTH = 2**20  # packing keeps a bit for each token of a row
PATH_BYTES = 200  # file systems take names of 255 bytes; a temporary name is longer than the final one
_CONFIG = ConfigDict(extra="forbid")


def _printable(path: str) -> str:
    if not path.isprintable():
        raise ValueError(f"{shown(path)}: a path has printable characters and plain spaces alone")
    return path


# What no error message or terminal can be broken with. What leads out of the dataset is refused by skeleton.
FilePath = Annotated[str, Field(min_length=1, max_length=200, strict=True), AfterValidator(_printable)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file: its path below the manifest's folder, its size in bytes and its sha256."""

    __pydantic_config__ = _CONFIG

    path: FilePath
    bytes: Count
    sha256: Sha256

    def model_copy(self, *, update: Mapping[str, Any]) -> FileEntry:
        """As of a pydantic model."""
        return FileEntry(**{"path": self.path, "bytes": self.bytes, "sha256": self.sha256, **update})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard: its files and what they hold.

    `loss`: one byte per token, 1 where it is learnt from; absent where all are. `continues`: the first row is the next
    piece of the document that ends the shard before: it was longer than a shard. The metadata's `tokens` count EOS.
    `packed`: best-fit rows by their length in tokens, so that a plan need not read the ends.
    """

    __pydantic_config__ = _CONFIG

    tokens: FileEntry
    ends: FileEntry
    meta: FileEntry
    loss: FileEntry | None = None
    token_count: ShardCount
    document_count: ShardCount
    max_id: Count
    key_low: Key
    key_high: Key
    continues: Annotated[bool, Field(strict=True)] = False
    packed: Annotated[dict[RowLength, Count], Field(max_length=32)] = dataclasses.field(default_factory=dict)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        if self.loss is None:
            return (self.tokens, self.ends, self.meta)
        return (self.tokens, self.ends, self.meta, self.loss)

    def model_dump(self, mode: Literal["json"] = "json") -> dict[str, Any]:
        """As of a pydantic model."""
        return _SHARD.dump_python(self, mode=mode)

    @staticmethod
    def model_validate(value: Any) -> ShardEntry:
        """As of a pydantic model."""
        return _SHARD.validate_python(value)


_SHARD = TypeAdapter(ShardEntry)


def numpy_dtype(dtype: Dtype) -> np.dtype[Any]:
    """The little-endian numpy type of "u16" or "u32"."""
    return np.dtype({"u16": "<u2", "u32": "<u4"}[dtype])


def threshold(valid_fraction: float) -> int:
    """Documents whose key is at least this are held out."""
    return 2**64 - int(valid_fraction * 2**64)


def check_shards(splits: Mapping[str, Sequence[ShardEntry]], dtype: Dtype, vocab_size: int) -> None:
    """Each shard's counts, sizes and keys agree with each other; the shards of a split follow on each other.

    Raises:
        ValueError: the first that does not, by its token file.
    """
    width = numpy_dtype(dtype).itemsize
    masked: bool | None = None
    for name, shards in splits.items():
        before: ShardEntry | None = None
        for number, shard in enumerate(shards):
            tokens, documents = shard.token_count, shard.document_count
            if shard.tokens.bytes != tokens * width:
                raise ValueError(f"{shard.tokens.path}: {shard.tokens.bytes} bytes cannot be {tokens} {dtype} tokens")
            if documents > tokens:
                raise ValueError(f"{shard.tokens.path}: {tokens} tokens cannot be {documents} documents, each has one")
            if shard.ends.bytes != ENDS_HEADER_BYTES + 4 * documents:
                raise ValueError(
                    f"{shard.ends.path}: {shard.ends.bytes} bytes cannot be the ends of {documents} documents"
                )
            if masked is None:
                masked = shard.loss is not None
            if (shard.loss is not None) != masked:
                raise ValueError(f"{shard.tokens.path}: give all shards a loss mask, or none")
            if shard.loss is not None and shard.loss.bytes != tokens:
                raise ValueError(f"{shard.loss.path}: {shard.loss.bytes} bytes for {tokens} tokens")
            if shard.max_id >= vocab_size:
                raise ValueError(f"{shard.tokens.path}: id {shard.max_id} is outside the vocabulary")
            if shard.key_low > shard.key_high:
                raise ValueError(f"{shard.tokens.path}: key_low {shard.key_low} is above key_high {shard.key_high}")
            if before is not None and shard.key_low < before.key_high:
                raise ValueError(f"{shard.tokens.path}: its keys come before those of {name} shard {number - 1}")
            if shard.continues and (before is None or shard.key_low != before.key_high):
                raise ValueError(
                    f"{shard.tokens.path}: continues no document: none with its key ends a shard before it"
                )
            for length, rows in shard.packed.items():
                full, rest = divmod(tokens, int(length))
                if not full + (rest > 0) <= rows <= full + documents or int(length) > PACKED_LENGTH:
                    raise ValueError(
                        f"{shard.tokens.path}: best fit cannot make {rows} rows of {length} tokens of {documents} "
                        f"documents with {tokens} tokens"
                    )
            before = shard


def check_split(splits: Mapping[str, Sequence[ShardEntry]], valid_fraction: float) -> None:
    """
    Raises:
        ValueError: a split that holds documents of the other.
    """
    bound = threshold(valid_fraction)
    if splits["train"] and int(splits["train"][-1].key_high, 16) >= bound:
        raise ValueError(f"{splits['train'][-1].tokens.path}: holds keys of valid, from {bound:016x} on")
    if splits["valid"] and int(splits["valid"][0].key_low, 16) < bound:
        raise ValueError(f"{splits['valid'][0].tokens.path}: holds keys of train, below {bound:x}")


class HasPath(Protocol):
    @property
    def path(self) -> str: ...


def check_distinct(entries: Sequence[HasPath]) -> None:
    """
    Raises:
        ValueError: a path that two entries have, that is a folder of another's, or that is too long.
    """
    paths = [entry.path for entry in entries]
    distinct = set(paths)
    if len(distinct) < len(paths):
        seen: set[str] = set()
        twice = next(path for path in paths if path in seen or seen.add(path))
        raise ValueError(f"{twice}: is listed twice")
    folders = {path.rpartition("/")[0] for path in distinct}
    while folders := {folder for folder in folders if folder}:
        if shared := folders & distinct:
            raise ValueError(f"{min(shared)}: is listed as a file, and as a folder of others")
        folders = {folder.rpartition("/")[0] for folder in folders}
    for path in paths:
        if not path.isascii() and len(path.encode()) > PATH_BYTES:
            raise ValueError(f"{shown(path[:40])}...: a path of more than {PATH_BYTES} bytes")
