"""From what the user typed to files: paths, folders, globs, stores, and hf://datasets/ORG/NAME[@REVISION]/PATTERN."""

from __future__ import annotations

import fnmatch
import glob
import sys
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gristmill.base.errors import GristmillError, UsageError
from gristmill.datapipe.ingest.storage import Location, RemoteFile, find, size_of, stamp_of_path, told

SUFFIXES = (
    ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".ndjson", ".parquet", ".warc", ".warc.gz",
)  # fmt: skip
HUB_PREFIX = "hf://datasets/"


@dataclass(frozen=True)
class InputFile:
    key: str
    """Position among the inputs, as in the names of its partitions."""
    name: str
    """What provenance calls it: the same on every machine."""
    path: Location
    size: int
    stamp: str
    """What changes when the file is written to."""
    commit: str = ""
    """The name again, where it says at which commit of a dataset on the Hub."""

    @property
    def content(self) -> str:
        """What stands for the content without reading it: the commit, or a store's word. Empty for a local file."""
        return self.stamp if isinstance(self.path, RemoteFile) else self.commit


def discover(inputs: tuple[str, ...]) -> list[InputFile]:
    """All input files, in the order of `inputs` and sorted within each.

    Raises:
        UsageError: an input that matches nothing, or whose suffix no reader knows; a dataset that is not on the Hub;
            a URL with a secret in it, or of a scheme whose package is not installed.
        GristmillError: the Hub or a store refuses, or cannot be reached after several attempts.
    """
    found: dict[Location, str] = {}
    for given in inputs:
        matches = _matches(given)
        if not matches:
            raise UsageError(f"--input {given}: no such file, and nothing matches; known kinds: {', '.join(SUFFIXES)}")
        for path, name in matches:
            found.setdefault(path, name)
    times, digits = Counter(found.values()), max(5, len(str(len(found) - 1)))
    files = []
    for index, (path, name) in enumerate(found.items()):
        unique = name if times[name] == 1 else path.as_posix()
        stamp = stamp_of_path(path) if isinstance(path, Path) else path.stamp
        commit = name if name.startswith(HUB_PREFIX) else ""
        files.append(InputFile(f"{index:0{digits}d}", unique, path, size_of(path), stamp, commit))
    return files


def check_inputs(inputs: tuple[str, ...]) -> None:
    """Raises UsageError where a URL holds a password, a query or a user: before anything writes or shows it."""
    for given in inputs:
        if "://" in given and not given.startswith(HUB_PREFIX):
            _place(given)


def known_suffix(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _matches(given: str) -> list[tuple[Location, str]]:
    if given.startswith(HUB_PREFIX):
        return [*_from_hub(given)]
    place = _place(given) if "://" in given else Path(given)
    return [*_from_disk(str(place))] if isinstance(place, Path) else [*_from_store(str(place))]


def _place(given: str) -> object:
    from gristmill.shards.remote import places

    scheme = given.partition("://")[0]
    if scheme in ("http", "https") and urllib.parse.urlparse(given).username:
        raise UsageError(f"{scheme}://...: no user in an address, where logs would show it: use fsspec's config")
    try:
        return places.parse(given)
    except UsageError as error:
        raise UsageError(f"--input {error}") from None


def _from_disk(given: str) -> list[tuple[Path, str]]:
    path = Path(given)
    if path.is_dir():
        everything = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
        files = [file for file in everything if known_suffix(file.name)]
        _tell_left_out(given, [file.name for file in everything if not known_suffix(file.name)])
        return [(file.resolve(), file.relative_to(path).as_posix()) for file in files]
    matches = [path] if path.is_file() else sorted(Path(match) for match in glob.glob(given, recursive=True))
    for match in matches:
        _refuse_unknown(str(match))
    return [(match.resolve(), match.name) for match in matches]


def _from_store(given: str) -> list[tuple[RemoteFile, str]]:
    """Objects below a URL, or those that a pattern in it matches, by one listing; none is opened."""
    from gristmill.shards.remote.object_store import ObjectStore
    from gristmill.shards.remote.places import UrlAddress

    try:
        store = ObjectStore(UrlAddress(given))
    except UsageError as error:
        raise UsageError(f"--input {error}") from None
    pattern = glob.has_magic(store.root)
    with _spoken(given):
        store.fs.invalidate_cache()
        listed = store.fs.glob(store.root, detail=True) if pattern else store.fs.find(store.root, detail=True)
    objects = {path: info for path, info in sorted(listed.items()) if info.get("type") != "directory"}
    if not pattern and store.root not in objects:  # a folder
        below = {path: info for path, info in objects.items() if not path.rsplit("/", 1)[-1].startswith(".")}
        objects = {path: info for path, info in below.items() if known_suffix(path)}
        _tell_left_out(given, [path for path in below if path not in objects])
    found = []
    for path, info in objects.items():
        _refuse_unknown(path)
        with _spoken(given):
            file = find(store.fs, path, info)
        if file is None:
            raise UsageError(
                f"--input {given}: the store tells neither checksum nor time of change of {path}, so a change would "
                "go unseen: copy it to a disk first"
            )
        found.append((file, file.url))
    return found


@contextmanager
def _spoken(given: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"--input {given}: no such file, and nothing matches") from None
    except Exception as error:  # noqa: BLE001 - every store has its own classes of errors
        raise GristmillError(f"--input {given}: cannot be listed ({told(error)})") from None


def _tell_left_out(given: str, names: list[str]) -> None:
    if names:
        print(f"--input {given}: left out {len(names)} files of unknown kind, {names[0]} first", file=sys.stderr)


def _refuse_unknown(name: str) -> None:
    if not known_suffix(name):
        raise UsageError(f"--input {name}: unknown kind; known: {', '.join(SUFFIXES)}")


def _from_hub(given: str) -> list[tuple[Path, str]]:
    """Downloads what matches, at one commit, through the Hub client's own cache (resumable, checked by hash)."""
    from huggingface_hub import HfApi, hf_hub_download

    from gristmill.shards.remote import hub, places

    parts = given.removeprefix(HUB_PREFIX).split("/", 2)
    if len(parts) < 2:
        raise UsageError(f"--input {given}: write hf://datasets/ORG/NAME[@REVISION][/PATTERN]")
    name, _, revision = parts[1].partition("@")
    place = places.HubAddress(f"{parts[0]}/{name}", revision or None)
    pattern = parts[2] if len(parts) == 3 and parts[2] else "**"
    repo = place.repository
    try:
        info = hub.attempt(place, lambda: HfApi().dataset_info(repo, revision=place.revision))
    except UsageError as error:
        raise UsageError(f"--input {error}") from None
    files = [sibling.rfilename for sibling in info.siblings or []]
    wanted = sorted(file for file in files if matches(file, pattern) and known_suffix(file))
    found = []
    for file in wanted:
        path = hub.attempt(place, lambda file=file: hf_hub_download(repo, file, repo_type="dataset", revision=info.sha))
        found.append((Path(path), f"{HUB_PREFIX}{repo}@{info.sha}/{file}"))
    return found


def matches(file: str, pattern: str) -> bool:
    """Shell patterns as on disk: * stays in its folder, ** crosses folders; a bare folder means all below it."""
    folder = pattern.rstrip("/") + "/"
    return file == pattern or file.startswith(folder) or _fits(file.split("/"), pattern.split("/"))


def _fits(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_fits(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _fits(parts[1:], patterns[1:])
