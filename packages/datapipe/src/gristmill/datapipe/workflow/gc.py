"""What of a run folder no run needs, and its removal: half-written files, abandoned work, outputs of former nodes.

Nothing goes but what a runner wrote and can be told by: temporary names in the folders of its nodes, and outputs that
the ledger vouches for, with the listings of what their stages could not handle. Documents, other quarantine and what
the last run names stay, and so does whatever anyone else put there. Links are not followed: what lies behind one is
not the run's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gristmill.base.errors import GristmillError
from gristmill.base.files import sha256_file, sha256_folder
from gristmill.base.terminal import shown
from gristmill.datapipe.workflow.ledger import Ledger, read_listing
from gristmill.datapipe.workflow.lock import RunLock
from gristmill.datapipe.workflow.record import read_record

HALF_WRITTEN = re.compile(r"\.(?P<of>.+)\.(?P<kind>tmp|old|removed)-(?P<process>\d+)(?:-\d+)?")
"""Names that base.files, checkpoints and this file give to what is not in its place yet, or not any more."""
WORK = re.compile(r"(?P<node>.+)-[0-9a-f]{16}")
PART = re.compile(r"part-.+\.parquet")
FINISHED = ("done", "cached")
HALF = "half-written"
NOT_OUTPUTS = ("documents", "quarantine", "ledger", "report")
WRITING_SECONDS = 3600.0
"""A process that lives, and whose temporary file changed so lately, may be writing it: a page is built without lock."""


@dataclass(frozen=True)
class Item:
    path: str
    """Relative to the run folder; half-written files count together under the folder that they are in."""
    bytes: int
    why: str


@dataclass(frozen=True)
class Swept:
    freed: tuple[Item, ...]
    """What is removed, or would be."""
    kept: tuple[Item, ...]
    """What looks as if it could go, and why it does not."""


@dataclass(frozen=True)
class _Run:
    root: Path
    """Resolved: no link on the way to it."""
    kinds: dict[str, str]
    status: dict[str, str]
    folders: dict[str, str]
    former: dict[str, str]

    def inside(self, relative: str) -> Path | None:
        """The folder of that name within the run; None where there is none, or a link or `..` leads elsewhere."""
        path = self.root / relative
        inside = path != self.root and path.is_relative_to(self.root) and path.resolve() == path
        return path if inside and path.is_dir() else None


@dataclass(frozen=True)
class _Found:
    path: Path
    why: str
    keep: bool = False


def gc(run: Path, dry_run: bool = False, shuffles: bool = False, older_than: float = 0.0) -> Swept:
    """Remove, or with `dry_run` only find, what no run needs and nobody changed in the last `older_than` seconds.

    `shuffles`: also the entries on their way to an annotation (RUN/shuffles), of the last run's nodes.

    Raises:
        GristmillError: it is no run folder, a run is at work there, or something cannot be removed.
    """
    root = run.resolve()
    if not (root / "run.json").is_file() or not (root / "ledger" / "outputs.json").is_file():
        raise GristmillError(f"{run}: not a run folder (no run.json and ledger/outputs.json); nothing was removed")
    try:
        with RunLock(root):
            state = _read(run, root)
            finds = {found.path: found for found in _finds(state, shuffles)}
            doomed = {path for path, found in finds.items() if not found.keep}
            freed, kept = [], []
            for path, found in finds.items():
                if doomed.intersection(path.parents):
                    continue  # it goes with the folder that it is in
                size, changed = _measure(path)
                if found.keep:
                    kept.append(Item(path.relative_to(root).as_posix(), size, found.why))
                elif not older_than or changed < time.time() - older_than:
                    place = path.parent if found.why == HALF else path
                    freed.append(Item(place.relative_to(root).as_posix(), size, found.why))
                    if not dry_run:
                        _remove(root, path)
    except OSError as error:
        raise GristmillError(
            f"{error.filename or run}: {error.strerror}; mend that and run gc again, it goes on from here"
        ) from None
    return Swept(_by_folder(freed), tuple(kept))


def table(swept: Swept, dry_run: bool) -> list[str]:
    """The answer as text."""
    width = max((len(f"{item.bytes:,}") for item in (*swept.freed, *swept.kept)), default=0)
    lines = [
        f"{word:<5}  {item.bytes:>{width},} bytes  {shown(item.path)}  ({shown(item.why)})"
        for word, items in (("free", swept.freed), ("keep", swept.kept))
        for item in items
    ]
    total = f"{sum(item.bytes for item in swept.freed):,} bytes"
    return [*lines, f"would free {total}; nothing was removed" if dry_run else f"freed {total}"]


# What may go ----------------------------------------------------------------------------------------------------------


def _read(run: Path, root: Path) -> _Run:
    nodes = read_record(root)["nodes"]
    kinds, status = ({node["name"]: node[key] for node in nodes} for key in ("kind", "status"))
    listed = (read_listing(root / "ledger" / name) for name in ("outputs.json", "former.json"))
    return _Run(root, kinds, status, *listed)


def _finds(run: _Run, shuffles: bool) -> Iterator[_Found]:
    yield from _half_written(run)
    yield from _work(run)
    yield from _former(run)
    if shuffles:
        yield from _intermediate(run)


def _half_written(run: _Run) -> Iterator[_Found]:
    """Everywhere in what runners write, and beside it, where a folder waits that is being exchanged."""
    owned = [folder for name in (*NOT_OUTPUTS, *run.folders.values()) if (folder := run.inside(name))]
    beside = {parent for folder in owned for parent in folder.parents if parent.is_relative_to(run.root)}
    names = [path for folder in beside for path in folder.iterdir()]
    names += [path for folder in _folders(run.root) for path in _folders(folder) if ".removed-" in path.name]
    for folder in owned:
        for where, folders, files in os.walk(folder):
            names += [Path(where, name) for name in (*folders, *files)]
            folders[:] = [name for name in folders if not HALF_WRITTEN.fullmatch(name)]
    for path in sorted(set(names)):
        match = HALF_WRITTEN.fullmatch(path.name)
        if match is None or path.is_symlink() or match["of"] == ".lease" or _writing(int(match["process"]), path):
            continue
        if match["kind"] == "old" and not path.with_name(match["of"]).exists():
            yield _Found(path, f"the only copy of {match['of']}; run the pipeline to have it made again", keep=True)
        else:
            yield _Found(path, HALF)


def _work(run: _Run) -> Iterator[_Found]:
    """What a step or shuffle that was stopped goes on from stays; what is of no node, or of one that is done, goes.
    Of other names, as documents that are being renamed, the runner alone knows what they are for."""
    work, scattered = run.inside(".work"), run.inside(".work/scattered")
    of = [(path, path.name) for path in (_folders(scattered) if scattered else [])]
    for path in _folders(work) if work else []:
        if match := WORK.fullmatch(path.name):
            of.append((path, match["node"]))
        elif HALF_WRITTEN.fullmatch(path.name):
            yield _Found(path, HALF)
    for path, node in of:
        if run.status.get(node, FINISHED[0]) not in FINISHED:
            yield _Found(path, f"{node} goes on from it", keep=True)
        else:
            yield _Found(path, f"{node} is done" if node in run.status else f"no node {node} any more")


def _former(run: _Run) -> Iterator[_Found]:
    """Outputs and ledger entries of nodes that earlier runs had and the last had not, where the ledger vouches for all
    that is in the folder."""
    outputs = [run.root / folder for folder in run.folders.values()]
    ledger = run.inside("ledger")
    for name, relative in run.former.items():
        folder = run.inside(relative)
        if folder and any(folder.is_relative_to(output) or output.is_relative_to(folder) for output in outputs):
            continue  # another node writes there now
        entries = {f"{name}.scattered"}
        if folder and not _vouched(run, name, folder):
            yield _Found(folder, f"no node {name} any more, but it is not as that node left it", keep=True)
        else:
            entries.add(name)
            listed = run.inside(f"quarantine/{name}")
            if listed and not all(re.fullmatch(r"part-.+\.jsonl", path.name) for path in listed.iterdir()):
                listed = None
            for gone in (folder, listed):
                if gone:
                    yield _Found(gone, f"no node {name} any more")
        for path in _folders(ledger) if ledger else []:
            if path.name in entries:
                yield _Found(path, f"no node {name} any more")


def _vouched(run: _Run, node: str, folder: Path) -> bool:
    """Whether the folder holds what the node's ledger entries say, byte for byte, and nothing else."""
    ledger = Ledger(run.root)
    below = [Path(where, name) for where, folders, files in os.walk(folder) for name in (*folders, *files)]
    for path in below:
        half = any(HALF_WRITTEN.fullmatch(part) for part in path.relative_to(folder).parts)
        if not half and (path.name.startswith(".") or path.is_symlink() or (path.is_dir() and not any(path.iterdir()))):
            return False  # a hash of the folder would not see it
    if whole := ledger.read(node, "whole"):
        return sha256_folder(folder) == whole.sha256
    for path in folder.iterdir():
        if HALF_WRITTEN.fullmatch(path.name):
            continue
        entry = ledger.read(node, path.name) if PART.fullmatch(path.name) and path.is_file() else None
        if entry is None or entry.bytes != path.stat().st_size or entry.sha256 != sha256_file(path):
            return False
    return True


def _intermediate(run: _Run) -> Iterator[_Found]:
    """The outputs of shuffles alone: a step that lies among them (centroids) would come out a little otherwise on
    another machine, and all that depends on it would be stale. Their ledger entries stay: they tell the runner what
    was made, so that it is made again only where something needs it."""
    for name, relative in run.folders.items():
        folder = run.inside(relative)
        if folder and run.kinds.get(name) == "shuffle" and folder.parent == run.root / "shuffles":
            yield _Found(folder, "made again when something needs it")


# Small things ---------------------------------------------------------------------------------------------------------


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))


def _writing(process: int, path: Path) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it lives, and is somebody else's
    return _measure(path)[1] > time.time() - WRITING_SECONDS


def _measure(path: Path) -> tuple[int, float]:
    """(bytes, when anything in it was last changed) of a file, or of a folder with all that it holds."""
    size, changed = 0, 0.0
    below = (Path(where, name) for where, folders, files in os.walk(path) for name in (*folders, *files))
    for found in itertools.chain([path], below):
        with contextlib.suppress(FileNotFoundError):  # of a process that lives: it has its own name now
            status = found.lstat()
            size += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            changed = max(changed, status.st_mtime)
    return size, changed


def _remove(root: Path, path: Path) -> None:
    """A folder is renamed first: killed in between, no reader takes what is left of it for an output."""
    if path.parent.resolve() != path.parent or not path.is_relative_to(root) or path.is_symlink():
        raise GristmillError(f"{path}: leads out of the run folder now; nothing more was removed")
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = path
    if not HALF_WRITTEN.fullmatch(path.name):
        aside = path.with_name(f".{path.name}.removed-{os.getpid()}")
        path.rename(aside)
    shutil.rmtree(aside)


def _by_folder(items: list[Item]) -> tuple[Item, ...]:
    together: dict[tuple[str, str], tuple[int, int]] = {}
    for item in items:
        count, size = together.get((item.path, item.why), (0, 0))
        together[item.path, item.why] = count + 1, size + item.bytes
    return tuple(
        Item(path, size, f"{count} {why}" if why == HALF else why) for (path, why), (count, size) in together.items()
    )
