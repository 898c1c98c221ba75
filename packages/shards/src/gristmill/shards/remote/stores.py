"""A place that holds a dataset, or is to hold one, behind one small interface; and the plain folder as such a place.

Publishing never leaves a place half changed: shard files come under names that nothing listed had before, then the
few files that change, manifest.json last, then what the new version no longer lists goes.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from gristmill.base import files
from gristmill.base.errors import DataError, GristmillError
from gristmill.shards.skeleton import Skeleton

T = TypeVar("T")
THREADS = 4  # transfers at a time
DATASET_FOLDERS = ("sources", "mixtures")
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

    def publish(self, skeleton: Skeleton, progress: Progress) -> None:
        """Make the place hold the dataset of `skeleton`, whose files have their sizes. Sends only what is missing.

        Raises:
            DataError: a file that was altered, by name; nothing that depends on it is published.
            GristmillError: the place refuses, or cannot be reached.
        """
        ...


class FileStore(Protocol):
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


def publish_files(store: FileStore, skeleton: Skeleton, progress: Progress) -> None:
    there = store.sizes()
    missing = [entry for entry in skeleton.shard_files() if there.get(entry.path) != entry.bytes]
    in_parallel(lambda entry: store.put(entry.path, skeleton.folder / entry.path, entry.sha256), missing, progress, 1)
    for path in skeleton.mutable():
        local = skeleton.folder / path
        if path not in there or not store.holds(path, local):
            store.put(path, local, files.sha256_file(local))
    in_parallel(store.remove, skeleton.strangers(there))
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
