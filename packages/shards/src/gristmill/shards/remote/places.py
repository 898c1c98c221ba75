"""Where a dataset can be: in a folder, on the Hugging Face Hub, or wherever else fsspec reaches (S3, GCS, ...)."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
import urllib.request
from pathlib import Path

from gristmill.base.errors import UsageError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_PREFIX = "hf://datasets/"


@dataclasses.dataclass(frozen=True)
class HubAddress:
    """A dataset repository on the Hub; `revision` None is its newest commit."""

    repository: str
    revision: str | None = None

    @property
    def commit(self) -> str | None:
        """The revision, where it is a full commit: what it names never changes."""
        return self.revision if self.revision and COMMIT.fullmatch(self.revision) else None

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclasses.dataclass(frozen=True)
class UrlAddress:
    """What fsspec reaches: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, ..."""

    url: str

    def __str__(self) -> str:
        return self.url


Place = Path | HubAddress | UrlAddress


def parse(target: Path | str) -> Place:
    """A folder, file://FOLDER, hf://datasets/ORG/NAME[@REVISION], or another URL that fsspec knows.

    Raises:
        UsageError: an unknown scheme, an hf:// address that names no dataset, a file:// of another machine, or a
            password or query in a URL.
    """
    if isinstance(target, Path):
        return target
    if target.startswith("file://"):
        parts = urllib.parse.urlparse(target)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise UsageError(f"{target}: file:// takes a whole path of this machine: file:///FOLDER")
        return Path(urllib.request.url2pathname(parts.path))
    if target.startswith("hf://"):
        return hub_address(target)
    if "://" in target:
        return _url_address(target)
    return Path(target)


def or_the_hub(folder: Path) -> str:
    """What to add where there is no such folder and its name could be meant for the Hub."""
    meant = REPOSITORY.fullmatch(str(folder)) is not None and not folder.exists()
    return f"; if you mean the Hub, write {HUB_PREFIX}{folder}" if meant else ""


def hub_address(target: str) -> HubAddress:
    """hf://datasets/ORG/NAME[@REVISION], or ORG/NAME[@REVISION] where it is known to be meant.

    Raises:
        UsageError: it names no dataset on the Hub.
    """
    name, _, revision = target.removeprefix(HUB_PREFIX).partition("@")
    if not REPOSITORY.fullmatch(name):
        raise UsageError(f"{target}: an address on the Hub reads {HUB_PREFIX}ORG/NAME or {HUB_PREFIX}ORG/NAME@REVISION")
    return HubAddress(name, revision or None)


def _url_address(target: str) -> UrlAddress:
    import fsspec

    scheme = target.partition("://")[0]
    if scheme not in fsspec.available_protocols():
        raise UsageError(
            f"{target}: unknown scheme {scheme!r}; give a folder, file://FOLDER, {HUB_PREFIX}ORG/NAME, "
            "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or another that fsspec knows"
        )
    parts = urllib.parse.urlparse(target)
    if parts.password or parts.query:
        raise UsageError(
            f"{scheme}://...: no password or ?query in an address, where logs would show it: use fsspec's config"
        )
    return UrlAddress(target.rstrip("/"))
