"""Open a dataset: manifests checked, every file of the right size, tokens memory-mapped as plain arrays.

Nothing is read until it is asked for; `verify()` reads all and compares checksums.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gristmill.base import files
from gristmill.base.errors import DataError, UsageError
from gristmill.shards import hub
from gristmill.shards.ends import map_ends
from gristmill.shards.manifest import (
    SPLITS,
    DatasetManifest,
    ShardEntry,
    SourceManifest,
    TokenizerInfo,
    check_file,
    check_size,
    dataset_files,
    load_dataset_manifest,
    load_source_manifest,
    numpy_dtype,
    one_tokenizer,
)

if TYPE_CHECKING:
    import pyarrow as pa

MAPS = 256  # shards held open at a time, per dataset; each holds two file descriptors


class Document(NamedTuple):
    """`tokens` end in EOS; `meta` has file, row, score, language (the last two may be None)."""

    id: str
    tokens: np.ndarray
    meta: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a train token comes from: its shard, its offset there, and the document's row among the shard's."""

    shard: int
    offset: int
    row: int
    offset_in_document: int


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of one source's train or valid part, in order."""

    source: str
    name: str
    folder: Path
    shards: tuple[ShardEntry, ...]
    maps: Callable[[str, str, int], tuple[np.ndarray, np.ndarray]] = dataclasses.field(repr=False)  # (source, split, i)

    @functools.cached_property
    def token_count(self) -> int:
        return sum(shard.token_count for shard in self.shards)

    @functools.cached_property
    def document_count(self) -> int:
        """Documents; one that was cut into pieces counts once."""
        return sum(shard.document_count - shard.continues for shard in self.shards)

    def tokens(self, i: int) -> np.ndarray:
        """All tokens of shard i: a read-only view of the mapped file, u16 or u32."""
        return self.maps(self.source, self.name, i)[0]

    def ends(self, i: int) -> np.ndarray:
        """u32 [documents]: the offset after each document's last token in shard i."""
        return self.maps(self.source, self.name, i)[1]

    def meta(self, i: int) -> pa.Table:
        """The metadata rows of shard i: id, file, row, tokens, score, language."""
        import pyarrow.parquet as pq

        path = files.safe_join(self.folder, self.shards[i].meta.path)
        table = pq.ParquetFile(path).read()
        if table.num_rows != self.shards[i].document_count:
            raise DataError(
                f"{path}: {table.num_rows} rows for {self.shards[i].document_count} documents; pull or write it again"
            )
        return table

    def documents(self) -> Iterator[Document]:
        """Documents in published order; the pieces of one that was longer than a shard are put together again."""
        held: Document | None = None
        for i, shard in enumerate(self.shards):
            tokens, ends = self.maps(self.source, self.name, i)
            goes_on = i + 1 < len(self.shards) and self.shards[i + 1].continues
            start = 0
            for row, meta in enumerate(self.meta(i).to_pylist()):
                piece = tokens[start : int(ends[row])]
                start = int(ends[row])
                meta.pop("tokens")
                document = Document(meta.pop("id"), piece, meta)
                if row == 0 and shard.continues and held is not None:
                    document = document._replace(tokens=np.concatenate([held.tokens, piece]))
                if goes_on and row == shard.document_count - 1:
                    held = document
                else:
                    yield document

    def locate(self, token: int) -> Place:
        """The shard, offset and document row of the split's token number `token`, counted through its shards in order.

        Raises:
            UsageError: no such token.
        """
        if not 0 <= token < self.token_count:
            raise UsageError(
                f"token {token:,} is outside the {self.token_count:,} {self.name} tokens of {self.folder.name}"
            )
        bounds = np.cumsum([shard.token_count for shard in self.shards])
        i = int(np.searchsorted(bounds, token, "right"))
        offset = token - (int(bounds[i - 1]) if i else 0)
        ends = self.ends(i)
        row = int(np.searchsorted(ends, offset, "right"))
        return Place(i, offset, row, offset - (int(ends[row - 1]) if row else 0))


@dataclasses.dataclass(frozen=True)
class Source:
    name: str
    folder: Path
    manifest: SourceManifest
    splits: dict[str, Split]

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise UsageError(f"source {self.name} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]


@dataclasses.dataclass(frozen=True)
class Dataset:
    root: Path
    manifest: DatasetManifest
    sources: dict[str, Source]
    tokenizer: TokenizerInfo

    @property
    def dtype(self) -> np.dtype[Any]:
        return numpy_dtype(self.tokenizer.dtype)

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Read every file and compare its sha256; `progress(files done, files in all)`. Returns the number of bytes.

        Raises:
            DataError: the first file that is missing, truncated or altered, by name.
        """
        entries = list(dataset_files(self.root, self.manifest))
        for done, entry in enumerate(entries, 1):
            check_file(self.root, entry)
            progress(done, len(entries))
        for source in self.sources.values():
            for split in source.splits.values():
                for i in range(len(split.shards)):
                    if np.any(np.diff(split.ends(i).astype(np.int64)) <= 0):
                        path = source.folder / split.shards[i].ends.path
                        raise DataError(f"{path}: its ends do not ascend; write the source again")
        return sum(entry.bytes for entry in entries)


def open_dataset(path_or_uri: Path | str, *, partial: bool = False) -> Dataset:
    """Open a dataset in a folder, at file://FOLDER, or on the Hub at hf://datasets/ORG/NAME[@REVISION] (pulled first).

    With `partial`, shards that are absent are found missing when they are read, not now.

    Raises:
        DataError: no dataset, an unknown format version, an unsafe path, a wrong dtype, sources of different
            tokenizers, or a file that is missing or of the wrong size; the message names it.
    """
    root = hub.local_folder(path_or_uri)
    manifest = load_dataset_manifest(root)
    if not manifest.sources:
        raise DataError(f"{root}: the manifest lists no source")
    loaded = {name: load_source_manifest(root, name, entry) for name, entry in manifest.sources.items()}
    tokenizer = one_tokenizer({name: source.tokenizer for name, (source, _folder) in loaded.items()}, root)
    for file in dataset_files(root, manifest):
        if not partial or files.safe_join(root, file.path).exists():
            check_size(root, file)

    @functools.lru_cache(maxsize=MAPS)
    def maps(name: str, split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        source, folder = loaded[name]
        return _map_shard(folder, source, source.shards(split)[i])

    sources = {
        name: Source(name, folder, source, {s: Split(name, s, folder, tuple(source.shards(s)), maps) for s in SPLITS})
        for name, (source, folder) in loaded.items()
    }
    return Dataset(root, manifest, sources, tokenizer)


def _map_shard(folder: Path, source: SourceManifest, shard: ShardEntry) -> tuple[np.ndarray, np.ndarray]:
    tokens, ends = check_size(folder, shard.tokens), check_size(folder, shard.ends)
    # asarray drops the memmap subclass, whose slicing costs twice the time of the copy.
    return np.asarray(np.memmap(tokens, numpy_dtype(source.dtype), "r")), map_ends(ends, source.dtype, shard)
