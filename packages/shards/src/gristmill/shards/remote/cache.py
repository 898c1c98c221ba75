"""Datasets that are opened where they are published: a folder each in the cache, filled with what is asked for.

$GRISTMILL_CACHE (else ~/.cache/gristmill)/datasets/PLACE/versions/VERSION is a partial dataset that only ever gains
shard files, so two processes may read two versions. refs/REVISION names the version that the place had when last asked.
"""

from __future__ import annotations

import os
import sys
import urllib.parse
from pathlib import Path

from gristmill.base import files
from gristmill.base.errors import DataError
from gristmill.shards.manifest import MANIFEST
from gristmill.shards.remote import arrivals
from gristmill.shards.remote.lock import locked
from gristmill.shards.remote.opening import open_store
from gristmill.shards.remote.places import HubAddress, UrlAddress, or_the_hub, parse
from gristmill.shards.remote.stores import Store, Unreachable


def local_folder(path_or_uri: Path | str) -> Path:
    """The folder of a dataset. Of one that is elsewhere, the manifests come to the cache now, shards when asked for.

    A full commit of the Hub that is in the cache asks it nothing. Where the place cannot be reached, the version that
    it had when it was last asked is used, with a line that says so.

    Raises:
        DataError: no dataset there, or one whose files differ from its manifest.
        GristmillError: the place refuses, or cannot be reached and has not been before.
    """
    place = parse(path_or_uri)
    if isinstance(place, Path):
        if hint := or_the_hub(place):
            raise DataError(f"{place}: no such folder{hint}")
        return place
    store = open_store(place)
    base, revision = _base(place), "newest"
    if isinstance(place, HubAddress) and place.revision:
        revision = urllib.parse.quote(place.revision, safe="")
    reference = base / "refs" / revision
    try:
        folder = base / arrivals.VERSIONS / store.version
        if not (folder / MANIFEST).is_file():
            _make(store.pinned(), folder)
    except Unreachable as error:
        known = reference.read_text("utf-8").strip() if reference.is_file() else ""
        folder = base / arrivals.VERSIONS / known
        if not (known and (folder / MANIFEST).is_file()):
            raise
        print(f"{place}: using version {known[:12]} of the cache: {error}", file=sys.stderr)
        return folder
    if not (reference.is_file() and reference.read_text("utf-8") == folder.name):
        files.write_text(reference, folder.name)
    return folder


def _base(place: HubAddress | UrlAddress) -> Path:
    root = Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill") / "datasets"
    if isinstance(place, HubAddress):
        return root / place.repository.replace("/", "--")
    return root / urllib.parse.quote(place.url, safe="")


def _make(store: Store, folder: Path) -> None:
    with locked(folder):
        if (folder / MANIFEST).is_file():  # another process was faster
            return
        skeleton = arrivals.fetch_skeleton(store, folder)
        arrivals.write_origin(folder, store)
        arrivals.install(skeleton, folder)
        arrivals.clear(folder)
