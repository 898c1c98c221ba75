"""Open a dataset: manifests checked, every file of the right size, tokens memory-mapped as plain arrays.

Nothing is read until it is asked for; `verify()` reads all and compares checksums. A partial dataset (one with an
origin.json) fetches a shard's files when they are first asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from gristmill.base.errors import DataError, UsageError
from gristmill.shards import metadata
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
from gristmill.shards.order import GROUP_SHARDS
from gristmill.shards.remote.arrivals import DatasetFiles
from gristmill.shards.remote.cache import local_folder
from gristmill.shards.remote.stores import Progress, in_parallel
from gristmill.shards.skeleton import Skeleton, below, read_skeleton, reading_files, sizes
from gristmill.shards.values import Arrays, check_values

if TYPE_CHECKING:
    import pyarrow as pa

Part = Literal["tokens", "ends", "loss"]
OTHER_FILES = 256  # descriptors that are left for everything but maps
GROUPS = 2  # shuffle groups of each source whose shards are kept at hand: the one being read, and the next


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
    maps: Callable[[str, str, int, Part], np.ndarray] = dataclasses.field(repr=False)  # (source, split, i, part)
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
        return self.maps(self.source, self.name, i, "tokens")

    def ends(self, i: int) -> np.ndarray:
        """u32 [documents]: the offset after each document's last token in shard i."""
        return self.maps(self.source, self.name, i, "ends")

    def loss(self, i: int) -> np.ndarray | None:
        """u8 [tokens]: 1 where the token is learnt from, as a label; None where all of the source's are."""
        return self.maps(self.source, self.name, i, "loss") if self.shards[i].loss else None

    def meta(self, i: int) -> pa.Table:
        """The metadata rows of shard i: id, file, row, tokens, score, language, and what else the source has."""
        return metadata.read(self.path(self.source, self.shards[i].meta), self.shards[i].document_count)

    @property
    def masked(self) -> bool:
        """Whether some tokens are not learnt from."""
        return any(shard.loss for shard in self.shards)

    def documents(self, part: Literal["tokens", "loss"] = "tokens") -> Iterator[Document]:
        """Documents in published order; the pieces of one that was longer than a shard are put together again.

        `part` loss, of a masked split: with the mask in the place of the tokens.
        """
        held: Document | None = None
        for i, shard in enumerate(self.shards):
            tokens, ends = self.maps(self.source, self.name, i, part), self.ends(i)
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
    _forget: Callable[[], None] = dataclasses.field(repr=False)

    def __reduce__(self) -> tuple[Callable[[Path], Dataset], tuple[Path]]:
        """In another process it is opened again: maps cannot travel."""
        return open_dataset, (self.root,)

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

    def bytes_of(self, touched: Mapping[str, Iterable[int]]) -> int:
        """The bytes of what training on these train shards reads."""
        return sum(entry.bytes for entry in self.skeleton.touched_files(touched))

    def evict(self, keep: Mapping[str, Iterable[int]], limit: int) -> bool:
        """Of a partial dataset, delete train shards that are not in `keep` (they can be fetched again), oldest first,
        until those that stay and those of `keep` together have at most `limit` bytes; true if any went.
        """
        kept = {entry.path: entry.bytes for entry in self.skeleton.touched_files(keep)}
        every = {name: range(len(source.train)) for name, source in self.skeleton.sources.items()}
        others = [entry for entry in self.skeleton.touched_files(every) if entry.path not in kept]
        there = sizes(self.root, (entry.path for entry in others))
        present = [(self.root / path, size) for path, size in there.items()]
        excess = sum(kept.values()) + sum(size for _path, size in present) - limit
        if excess <= 0 or not self.files.partial:
            return False
        for path, size in sorted(present, key=lambda item: item[0].stat().st_mtime_ns):
            if excess > 0:
                path.unlink(missing_ok=True)
                excess -= size
        self._forget()
        return True

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
                        _check_values(source, split, i)
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

    @functools.lru_cache(maxsize=_maps_at_a_time(len(skeleton.sources)))
    def maps(name: str, split: str, i: int, part: Part) -> np.ndarray:
        source = skeleton.sources[name]
        shard = source.shards(split)[i]
        if part == "ends":
            return map_ends(path(name, shard.ends), source.dtype, shard)
        entry, kind = (shard.tokens, numpy_dtype(source.dtype)) if part == "tokens" else (shard.loss, np.uint8)
        assert entry is not None
        # asarray drops the memmap subclass, whose slicing costs twice the time of the copy.
        return np.asarray(np.memmap(path(name, entry), kind, "r"))

    sources = {}
    for name, source in skeleton.sources.items():
        folder = root / skeleton.prefix(name)
        splits = {s: Split(name, s, folder, tuple(source.shards(s)), maps, path) for s in SPLITS}
        sources[name] = Source(name, folder, source, splits)
    return Dataset(root, skeleton.manifest, sources, tokenizer, skeleton, held, maps.cache_clear)


def shards_at_a_time(sources: int) -> int:
    """How many shards are worth keeping at hand."""
    return max(256, sources * GROUPS * GROUP_SHARDS)


def _maps_at_a_time(sources: int) -> int:
    """Files to keep mapped. Each holds a descriptor: the limit is raised for them, as far as the system lets us."""
    wanted = 3 * shards_at_a_time(sources)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(min(wanted, soft - OTHER_FILES), 16)
    return wanted


def _check_values(source: Source, split: Split, i: int) -> None:
    meta = split.folder / split.shards[i].meta.path  # a partial dataset may not have it: nothing is fetched to verify
    arrays = Arrays(split.tokens(i), split.ends(i), split.loss(i), meta if meta.is_file() else None)
    check_values(split.folder, source.manifest, split.name, i, arrays)
