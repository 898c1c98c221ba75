"""The bytes of an input file, from disk or from a store that fsspec reaches, and how a change of them is noticed.

A failure to read is a GristmillError here, and nothing else is: a reader that finds damage knows that the content is to
blame, not the disk or the network.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.base.errors import GristmillError

BUFFER_BYTES = 2**20
BLOCK_BYTES = 2**23
"""Read ahead from a store: large enough that a request's latency is little beside its transfer."""
CONTENT_KEYS = ("md5hash", "content-md5", "sha", "generation", "etag")
"""What stores call what changes with an object's content, best first: the ETag of GCS changes with metadata, too."""
TIME_KEYS = ("lastmodified", "last_modified", "last-modified", "updated", "mtime", "modified", "created")
_SECRET = re.compile(r"(?i)((?:secret|token|key|signature|password|credential)[\w-]*[\"']?\s*[=:]\s*)\S+")


@dataclass(frozen=True)
class RemoteFile:
    """An object in a store. Credentials are never part of it: each worker has them from its environment or config."""

    url: str
    size: int
    stamp: str
    """The store's word for this content (see stamp_of): reading refuses any other."""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def as_posix(self) -> str:
        return self.url

    def __str__(self) -> str:
        return self.url


Location = Path | RemoteFile


def stamp_of(info: Mapping[str, Any], keys: Sequence[str] = CONTENT_KEYS + TIME_KEYS) -> str:
    """What identifies an object's content without reading it: size with a checksum or ETag, else with a time of change.

    `info` is what fsspec tells of it. Empty where it tells no size, or none of `keys`.
    """
    told = {key.lower(): value for key, value in info.items()}
    if told.get("size") is not None:
        for key in keys:
            if told.get(key):
                return f"{told['size']}:{key}:{told[key]}"
    return ""


def find(fs: Any, path: str, listed: Mapping[str, Any]) -> RemoteFile | None:
    """An object as it is now; None where the store tells nothing that a change would change.

    Listings of S3, GCS and Azure hold what is needed. Others, which may tell times otherwise there, are asked again.
    """
    stamp = stamp_of(listed, CONTENT_KEYS)
    size = listed.get("size")
    if not stamp:
        info = fs.info(path)
        stamp, size = stamp_of(info), info.get("size")
    return RemoteFile(fs.unstrip_protocol(path), int(size or 0), stamp) if stamp else None


def open_input(location: Location) -> io.BufferedReader:
    """The bytes of a file, seekable and buffered.

    Raises (when opened or later read):
        GristmillError: it cannot be read, or it is a store's and no longer what was listed.
    """
    with _spoken(location):
        raw = location.open("rb", buffering=0) if isinstance(location, Path) else _open_remote(location)
    return io.BufferedReader(_Spoken(raw, location), BUFFER_BYTES)


def size_of(location: Location) -> int:
    return location.stat().st_size if isinstance(location, Path) else location.size


def stamp_of_path(path: Path) -> str:
    """What changes when a local file is written to: size and time of change."""
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


@contextmanager
def unchanged(location: Location, stamp: str) -> Iterator[None]:
    """Raises GristmillError where a local file is not, or does not stay, what it was when it was listed with `stamp`.
    A store's object is held to its own when it is opened."""
    _check(location, stamp)
    yield
    _check(location, stamp)


def _check(location: Location, stamp: str) -> None:
    if isinstance(location, Path):
        with _spoken(location):
            now = stamp_of_path(location)
        if now != stamp:
            raise GristmillError(f"{location}: changed since it was listed; run again once it is complete")


def told(error: BaseException) -> str:
    """One line about what a disk or store raised, less what looks like a credential."""
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        return os.strerror(error.errno)
    line = str(error).strip().partition("\n")[0][:200]
    return _SECRET.sub(r"\1...", f"{type(error).__name__}: {line}")


def _open_remote(file: RemoteFile) -> Any:
    import fsspec

    fs, path = fsspec.url_to_fs(file.url)
    fs.invalidate_cache()
    _, key, _ = file.stamp.split(":", 2)
    if stamp_of(fs.info(path), [key]) != file.stamp:
        raise GristmillError(f"{file}: changed since it was listed; run again once it is complete")
    return fs.open(path, "rb", block_size=BLOCK_BYTES)


class _Spoken(io.RawIOBase):
    def __init__(self, raw: Any, location: Location) -> None:
        self._raw, self._location = raw, location

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _spoken(self._location):
            return self._raw.readinto(buffer)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _spoken(self._location):
            return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._raw.close()
        super().close()


@contextmanager
def _spoken(location: Location) -> Iterator[None]:
    try:
        yield
    except GristmillError:
        raise
    except Exception as error:  # noqa: BLE001 - every store has its own classes of errors
        raise GristmillError(f"{location}: cannot be read ({told(error)})") from None
