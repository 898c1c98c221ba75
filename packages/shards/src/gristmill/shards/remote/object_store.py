"""Whatever fsspec reaches as a place for datasets: S3, GCS, Azure and the like, where files appear whole."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from gristmill.base import files
from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.shards.manifest import MANIFEST
from gristmill.shards.remote.places import UrlAddress
from gristmill.shards.remote.stores import Progress, Unreachable, altered, publish_files
from gristmill.shards.skeleton import Skeleton

EXTRAS = {"s3fs": "s3", "gcsfs": "gcs"}  # packages that gristmill-shards offers as extras


class ObjectStore:
    """All below one URL. It has one version; credentials are the filesystem's own affair (environment, config)."""

    def __init__(self, place: UrlAddress) -> None:
        import fsspec

        self.place = place
        try:
            self.fs, self.root = fsspec.url_to_fs(place.url)
        except ImportError as error:
            raise UsageError(f"{place}: needs a package that is not installed: {_install(place, error)}") from None
        except ValueError as error:
            raise UsageError(f"{place}: {error}") from None
        self.root = self.root.rstrip("/")

    def __str__(self) -> str:
        return str(self.place)

    @property
    def version(self) -> str:
        return self._version

    @functools.cached_property
    def _version(self) -> str:
        try:
            with self._spoken(or_missing=True):
                manifest = self.fs.cat_file(f"{self.root}/{MANIFEST}")
        except FileNotFoundError:
            raise DataError(
                f"{self}: has no {MANIFEST}, so it is no dataset of shards, or its publishing was cut short"
            ) from None
        return hashlib.sha256(manifest).hexdigest()[:40]

    def pinned(self) -> ObjectStore:
        return self

    def fetch(self, path: str, staging: Path) -> Path:
        target = staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._spoken(or_missing=True):
            self.fs.get_file(f"{self.root}/{path}", str(target))
        return target

    def publish(self, skeleton: Skeleton, progress: Progress, replace: bool = False) -> None:
        publish_files(self, skeleton, progress, replace)

    def sizes(self) -> dict[str, int]:
        with self._spoken():
            self.fs.invalidate_cache()
            found = self.fs.find(self.root, detail=True)
        return {name.removeprefix(self.root).lstrip("/"): int(info["size"] or 0) for name, info in found.items()}

    def holds(self, path: str, local: Path) -> bool:
        with self._spoken():
            return self.fs.cat_file(f"{self.root}/{path}") == local.read_bytes()

    def put(self, path: str, local: Path, sha256: str) -> None:
        found = files.sha256_file(local)
        if found != sha256:
            raise altered(local, found, sha256)
        with self._spoken():
            self.fs.put_file(str(local), f"{self.root}/{path}")

    def remove(self, path: str) -> None:
        with self._spoken():
            self.fs.rm_file(f"{self.root}/{path}")

    @contextlib.contextmanager
    def _spoken(self, or_missing: bool = False) -> Iterator[None]:
        """What a filesystem raises, in one line. Each has its own classes of errors, and makes its own new attempts."""
        try:
            yield
        except NotImplementedError:  # how fsspec says that a filesystem is read-only (http, zip)
            raise UsageError(f"{self}: this kind of place cannot be written to") from None
        except Exception as error:
            if or_missing and isinstance(error, FileNotFoundError):
                raise
            line = str(error).strip().partition("\n")[0]
            message = f"{self}: {type(error).__name__}: {line}; the same command goes on from here"
            refused = isinstance(error, (PermissionError, FileNotFoundError))
            raise (GristmillError if refused else Unreachable)(message) from error


def _install(place: UrlAddress, error: ImportError) -> str:
    """The package of the scheme's filesystem, or what that one misses in its turn."""
    from fsspec.registry import known_implementations

    package = known_implementations[place.url.partition("://")[0]]["class"].partition(".")[0]
    if package == "fsspec":
        package = getattr(error.__cause__, "name", None) or error.name or str(error)
    extra = f" (or `pip install 'gristmill-shards[{EXTRAS[package]}]'`)" if package in EXTRAS else ""
    return f"`pip install {package}`{extra}"
