"""All of a dataset but its shard files: the manifests, what they list, and in which order it is exchanged.

Shard files and the manifests of sources never change under their names; the rest does, manifest.json last. A dataset's
folder, what is published, and what a partial pull brings are all read through this.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

from gristmill.base import files
from gristmill.base.errors import DataError, UsageError
from gristmill.shards.manifest import (
    MANIFEST,
    DatasetManifest,
    FileEntry,
    ShardEntry,
    SourceManifest,
    check_size,
    load_dataset_manifest,
    load_source_manifest,
    other_files,
    with_content_id,
)

CARD = "README.md"
ORIGIN = "origin.json"
# The files that belong to one source, below its folder, and their names while they are written.
OF_SOURCE = re.compile(r"manifest(-\w+)?\.json|\.manifest[^/]*|(valid/)?(tokens|ends|meta|loss)/.+")
# Whatever a manifest lists: nothing of another form is ever deleted.
OURS = re.compile(rf".+/({OF_SOURCE.pattern})|mixtures/[^/]+\.toml|tokenizer\.json")


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """The manifests in `folder`, checked against each other. Every path below is one below `folder`."""

    folder: Path
    manifest: DatasetManifest
    sources: dict[str, SourceManifest]

    def prefix(self, source: str) -> str:
        return self.manifest.sources[source].path.rpartition("/")[0]

    def shards(self, source: str, split: str) -> list[ShardEntry]:
        return self.sources[source].shards(split)

    def shard_files(self) -> Iterator[FileEntry]:
        """Every file of every shard."""
        for name, source in self.sources.items():
            prefix = self.prefix(name)
            for shard in (*source.train, *source.valid):
                for entry in shard.files:
                    yield below(prefix, entry)

    def touched_files(self, touched: Mapping[str, Iterable[int]]) -> Iterator[FileEntry]:
        """The files that training on these train shards reads: tokens, ends, and loss where there is one.

        Raises:
            UsageError: a source or a shard that the dataset does not have.
        """
        for name, numbers in touched.items():
            if name not in self.sources:
                raise UsageError(f"{self.folder}: no source {name!r}; it has {', '.join(self.sources)}")
            train, prefix = self.sources[name].train, self.prefix(name)
            for number in numbers:
                if not 0 <= number < len(train):
                    raise UsageError(f"{self.folder}: source {name} has {len(train)} train shards, no number {number}")
                yield from (below(prefix, entry) for entry in reading_files(train[number]))

    def manifest_files(self) -> Iterator[FileEntry]:
        """The manifests of the sources."""
        for entry in self.manifest.sources.values():
            size = (self.folder / entry.path).stat().st_size
            yield FileEntry(path=entry.path, bytes=size, sha256=entry.sha256)

    def mutable(self) -> list[str]:
        """The paths whose content differs between versions, in the order of their exchange: manifest.json last."""
        others = [entry.path for entry in other_files(self.manifest)]
        return [*others, *([CARD] if (self.folder / CARD).is_file() else []), MANIFEST]

    def listed(self) -> frozenset[str]:
        """What the manifests list: all but manifest.json and the card."""
        entries = (*self.shard_files(), *self.manifest.sources.values(), *other_files(self.manifest))
        return frozenset(entry.path for entry in entries)

    def strangers(self, there: Iterable[str], before: Set[str] = frozenset()) -> list[str]:
        """Those of the paths `there` that go once this version stands: what the version `before` listed and this one
        does not, and what cut transfers left in the folders of its sources. Other sources, other mixtures and whatever
        else is there are not ours to delete."""
        listed, prefixes = self.listed().union(self.mutable()), [f"{self.prefix(name)}/" for name in self.sources]

        def goes(path: str) -> bool:
            if path in before:
                return OURS.fullmatch(path) is not None
            return any(path.startswith(prefix) and OF_SOURCE.fullmatch(path, len(prefix)) for prefix in prefixes)

        return sorted(path for path in there if path not in listed and goes(path))

    def check_complete(self) -> None:
        """Every listed file is there with its size; nothing is read.

        Raises:
            DataError: the first that is not, by name.
        """
        entries = [*self.shard_files(), *other_files(self.manifest)]
        there = sizes(self.folder, (entry.path for entry in entries))
        for entry in entries:
            if there.get(entry.path) != entry.bytes:
                check_size(self.folder, entry)


def read_skeleton(folder: Path) -> Skeleton:
    """The dataset's manifest and those of its sources, from `folder`.

    Raises:
        DataError: one that is missing, altered, of another format version, or lists an unsafe path; by name.
    """
    manifest = load_dataset_manifest(folder)
    check_paths(manifest)
    sources = {name: load_source_manifest(folder, name, entry)[0] for name, entry in manifest.sources.items()}
    skeleton = Skeleton(folder, manifest, sources)
    refuse_unsafe((entry.path for entry in skeleton.shard_files()), folder)
    return skeleton


def between(before: DatasetManifest, after: DatasetManifest) -> DatasetManifest:
    """`before` without the mixtures and the tokenizer that `after` changes: it may stand while they are exchanged."""
    new = {entry.path: entry for entry in other_files(after)}
    mixtures = [entry for entry in before.mixtures if new.get(entry.path, entry) == entry]
    tokenizer = before.tokenizer_file
    if tokenizer is not None and new.get(tokenizer.path, tokenizer) != tokenizer:
        tokenizer = None
    return with_content_id(before.model_copy(update={"mixtures": mixtures, "tokenizer_file": tokenizer}))


def check_paths(manifest: DatasetManifest) -> None:
    """Refuse a dataset manifest whose own paths are unsafe, before any of them is used."""
    paths = [entry.path for entry in manifest.sources.values()] + [entry.path for entry in other_files(manifest)]
    refuse_unsafe(paths, "the dataset")


def refuse_unsafe(paths: Iterable[str], where: Path | str) -> None:
    """By their text alone; a symbolic link on the way is found by files.safe_join when a path is used.

    Raises:
        DataError: absolute, a backslash, a colon, NUL, a part that is empty or starts with a dot (`..`, .git, ...), or
            the name of a file that is not the manifests' to list.
    """
    for path in paths:
        if _UNSAFE.search(path) or path in (MANIFEST, CARD, ORIGIN):
            raise DataError(f"unsafe path {path!r}: paths in a manifest must be relative and stay inside {where}")


_UNSAFE = re.compile(r"^$|^/|/$|//|(^|/)\.|[\\:\0]")


def below(prefix: str, entry: FileEntry) -> FileEntry:
    """The entry of a source's file with its path below the dataset's folder."""
    return entry.model_copy(update={"path": f"{prefix}/{entry.path}"}) if prefix else entry


def reading_files(shard: ShardEntry) -> tuple[FileEntry, ...]:
    """What reading a shard's tokens takes: all its files but the metadata."""
    return tuple(entry for entry in shard.files if entry is not shard.meta)


def sizes(root: Path, paths: Iterable[str]) -> dict[str, int]:
    """The size of each of `paths` that is a file below `root`: one look into each folder, one at each file.

    Raises:
        DataError: a path that leads out of `root` over a symbolic link.
    """
    wanted: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        wanted.setdefault(folder, set()).add(name)
    found: dict[str, int] = {}
    for folder, names in wanted.items():
        where = files.safe_join(root, folder) if folder else root
        if not where.is_dir():
            continue
        with os.scandir(where) as entries:
            for entry in entries:
                if entry.name in names:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_symlink():
                        files.safe_join(root, path)
                    if entry.is_file():
                        found[path] = entry.stat().st_size
    return found
