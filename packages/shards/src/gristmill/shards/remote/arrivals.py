"""Files of a dataset on their way into a folder: fetched beside it, checked by the manifest, then given their names.

What is there under its name with its size is that file. A partial dataset knows its origin, and brings what is missing
when it is first asked for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from gristmill.base import files
from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.base.terminal import shown
from gristmill.shards.manifest import (
    MANIFEST,
    FileEntry,
    SourceEntry,
    check_size,
    load_dataset_manifest,
    manifest_bytes,
    other_files,
)
from gristmill.shards.remote.folder import FolderStore
from gristmill.shards.remote.lock import locked
from gristmill.shards.remote.opening import open_store
from gristmill.shards.remote.places import parse
from gristmill.shards.remote.stores import NOTHING, Progress, Standing, Store, Unreachable, in_parallel
from gristmill.shards.skeleton import CARD, ORIGIN, Skeleton, between, check_paths, read_skeleton, sizes

ARRIVING = ".arriving"  # what has come but is not checked; kept after a failure
VERSIONS = "versions"  # in the cache: a folder for each version of a dataset, equal files linked


def staging_of(folder: Path, store: Store) -> Path:
    """Each version has its own: where the Hub does not answer, its client takes a file of another commit that it finds
    for the one asked for."""
    return folder / ARRIVING / store.version


def fetch_skeleton(store: Store, folder: Path) -> Skeleton:
    """Bring all but the shards to the staging folder of `folder`; what `folder` has already is taken from there.

    Raises:
        DataError: no dataset, an unsafe path, or what came differs from its manifest.
    """
    staging = staging_of(folder, store)
    _fetch(store, MANIFEST, staging)
    manifest = load_dataset_manifest(staging)
    check_paths(manifest)
    for entry in (*manifest.sources.values(), *other_files(manifest)):
        here = files.safe_join(folder, entry.path)
        if here.is_file() and files.sha256_file(here) == entry.sha256:
            target = files.safe_join(staging, entry.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(here, target)
        else:
            _check(store, _fetch(store, entry.path, staging), entry)
    with contextlib.suppress(FileNotFoundError):
        store.fetch(CARD, staging)
    return read_skeleton(staging)


def claim(skeleton: Skeleton, folder: Path, store: Store, before: Standing, replace: bool) -> None:
    """Mark the folder as one that a pull has begun to fill.

    Raises:
        UsageError: it has sources that the new version lacks; or a card, a tokenizer or a mixture that no dataset in it
            lists, and the new version brings another.
    """
    mark = folder / ARRIVING / ORIGIN
    begun = mark.is_file() or (folder / ORIGIN).is_file()
    try:
        before.refuse_loss(skeleton, folder, replace)
        if not (replace or begun):
            _refuse_foreign(skeleton, folder, before)
    except UsageError:
        if not begun:
            clear(folder)
        raise
    files.write_json(mark, {"uri": str(store)})


def _refuse_foreign(skeleton: Skeleton, folder: Path, before: Standing) -> None:
    ours = before.listed | ({CARD, MANIFEST} if before.manifest else set())
    for path in skeleton.mutable():
        here = files.safe_join(folder, path)
        if path not in ours and here.exists() and here.read_bytes() != (skeleton.folder / path).read_bytes():
            raise UsageError(
                f"{here}: belongs to no dataset, and the one to come brings its own; move it away, choose another "
                "folder, or give --replace"
            )


def install(skeleton: Skeleton, folder: Path, before: Standing = NOTHING) -> None:
    """Put a skeleton whose shards are in `folder` in its place there; with its manifest.json the new version stands.

    What of `before` is exchanged is not listed by the manifest that stands meanwhile.
    """
    for entry in skeleton.manifest_files():
        _settle(skeleton.folder / entry.path, files.safe_join(folder, entry.path))
    if before.manifest is not None:
        interim = between(before.manifest, skeleton.manifest)
        if interim != before.manifest:
            with files.atomic_path(folder / MANIFEST) as temporary:
                temporary.write_bytes(manifest_bytes(interim))
    for path in skeleton.mutable():
        _settle(skeleton.folder / path, files.safe_join(folder, path))


def bring(
    store: Store, folder: Path, entries: Sequence[FileEntry], progress: Progress = lambda done, total: None
) -> None:
    """Fetch those of `entries` that `folder` lacks. To be called under its lock.

    Raises:
        DataError: what arrived differs from its manifest, or is not there any more; by name.
    """
    there = sizes(folder, (entry.path for entry in entries))
    missing = [entry for entry in entries if there.get(entry.path) != entry.bytes]
    targets = {entry.path: files.safe_join(folder, entry.path) for entry in missing}
    staging, siblings = staging_of(folder, store), _siblings(folder)

    def one(entry: FileEntry) -> None:
        got = _linked(siblings, entry, staging) or _fetch(store, entry.path, staging)
        _check(store, got, entry)
        _settle(got, targets[entry.path])

    in_parallel(one, missing, progress)


def remove_strangers(skeleton: Skeleton, folder: Path, before: Standing) -> None:
    """Delete what `folder` has of versions before `skeleton`, which stands there now."""
    store = FolderStore(folder)
    for path in skeleton.strangers(store.sizes(), before.listed):
        store.remove(path)


def clear(folder: Path) -> None:
    shutil.rmtree(folder / ARRIVING, ignore_errors=True)


def read_origin(folder: Path) -> str | None:
    """Where a partial dataset comes from; None of a dataset that must be complete.

    Raises:
        DataError: an origin.json that is none.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    origin = files.read_json(path)
    if not (isinstance(origin, dict) and isinstance(origin.get("uri"), str)):
        raise DataError(f'{path}: must read {{"uri": "hf://datasets/ORG/NAME@COMMIT"}}; pull the dataset again')
    return origin["uri"]


def write_origin(folder: Path, store: Store) -> None:
    files.write_json(folder / ORIGIN, {"uri": str(store)})


class DatasetFiles:
    """The files of a dataset's folder; in a partial one, what is missing is fetched when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.origin = root, read_origin(root)

    @property
    def partial(self) -> bool:
        return self.origin is not None

    @functools.cached_property
    def _store(self) -> Store:
        assert self.origin is not None
        return open_store(parse(self.origin))

    def paths(self, entries: Sequence[FileEntry]) -> list[Path]:
        """Where the files are, once they are there with their sizes.

        Raises:
            DataError: a file that is missing or of the wrong size, by name.
            GristmillError: it has to be fetched, and cannot be.
        """
        if self.partial:
            self.require(entries)
        return [check_size(self.root, entry) for entry in entries]

    def missing(self, entries: Iterable[FileEntry]) -> list[FileEntry]:
        entries = list(entries)
        there = sizes(self.root, (entry.path for entry in entries))
        return [entry for entry in entries if there.get(entry.path) != entry.bytes]

    def require(self, entries: Iterable[FileEntry], progress: Progress = lambda done, total: None) -> None:
        """All of `entries` are there with their sizes, fetched where the dataset is partial.

        Raises:
            as `paths`.
        """
        missing = self.missing(entries)
        if missing and self.origin is None:
            check_size(self.root, missing[0])
        if not missing:
            return
        with locked(self.root):
            missing = self.missing(missing)  # another process may have brought them
            if not missing:
                return
            size = sum(entry.bytes for entry in missing)
            message = f"{self.root}: fetching {_files(missing)}, {size:,} bytes, from {self.origin}"
            print(shown(message), file=sys.stderr)
            try:
                bring(self._store, self.root, missing, progress)
            except Unreachable as error:
                raise GristmillError(f"{self.root / missing[0].path}: not fetched yet, and now {error}") from None
            shutil.rmtree(staging_of(self.root, self._store), ignore_errors=True)
            with contextlib.suppress(OSError):  # a pull that was cut short has left something
                (self.root / ARRIVING).rmdir()


def _files(entries: Sequence[FileEntry]) -> str:
    return entries[0].path if len(entries) == 1 else f"{len(entries)} files"


def _fetch(store: Store, path: str, staging: Path) -> Path:
    try:
        return store.fetch(path, staging)
    except FileNotFoundError:
        if path == MANIFEST:
            about = "so it is no dataset of shards, or its publishing was cut short; push it again"
        elif origin := _origin_of(store, staging):
            about = (
                f"for it is a partial dataset; pull from {origin}, or complete it first: `shards pull {origin} FOLDER`"
            )
        else:
            about = "which its manifest lists: it has been published anew since, pull it again"
        raise DataError(f"{store}: has no {path}, {about}") from None


def _origin_of(store: Store, staging: Path) -> str | None:
    """Where a place that is itself a partial dataset has its files from."""
    try:
        store.fetch(ORIGIN, staging)
        return read_origin(staging)
    except (FileNotFoundError, DataError):
        return None


def _check(store: Store, got: Path, entry: FileEntry | SourceEntry) -> None:
    size = entry.bytes if isinstance(entry, FileEntry) else got.stat().st_size
    if got.stat().st_size != size or files.sha256_file(got) != entry.sha256:
        got.unlink()
        raise DataError(
            f"{store}: {entry.path} differs from its manifest; pull again, and if it stays so, push it again"
        )


def _settle(got: Path, target: Path) -> None:
    """Give a file its name, on the disk for good: its name and size are what it is known by from now on."""
    with got.open("rb") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    got.replace(target)


def _siblings(folder: Path) -> list[Path]:
    """In the cache, the folders of the dataset's other versions."""
    if folder.parent.name != VERSIONS:
        return []
    return [path for path in sorted(folder.parent.iterdir()) if path != folder and (path / ORIGIN).is_file()]


def _linked(siblings: Sequence[Path], entry: FileEntry, staging: Path) -> Path | None:
    """The file from another version in the cache, without a second copy of it on the disk."""
    for sibling in siblings:
        if sizes(sibling, [entry.path]).get(entry.path) == entry.bytes:
            target = staging / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # no hard links here: it is fetched
                os.link(sibling / entry.path, target)
                return target if files.sha256_file(target) == entry.sha256 else target.unlink()
    return None
