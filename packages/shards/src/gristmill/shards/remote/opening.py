"""The store behind an address."""

from __future__ import annotations

from gristmill.shards.remote.folder import FolderStore
from gristmill.shards.remote.hub import HubStore
from gristmill.shards.remote.object_store import ObjectStore
from gristmill.shards.remote.places import HubAddress, Place, UrlAddress
from gristmill.shards.remote.stores import Store


def open_store(place: Place, token: str | None = None, private: bool = False) -> Store:
    """`token` and `private` are for the Hub.

    Raises:
        UsageError: fsspec needs a package for this scheme that is not installed.
    """
    if isinstance(place, HubAddress):
        return HubStore(place, token, private)
    if isinstance(place, UrlAddress):
        return ObjectStore(place)
    return FolderStore(place)
