"""Datasets from one place to another: what is there stays, each file is checked, a version stands as a whole or not.

A transfer that was cut short goes on where it stopped; until its manifest stands, the target is what it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from gristmill.base.errors import DataError, UsageError
from gristmill.shards.manifest import DatasetManifest, FileEntry
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.remote import arrivals
from gristmill.shards.remote.folder import FolderStore
from gristmill.shards.remote.lock import locked
from gristmill.shards.remote.opening import open_store
from gristmill.shards.remote.places import Place, parse
from gristmill.shards.remote.stores import Progress, read_standing
from gristmill.shards.skeleton import ORIGIN, Skeleton, below, read_skeleton, sizes


def push(
    folder: Path,
    target: Path | str,
    token: str | None = None,
    private: bool = False,
    progress: Progress = lambda done, total: None,
    replace: bool = False,
) -> str:
    """Publish the dataset in `folder`; returns the address. Shard files that are there already are not sent.

    `token` None is the one of $HF_TOKEN or of `hf auth login`. `private` counts when the repository is made.

    Once the new version stands, what the one before listed and it does not is deleted, and what cut transfers left in
    the folders of its sources; nothing else. `replace`: even whole sources.

    Raises:
        UsageError: the dataset that stands there has sources that `folder` lacks (see `replace`).
        DataError: a file of `folder` that is missing or altered, by name; nothing that depends on it is published.
        GristmillError: the place refuses, or cannot be reached after several attempts.
    """
    place = parse(target)
    _refuse_same(folder, place)
    skeleton = read_skeleton(folder)
    origin = arrivals.read_origin(folder)
    if origin is not None and (missing := absent(skeleton, folder)):
        raise DataError(
            f"{folder}: a partial dataset, without {len(missing):,} of its files; `shards pull {origin} {folder}` first"
        )
    skeleton.check_complete()
    open_store(place, token, private).publish(skeleton, progress, replace)
    return str(place)


def pull(
    uri: Path | str,
    folder: Path,
    *,
    only: Callable[[Dataset], Mapping[str, Iterable[int]]] | None = None,
    token: str | None = None,
    progress: Progress = lambda done, total: None,
    replace: bool = False,
) -> DatasetManifest:
    """Bring a dataset to `folder`, checking each file's sha256; shard files that are there already are kept. Resumes.

    `only`, called with the dataset (of which nothing but manifests, mixtures, tokenizer and card is there yet), gives
    the train shards of each source to bring, for a partial dataset: their tokens, ends and loss, and each source's
    first valid shard. What is asked for beyond that is fetched then.

    An older version in `folder` stays valid until the new one stands; then it goes, as in `push`. Of several processes
    that pull into one folder, one does the work.

    Raises:
        DataError: what arrived differs from its manifest, by name; the place holds no dataset; or an unsafe path.
        UsageError: `only` names a source or a shard that is not there; or `folder` has sources that the new version
            lacks, or a card, tokenizer or mixture of no dataset (see `replace`).
        GristmillError: the place refuses, or cannot be reached after several attempts.
    """
    place = parse(uri)
    _refuse_same(folder, place)
    store = open_store(place, token).pinned()
    with locked(folder):
        skeleton = arrivals.fetch_skeleton(store, folder)
        before = read_standing(FolderStore(folder), skeleton)
        arrivals.claim(skeleton, folder, store, before, replace)
        if only is None:
            entries = list(skeleton.shard_files())
        else:
            arrivals.write_origin(skeleton.folder, store)
            entries = list(_part(skeleton, only(open_dataset(skeleton.folder))))
        arrivals.bring(store, folder, entries, progress)
        partial = bool(absent(skeleton, folder))
        if partial:
            arrivals.write_origin(folder, store)
        arrivals.install(skeleton, folder, before)
        if not partial:
            (folder / ORIGIN).unlink(missing_ok=True)
        standing = read_skeleton(folder)
        arrivals.remove_strangers(standing, folder, before)
        arrivals.clear(folder)
    return standing.manifest


def _refuse_same(folder: Path, place: Place) -> None:
    if isinstance(place, Path) and place.resolve() == folder.resolve():
        raise UsageError(f"{folder}: from and to are one folder")


def absent(skeleton: Skeleton, folder: Path) -> list[FileEntry]:
    """The shard files of `skeleton` that are not in `folder`."""
    entries = list(skeleton.shard_files())
    there = sizes(folder, (entry.path for entry in entries))
    return [entry for entry in entries if there.get(entry.path) != entry.bytes]


def _part(skeleton: Skeleton, touched: Mapping[str, Iterable[int]]) -> Iterable[FileEntry]:
    yield from skeleton.touched_files(touched)
    for name, source in skeleton.sources.items():
        for shard in source.valid[:1]:
            yield from (below(skeleton.prefix(name), entry) for entry in shard.files)
