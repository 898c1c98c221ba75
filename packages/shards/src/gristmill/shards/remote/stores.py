"""A place that holds a dataset, or is to hold one, behind one small interface.

Publishing never leaves a place half changed: shard files and the manifests of sources come under names that nothing
listed had before, then the few files that change, manifest.json last, then what the new version no longer lists goes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from gristmill.base import files
from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.shards.manifest import (
    MANIFEST,
    DatasetManifest,
    load_dataset_manifest,
    load_source_manifest,
    manifest_bytes,
    other_files,
)
from gristmill.shards.skeleton import Skeleton, below, between, check_paths, refuse_unsafe

T = TypeVar("T")
THREADS = 4  # transfers at a time
Progress = Callable[[int, int], None]  # files done, files in all


class Unreachable(GristmillError):
    """The place does not answer; what came from it before can still be used."""


class Store(Protocol):
    """str() of a store is its address."""

    @property
    def version(self) -> str:
        """A name for what the place holds now: a commit, or a hash of the manifest."""
        ...

    def pinned(self) -> Store:
        """This place as it is now: where the place keeps its versions apart, later changes are not seen."""
        ...

    def fetch(self, path: str, staging: Path) -> Path:
        """Bring a file below the folder `staging`. Its content is not checked.

        Raises:
            FileNotFoundError: the place has no such file.
            GristmillError: the place refuses, or cannot be reached (Unreachable).
        """
        ...

    def publish(self, skeleton: Skeleton, progress: Progress, replace: bool = False) -> None:
        """Make the place hold the dataset of `skeleton`, whose files have their sizes. Sends only what is missing.

        Raises:
            UsageError: what stands there has sources that `skeleton` lacks, or is no dataset, and `replace` is False.
            DataError: a file that was altered, by name; nothing that depends on it is published.
            GristmillError: the place refuses, or cannot be reached.
        """
        ...


class FileStore(Store, Protocol):
    """A place where files are written one by one."""

    def sizes(self) -> dict[str, int]:
        """All files there, by path."""
        ...

    def holds(self, path: str, local: Path) -> bool:
        """The file is there with the bytes of `local`."""
        ...

    def put(self, path: str, local: Path, sha256: str) -> None:
        """Write the file; raises DataError if `local` does not have that sha256."""
        ...

    def remove(self, path: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a place holds before a new version: its dataset's manifest, and the paths that this and those of its sources
    list. None: there is no manifest.json, or one that cannot be read, for the reason `unreadable`."""

    manifest: DatasetManifest | None = None
    listed: frozenset[str] = frozenset()
    unreadable: str = ""

    def refuse_loss(self, skeleton: Skeleton, place: object, replace: bool) -> None:
        """Before anything changes there.

        Raises:
            UsageError: `skeleton` would end sources that stand there, or take the place of what is no dataset.
        """
        if replace:
            return
        if self.unreadable:
            raise UsageError(
                f"{place}: its {MANIFEST} is none that can be read ({self.unreadable}); choose another place, or give "
                "--replace to put this dataset there"
            )
        if lost := sorted(set(self.manifest.sources if self.manifest else ()) - set(skeleton.sources)):
            raise UsageError(
                f"{place}: what stands there has {', '.join(lost)}, which the new version lacks; add the new sources "
                "to a copy of it, choose another place, or give --replace to delete what is not in the new version"
            )


NOTHING = Standing()


def read_standing(store: Store, skeleton: Skeleton) -> Standing:
    """What stands at a place that `skeleton` is to come to. Of a source whose manifest is damaged nothing is known."""
    with tempfile.TemporaryDirectory(prefix="gristmill-") as scratch:
        folder = Path(scratch)
        try:
            store.fetch(MANIFEST, folder)
            manifest = load_dataset_manifest(folder)
            check_paths(manifest)
        except FileNotFoundError:
            return NOTHING
        except DataError as error:
            return Standing(unreadable=str(error).removeprefix(f"{folder}/"))
        listed = {entry.path for entry in (*manifest.sources.values(), *other_files(manifest))}
        for name, entry in manifest.sources.items():
            try:
                if skeleton.manifest.sources.get(name) == entry:
                    source = skeleton.sources[name]
                else:
                    store.fetch(entry.path, folder)
                    source, _folder = load_source_manifest(folder, name, entry)
                prefix = entry.path.rpartition("/")[0]
                paths = [below(prefix, file).path for s in (*source.train, *source.valid) for file in s.files]
                refuse_unsafe(paths, folder)
            except (FileNotFoundError, DataError):
                continue
            listed.update(paths)
        return Standing(manifest, frozenset(listed))


def publish_files(store: FileStore, skeleton: Skeleton, progress: Progress, replace: bool) -> None:
    there = store.sizes()
    before = read_standing(store, skeleton) if MANIFEST in there else NOTHING
    before.refuse_loss(skeleton, store, replace)

    def differs(path: str) -> bool:
        return path not in there or not store.holds(path, skeleton.folder / path)

    missing = [entry for entry in skeleton.shard_files() if there.get(entry.path) != entry.bytes]
    in_parallel(lambda entry: store.put(entry.path, skeleton.folder / entry.path, entry.sha256), missing, progress, 1)
    for entry in skeleton.manifest_files():
        if differs(entry.path):
            store.put(entry.path, skeleton.folder / entry.path, entry.sha256)
    if before.manifest is not None:
        interim = between(before.manifest, skeleton.manifest)
        if interim != before.manifest:  # else who reads the old manifest would find another mixture than it lists
            with tempfile.TemporaryDirectory(prefix="gristmill-") as scratch:
                local = Path(scratch, MANIFEST)
                local.write_bytes(manifest_bytes(interim))
                store.put(MANIFEST, local, files.sha256_file(local))
    for path in skeleton.mutable():
        if differs(path):
            store.put(path, skeleton.folder / path, files.sha256_file(skeleton.folder / path))
    in_parallel(store.remove, skeleton.strangers(there, before.listed))
    progress(len(missing) + 1, len(missing) + 1)


def in_parallel(
    action: Callable[[T], object],
    items: Iterable[T],
    progress: Progress = lambda done, total: None,
    more: int = 0,
) -> None:
    """action(item) of each, THREADS at a time; the first failure stops those that have not begun. `more`: added to the
    total that `progress` is told."""
    with concurrent.futures.ThreadPoolExecutor(THREADS, "gristmill-transfer") as pool:
        transfers = [pool.submit(action, item) for item in items]
        try:
            for done, transfer in enumerate(concurrent.futures.as_completed(transfers), 1):
                transfer.result()
                progress(done, len(transfers) + more)
        finally:
            pool.shutdown(cancel_futures=True)


def altered(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        f"{path}: altered: sha256 {found[:12]} where its manifest says {expected[:12]}; pull or write it again"
    )
