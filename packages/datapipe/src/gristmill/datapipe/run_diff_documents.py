"""The documents of two runs for run_diff: what became of each in a run, and which are the same one in both.

Partitions of equal content hold the same documents in the same rows. Documents of all others meet by a 64-bit hash of
what identifies them, in buckets on disk: memory holds one partition or one bucket, whatever the runs hold.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.dedup.urls import keys as hashes_of
from gristmill.datapipe.select import written_policy
from gristmill.datapipe.workflow import buckets
from gristmill.datapipe.workflow.buckets import Ranges
from gristmill.datapipe.workflow.ledger import Entry, Ledger
from gristmill.datapipe.workflow.quarantine import marks_of
from gristmill.datapipe.workflow.record import read_record
from gristmill.datapipe.workflow.stage import open_run

By = Literal["id", "row", "text"]
IDENTITY: dict[By, tuple[str, str]] = {"id": ("id", "source"), "row": ("file", "row"), "text": ("text", "source")}
"""What makes two documents the same one, from what is best to what is always there."""
KEPT, ABSENT, ASIDE = 0, 1, 2
"""Fates that are no rules; a rule's comes after them. Set aside is what a stage could not handle (QUARANTINED)."""
SPOOLED = 1 << 20
"""Documents that are brought together before they are written to buckets."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
Rows = dict[str, NDArray[Any]]
"""Columns of some documents: place (partition << 32 | row), fate, source, tokens; key and text, both hashes, of those
that are not compared in place."""
Add = Callable[[Rows, Rows, NDArray[np.int64], NDArray[np.int64]], None]
"""Takes documents of A and of B, and which rows of them are the same one; -1 where the other run has it not."""


class Names:
    """Names as numbers, the same for both runs."""

    def __init__(self, *known: str | None) -> None:
        self._codes = {name: code for code, name in enumerate(known)}

    @property
    def names(self) -> list[Any]:
        return list(self._codes)

    def of(self, column: pa.ChunkedArray) -> NDArray[np.int64]:
        coded = column.combine_chunks().dictionary_encode()
        codes = [self._codes.setdefault(name, len(self._codes)) for name in coded.dictionary.to_pylist()]
        return np.array(codes, np.int64)[coded.indices.to_numpy()]


class Side:
    """One of the two runs, partition by partition."""

    def __init__(self, run: Path, fates: Names, sources: Names) -> None:
        self.folder, self.inputs = run, open_run(run)
        self._fates, self._sources = fates, sources
        self.parts = self.inputs.parts.get("documents", ())
        path = run / "selection" / "policy.json"
        self._counts_tokens = bool(self.inputs.parts.get("tokens"))
        nodes = ("selection", "tokens") if self._counts_tokens else ("selection",)
        if not path.exists() or any(self.inputs.parts.get(name) != self.parts for name in nodes):
            raise GristmillError(f"{run}: no selection of all its documents yet; run the pipeline to its end")
        self.policy = written_policy(run)
        self.rules = {rule["name"]: rule for rule in self.policy["rules"]}
        self.record = read_record(run)
        self._ledger = Ledger(run)
        read = self.entries("documents").values()
        self.sha256 = {part["name"]: part["sha256"] for entry in read for part in entry.counts["parts"]}
        self.files: set[str] = set()
        """Names of input files, as far as rows() has seen any."""

    def notes(self, name: str) -> Iterator[str]:
        if self.record["status"] != "done":
            yield f"{name}: its last run is {self.record['status']}: what stands there is compared"
        if not self._counts_tokens:
            yield f"{name}: it counted no tokens"

    def entries(self, node: str) -> dict[str, Entry]:
        """What the ledger says of each piece of a node's output."""
        pieces = (path.name.removesuffix(".json") for path in sorted((self.folder / "ledger" / node).glob("*.json")))
        return {piece: entry for piece in pieces if (entry := self._ledger.read(node, piece))}

    def rows(self, at: int, by: By | None = None) -> Rows:
        part = self.parts[at]
        columns = {"source", "text", *IDENTITY[by]} if by else {"source"}
        documents = self.inputs.part("documents", part, sorted(columns))
        selection = self.inputs.part("selection", part, ("keep", "reason"))
        rows, tokens = len(documents), np.zeros(len(documents), np.int64)
        if self._counts_tokens:
            tokens = self.inputs.part("tokens", part, ("count",))["count"].to_numpy().astype(np.int64)
        if len(selection) != rows or len(tokens) != rows:
            raise DataError(f"{self.folder}: {part}: not as many rows in every folder; run the pipeline again")
        fate = self._fates.of(pc.fill_null(selection["reason"], "(none)"))
        found = {
            "place": (at << 32) + np.arange(rows),
            "fate": np.where(selection["keep"].to_numpy(), KEPT, fate),
            "source": self._sources.of(documents["source"]),
            "tokens": tokens,
        }
        if by is None:
            return found
        text = _hashed(documents["text"])
        if by == "row":
            self.files.update(pc.unique(documents["file"]).to_pylist())
            key = _hashed(documents["file"]) + documents["row"].to_numpy().astype(np.uint64) * _ODD
        else:
            key = (text if by == "text" else _hashed(documents["id"])) + _hashed(documents["source"]) * _ODD
        return {**found, "key": mixed(key), "text": text}

    def document(self, place: int) -> list[str]:
        """Id and source."""
        found = self.inputs.part("documents", self.parts[place >> 32], ("id", "source"))
        return [found[name][place & 0xFFFFFFFF].as_py() for name in ("id", "source")]

    def measured(self, rule: Mapping[str, Any], place: int) -> Any:
        """What the rule looks at: a number or word, or how many are in the document's cluster."""
        annotation, _, name = rule["column"].partition(".")
        part, name = self.parts[place >> 32], "size" if rule["keep"] else name
        if part not in self.inputs.parts.get(annotation, ()):
            return "not measured"
        table = self.inputs.part(annotation, part, (name,))
        value = table[name][place & 0xFFFFFFFF].as_py() if name in table.column_names else "not measured"
        return value if not isinstance(value, float) or math.isfinite(value) else str(value)

    def why_aside(self, place: int) -> str | None:
        """Which stage could not handle the document, and its error; None where none had to."""
        return marks_of(self.inputs.folders["selection"] / self.parts[place >> 32]).get(place & 0xFFFFFFFF)


def _hashed(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    first, second = hashes_of(column).T
    return first ^ second * _ODD


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of MurmurHash3, as text.hashing.mix: buckets are told apart by the upper bits."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ values >> np.uint64(33)) * np.uint64(factor)
    return values ^ values >> np.uint64(33)


# Which documents are the same -----------------------------------------------------------------------------------------


def same_partitions(a: Side, b: Side) -> list[tuple[int, int]]:
    """Partitions (of A, of B) that hold the same documents in the same rows: the ledgers say so."""
    there: dict[str | None, list[int]] = {}
    for at in reversed(range(len(b.parts))):
        there.setdefault(b.sha256.get(b.parts[at]), []).append(at)
    there.pop(None, None)
    return [(at, found.pop()) for at, part in enumerate(a.parts) if (found := there.get(a.sha256.get(part)))]


def meet(
    a: Side, rest_a: Sequence[int], b: Side, rest_b: Sequence[int], by: By | None, add: Add
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Match the documents of all other partitions: (what identified them, what did not)."""
    refused: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gristmill-") as scratch:
        for way in (by,) if by else IDENTITY:
            spooled_a = _Spool(a, rest_a, way, Path(scratch) / way / "a")
            spooled_b = _Spool(b, rest_b, way, Path(scratch) / way / "b")
            together = Ranges.of_hashes().joined(spooled_a.size + spooled_b.size)
            wrong = _useless(way, spooled_a, spooled_b, together) if rest_a and rest_b else ""
            if wrong:
                refused.append(f"{' and '.join(IDENTITY[way])}: {wrong}")
                continue
            for bucket in together:
                rows_a, rows_b = spooled_a.rows(bucket), spooled_b.rows(bucket)
                add(rows_a, rows_b, *_joined(rows_a["key"], rows_b["key"]))
            return (IDENTITY[way] if rest_a and rest_b else ()), tuple(refused)
    raise UsageError(f"--by {by}: {refused[0]}; leave --by out, or take --by text")


class _Spool:
    """The rows of some partitions in files, by key; one file for many of them."""

    def __init__(self, side: Side, parts: Sequence[int], by: By, folder: Path) -> None:
        self.side, self.size = side, 0
        self._paths: list[Path] = []
        ranges, waiting, rows = Ranges.of_hashes(), [], 0
        for at in parts:
            waiting.append(pa.table(side.rows(at, by)))
            rows += len(waiting[-1])
            if rows >= SPOOLED or at == parts[-1]:
                table = pa.concat_tables(waiting)
                self._paths.append(folder / str(len(self._paths)))
                try:
                    buckets.write(self._paths[-1], table, ranges.of(table["key"]), ranges.count)
                except OSError as error:
                    raise GristmillError(f"{folder}: {error.strerror}; give TMPDIR a disk with more room") from None
                self.size += table.nbytes
                waiting, rows = [], 0

    def rows(self, bucket: range) -> Rows:
        """In the order of the run."""
        if not self._paths:
            return {name: np.zeros(0, np.int64) for name in ("place", "fate", "source", "tokens", "key", "text")}
        table = buckets.read(self._paths, bucket)
        return {name: table[name].to_numpy() for name in table.column_names}


def _useless(by: By, a: _Spool, b: _Spool, together: Sequence[range]) -> str:
    """Why documents cannot be told apart like this; empty where they can. Of equal texts the n-th is the n-th."""
    if by == "text":
        return ""
    for spool in (a, b):
        keys = (spool.rows(bucket)["key"] for bucket in together)
        if repeated := sum(len(key) - len(np.unique(key)) for key in keys):
            return f"{repeated:,} documents of {spool.side.folder} share theirs with another"
    return "" if by != "row" or a.side.files & b.side.files else "no input file has the same name in both runs"


def _joined(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows (of A, of B) of the same key, -1 where the other run has none; the n-th of a key goes with the n-th."""
    a, b = _numbered(a), _numbered(b)
    order = np.argsort(b)
    place = np.minimum(np.searchsorted(b[order], a), max(len(b) - 1, 0))
    found = b[order][place] == a if len(b) else np.zeros(len(a), bool)
    rows_b = np.full(len(a), -1, np.int64)
    rows_b[found] = order[place[found]]
    only_b = np.setdiff1d(np.arange(len(b)), rows_b)
    return np.concatenate([np.arange(len(a)), np.full(len(only_b), -1)]), np.concatenate([rows_b, only_b])


def _numbered(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    order = np.argsort(key, kind="stable")
    out = key.astype(np.uint64)
    out[order] += nth(key[order]).astype(np.uint64) * _ODD
    return out


def nth(ordered: NDArray[Any]) -> NDArray[np.int64]:
    """How many equal values stand before each."""
    at = np.arange(len(ordered))
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return at - np.maximum.accumulate(np.where(first, at, 0))
