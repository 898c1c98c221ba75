"""Open a dataset: manifests checked, every file of the right size, tokens memory-mapped as plain arrays.

Nothing is read until it is asked for; `verify()` reads all and compares checksums. A partial dataset (one with an
origin.json) fetches a shard's files when they are first asked for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gristmill.base.errors import DataError, UsageError
from gristmill.shards.ends import map_ends
from gristmill.shards.manifest import (
    SPLITS,
    DatasetManifest,
    FileEntry,
    ShardEntry,
    SourceManifest,
    TokenizerInfo,
    check_file,
    numpy_dtype,
    one_tokenizer,
    other_files,
)
from gristmill.shards.remote.arrivals import DatasetFiles
from gristmill.shards.remote.cache import local_folder
from gristmill.shards.remote.stores import Progress, in_parallel
from gristmill.shards.skeleton import Skeleton, below, read_skeleton, reading_files

if TYPE_CHECKING:
    import pyarrow as pa

MAPS = 256  # shards held open at a time, per dataset; each holds up to three file descriptors


class Document(NamedTuple):
    """`tokens` end in EOS; `meta` has file, row, score, language (the last two may be None) and the source's own."""

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


class Maps(NamedTuple):
    """One shard's arrays, as views of its mapped files."""

    tokens: np.ndarray
    ends: np.ndarray
    loss: np.ndarray | None


class Verified(NamedTuple):
    """What verify() read, and what a partial dataset does not have yet."""

    files: int
    bytes: int
    absent_files: int
    absent_bytes: int


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of one source's train or valid part, in order."""

    source: str
    name: str
    folder: Path
    shards: tuple[ShardEntry, ...]
    maps: Callable[[str, str, int], Maps] = dataclasses.field(repr=False)  # (source, split, i)
    path: Callable[[str, FileEntry], Path] = dataclasses.field(repr=False)  # (source, entry)

    @functools.cached_property
    def token_count(self) -> int:
        return sum(shard.token_count for shard in self.shards)

    @functools.cached_property
    def document_count(self) -> int:
        """Documents; one that was cut into pieces counts once."""
        return sum(shard.document_count - shard.continues for shard in self.shards)

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        return np.cumsum([shard.token_count for shard in self.shards])

    def tokens(self, i: int) -> np.ndarray:
        """All tokens of shard i: a read-only view of the mapped file, u16 or u32."""
        return self.maps(self.source, self.name, i).tokens

    def ends(self, i: int) -> np.ndarray:
        """u32 [documents]: the offset after each document's last token in shard i."""
        return self.maps(self.source, self.name, i).ends

    def loss(self, i: int) -> np.ndarray | None:
        """u8 [tokens]: 1 where the token is learnt from, as a label; None where all of the source's are."""
        return self.maps(self.source, self.name, i).loss

    def meta(self, i: int) -> pa.Table:
        """The metadata rows of shard i: id, file, row, tokens, score, language, and what else the source has."""
        import pyarrow.parquet as pq

        path = self.path(self.source, self.shards[i].meta)
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
            tokens, ends, _loss = self.maps(self.source, self.name, i)
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
        i = int(np.searchsorted(self._bounds, token, "right"))
        offset = token - (int(self._bounds[i - 1]) if i else 0)
        ends = self.ends(i)
        row = int(np.searchsorted(ends, offset, "right"))
        within, piece, first = offset - (int(ends[row - 1]) if row else 0), i, row == 0
        while first and self.shards[piece].continues:  # the document's pieces in the shards before
            piece -= 1
            first = self.shards[piece].document_count == 1
            within += self.shards[piece].token_count - (0 if first else int(self.ends(piece)[-2]))
        return Place(i, offset, row, within)


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
    skeleton: Skeleton = dataclasses.field(repr=False)
    files: DatasetFiles = dataclasses.field(repr=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        return numpy_dtype(self.tokenizer.dtype)

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer.json that the dataset carries, if it does."""
        entry = self.manifest.tokenizer_file
        return None if entry is None else self.files.paths([entry])[0]

    def require(
        self,
        touched: Mapping[str, Iterable[int]],
        progress: Progress = lambda done, total: None,
        check_hashes: bool = False,
    ) -> None:
        """All that training on these train shards reads is there with its size; fetched first where the dataset is
        partial. `touched` is Plan.touched(). `check_hashes`: read the files, and compare their sha256.

        Raises:
            DataError: the first file that is missing, of the wrong size, or altered, by name.
            UsageError: a source or a shard that is not the dataset's.
            GristmillError: a file has to be fetched, and cannot be.
        """
        entries = list(self.skeleton.touched_files(touched))
        self.files.require(entries, progress)
        if check_hashes:
            in_parallel(lambda entry: check_file(self.root, entry), entries, progress)

    def verify(self, progress: Progress = lambda done, total: None) -> Verified:
        """Read every file that is there and compare its sha256; `progress(files done, files in all)`.

        Raises:
            DataError: the first file that is truncated or altered, or missing though the dataset is complete, by name.
        """
        sources = (entry for entry in self.manifest.sources.values())
        entries = [
            *self.skeleton.shard_files(),
            *(FileEntry(path=e.path, bytes=(self.root / e.path).stat().st_size, sha256=e.sha256) for e in sources),
            *other_files(self.manifest),
        ]
        absent = {e.path: e for e in self.files.missing(entries) if not (self.root / e.path).exists()}
        held = [entry for entry in entries if not self.files.partial or entry.path not in absent]
        for done, entry in enumerate(held, 1):
            check_file(self.root, entry)
            progress(done, len(held))
        there = {entry.path for entry in held}
        for source in self.sources.values():
            for split in source.splits.values():
                for i, shard in enumerate(split.shards):
                    prefix = self.skeleton.prefix(source.name)
                    if all(below(prefix, entry).path in there for entry in reading_files(shard)):
                        _check_values(split, i)
        size = sum(entry.bytes for entry in held)
        return Verified(len(held), size, len(absent), sum(entry.bytes for entry in absent.values()))


def open_dataset(path_or_uri: Path | str) -> Dataset:
    """Open a dataset in a folder, at file://FOLDER, on the Hub at hf://datasets/ORG/NAME[@REVISION], or at another URL.

    Of one that is elsewhere, the manifests are brought to $GRISTMILL_CACHE (else ~/.cache/gristmill) now, and shards
    when they are first asked for.

    Raises:
        DataError: no dataset, an unknown format version, an unsafe path, a wrong dtype, sources of different
            tokenizers, or a file that is missing or of the wrong size; the message names it.
        GristmillError: the place refuses, or cannot be reached, and the cache does not have it.
    """
    root = local_folder(path_or_uri)
    skeleton = read_skeleton(root)
    if not skeleton.sources:
        raise DataError(f"{root}: the manifest lists no source")
    tokenizer = one_tokenizer({name: source.tokenizer for name, source in skeleton.sources.items()}, root)
    held = DatasetFiles(root)
    if not held.partial:
        skeleton.check_complete()

    def path(source: str, entry: FileEntry) -> Path:
        return held.paths([below(skeleton.prefix(source), entry)])[0]

    @functools.lru_cache(maxsize=MAPS)
    def maps(name: str, split: str, i: int) -> Maps:
        source = skeleton.sources[name]
        shard, prefix = source.shards(split)[i], skeleton.prefix(name)
        tokens, ends, *loss = held.paths([below(prefix, entry) for entry in reading_files(shard)])
        # asarray drops the memmap subclass, whose slicing costs twice the time of the copy.
        return Maps(
            np.asarray(np.memmap(tokens, numpy_dtype(source.dtype), "r")),
            map_ends(ends, source.dtype, shard),
            np.asarray(np.memmap(loss[0], np.uint8, "r")) if loss else None,
        )

    sources = {}
    for name, source in skeleton.sources.items():
        folder = root / skeleton.prefix(name)
        splits = {s: Split(name, s, folder, tuple(source.shards(s)), maps, path) for s in SPLITS}
        sources[name] = Source(name, folder, source, splits)
    return Dataset(root, skeleton.manifest, sources, tokenizer, skeleton, held)


def _check_values(split: Split, i: int) -> None:
    shard = split.shards[i]
    if np.any(np.diff(split.ends(i).astype(np.int64)) <= 0):
        raise DataError(f"{split.folder / shard.ends.path}: its ends do not ascend; write the source again")
    loss = split.loss(i)
    if shard.loss is not None and loss is not None and int(loss.max(initial=0)) > 1:
        raise DataError(f"{split.folder / shard.loss.path}: holds other values than 0 and 1; write the source again")
