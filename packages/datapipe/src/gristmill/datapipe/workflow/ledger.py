"""What is done, by content: one small JSON file per finished piece of work, written after the output it vouches for.

A piece counts as done when its entry names the fingerprint we would compute today and its output is still there.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pydantic

from gristmill.base.errors import DataError, GristmillError
from gristmill.base.files import read_object, sha256_file, write_json


@dataclass(frozen=True)
class Entry:
    fingerprint: str
    sha256: str
    """Of the output: what fingerprints further down are made of."""
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)


def last_change(run: Path) -> float:
    """When a piece of work was last done or forgotten, as time.time(); 0 in a folder without any.

    A rename or a removal touches its folder, so no entry has to be looked at.
    """
    return max((path.stat().st_mtime for path in (run / "ledger").glob("*/")), default=0.0)


_ENTRY = pydantic.TypeAdapter(Entry)
REDO = "delete it, and run the pipeline to have the work done again"


class Ledger:
    """Entries under RUN/ledger/<node>/<piece>.json."""

    def __init__(self, run: Path) -> None:
        self._root = run / "ledger"
        self._lock = threading.Lock()  # nodes run in threads
        self._changed = False
        self._hashes_path = self._root / "hashes.json"
        self._hashes: dict[str, Any] = read_object(self._hashes_path) if self._hashes_path.exists() else {}

    def read(self, node: str, piece: str) -> Entry | None:
        path = self._path(node, piece)
        if not path.exists():
            return None
        value = read_object(path, REDO)
        try:
            entry = _ENTRY.validate_python(value)
        except pydantic.ValidationError:
            entry = None
        if entry is None or len(value) != len(fields(Entry)):  # what is missing was never left out on purpose
            raise DataError(f"{path}: not a ledger entry of this version; {REDO}")
        if node == "documents" and not {"parts", "quarantined"} <= entry.counts.keys():
            raise DataError(f"{path}: does not say which partitions were made; {REDO}")
        return entry

    def write(self, node: str, piece: str, entry: Entry) -> None:
        write_json(self._path(node, piece), asdict(entry))

    def forget(self, node: str, piece: str) -> None:
        """Before a piece is made anew: were it killed between output and entry, an old entry must not vouch for it."""
        self._path(node, piece).unlink(missing_ok=True)

    def pieces(self, node: str) -> list[str]:
        """Of which the ledger knows anything."""
        return sorted(path.name.removesuffix(".json") for path in (self._root / node).glob("[!.]*.json"))

    def write_outputs(self, folders: dict[str, str]) -> None:
        """Which folder each node's entries speak of, for who knows no pipeline; and former.json, the same of nodes that
        earlier runs of this folder had and this one has not."""
        listing, former = self._root / "outputs.json", self._root / "former.json"
        earlier = {**read_listing(former), **read_listing(listing)}
        write_json(former, {name: folder for name, folder in earlier.items() if name not in folders})
        write_json(listing, folders)

    def prune(self, node: str, pieces: set[str]) -> None:
        """Forget pieces that the node no longer has (an input file went away)."""
        folder = self._root / node
        if folder.exists():
            for path in folder.glob("*.json"):
                if path.name.removesuffix(".json") not in pieces:
                    path.unlink()
            for path in folder.glob(".*.tmp-*"):  # half written by a runner that was killed
                path.unlink(missing_ok=True)

    def file_sha256(self, path: Path) -> str:
        """Content hash of an input or model file, read again only when its size or time stamp has changed.

        Raises GristmillError where there is no such file, or it cannot be read."""
        try:
            return self._file_sha256(path)
        except OSError as error:
            raise GristmillError(f"{path}: cannot be read ({error.strerror})") from None

    def _file_sha256(self, path: Path) -> str:
        stat = path.stat()
        key, stamp = os.fspath(path.absolute()), [stat.st_size, stat.st_mtime_ns]
        known = self._hashes.get(key)
        if not isinstance(known, list) or len(known) != 3 or known[:2] != stamp:
            known = [*stamp, sha256_file(path)]
            with self._lock:
                self._hashes[key] = known
                self._changed = True
        return known[2]

    def flush(self) -> None:
        """Keep the content hashes for the next run."""
        with self._lock:
            if self._changed:
                with contextlib.suppress(OSError):  # a full disk: it costs the next run some reading, no more
                    write_json(self._hashes_path, self._hashes)
                    self._changed = False

    def _path(self, node: str, piece: str) -> Path:
        return self._root / node / f"{piece}.json"


def read_listing(path: Path) -> dict[str, str]:
    """RUN/ledger/outputs.json or former.json: the folder of each node's output. Empty where there is no such file.

    Raises:
        DataError: it is damaged.
    """
    if not path.exists():
        return {}
    mend = "delete it, and run the pipeline to have it made again"
    listed = read_object(path, mend, **({"documents": str} if path.name == "outputs.json" else {}))
    if not all(isinstance(folder, str) for folder in listed.values()):
        raise DataError(f"{path}: names what is no folder; {mend}")
    return listed
