"""From what the user typed to files: paths, folders, globs, and hf://datasets/ORG/NAME[@REVISION]/PATTERN."""

from __future__ import annotations

import fnmatch
import glob
import sys
from dataclasses import dataclass
from pathlib import Path

from gristmill.base.errors import UsageError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".ndjson", ".parquet")
HUB_PREFIX = "hf://datasets/"


@dataclass(frozen=True)
class InputFile:
    key: str
    """Position among the inputs, as in the names of its partitions."""
    name: str
    """What provenance calls it: the same on every machine."""
    path: Path
    fingerprint: str = ""


def discover(inputs: tuple[str, ...]) -> list[InputFile]:
    """All input files, in the order of `inputs` and sorted within each.

    Raises:
        UsageError: an input that matches nothing, or whose suffix no reader knows; a dataset that is not on the Hub.
        GristmillError: the Hub refuses, or cannot be reached after several attempts.
    """
    found: dict[Path, str] = {}
    for given in inputs:
        matches = _from_hub(given) if given.startswith(HUB_PREFIX) else _from_disk(given)
        if not matches:
            raise UsageError(f"--input {given}: no such file, and nothing matches; known kinds: {', '.join(SUFFIXES)}")
        for path, name in matches:
            found.setdefault(path, name)
    names = list(found.values())
    files = []
    for index, (path, name) in enumerate(found.items()):
        files.append(InputFile(f"{index:05d}", name if names.count(name) == 1 else path.as_posix(), path))
    return files


def known_suffix(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _from_disk(given: str) -> list[tuple[Path, str]]:
    path = Path(given)
    if path.is_dir():
        everything = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
        files = [file for file in everything if known_suffix(file.name)]
        if left := [file.name for file in everything if not known_suffix(file.name)]:
            print(f"--input {given}: left out {len(left)} files of unknown kind, {left[0]} first", file=sys.stderr)
        return [(file.resolve(), file.relative_to(path).as_posix()) for file in files]
    matches = [path] if path.is_file() else sorted(Path(match) for match in glob.glob(given, recursive=True))
    for match in matches:
        if not known_suffix(match.name):
            raise UsageError(f"--input {match}: unknown kind; known: {', '.join(SUFFIXES)}")
    return [(match.resolve(), match.name) for match in matches]


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
