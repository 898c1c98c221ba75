"""What a piece of work is keyed by: the content of everything that it depends on. Runner and plan agree on it here."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gristmill.base.files import fingerprint
from gristmill.datapipe.workflow.buckets import Ranges
from gristmill.datapipe.workflow.ledger import Ledger
from gristmill.datapipe.workflow.stage import Node, Shuffle, Stage, Step


@dataclass(frozen=True)
class Output:
    """A finished node: where it lies and what it holds, by content."""

    folder: Path
    sha256: str
    parts: dict[str, str]
    """File name of each partition, in row order, to its content hash. Empty where the output has no partitions."""
    rows: dict[str, int]
    """File name of each partition to its rows."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """File name of each partition that has any, to how many of its rows the stage could not handle."""


Outputs = Mapping[str, Output]
WHOLE = "whole"
"""The one piece of a step."""


def identity(node: Node, ledger: Ledger) -> dict[str, Any]:
    """What of the node itself its outputs depend on."""
    return {
        "name": node.name,
        "version": node.version,
        "config": node.config,
        "files": [ledger.file_sha256(path) for path in node.files()],
        "libraries": {library: importlib.metadata.version(library) for library in node.libraries},
    }


def stage_keys(stage: Stage, me: Mapping[str, Any], outputs: Outputs) -> dict[str, str]:
    """By partition."""
    needs = {name: outputs[name].sha256 for name in stage.needs}
    return {
        part: fingerprint([me, sha256, {name: outputs[name].parts[part] for name in stage.requires}, needs])
        for part, sha256 in outputs[stage.over].parts.items()
    }


def step_keys(step: Step, me: Mapping[str, Any], outputs: Outputs) -> dict[str, str]:
    """Of every file of what it requires, and of their partitions' names."""
    return {WHOLE: fingerprint([me, {name: outputs[name].sha256 for name in step.requires}])}


@dataclass(frozen=True)
class ShuffleKeys:
    ranges: Ranges
    starts: dict[str, int]
    """The row of the run at which each partition of what the shuffle is over begins."""
    scatter: dict[str, str]
    """By partition of what it is over."""
    beside: list[list[str]]
    """By range: the content of what is given to gather() with it."""
    onto: tuple[str, ...]
    """The partitions that the ranges are; empty for ranges of hashes."""
    aligned: bool

    def gather(self, size: int) -> tuple[dict[str, range], dict[str, str]]:
        """(ranges, key) by piece of the output, once `size` bytes of entries are scattered."""
        if self.aligned:
            pieces = {part: range(index, index + 1) for index, part in enumerate(self.onto)}
        else:
            pieces = {f"part-{index:05d}.parquet": own for index, own in enumerate(self.ranges.joined(size))}
        everything = fingerprint(self.scatter)
        keys = {
            piece: fingerprint([everything, piece, [own.start, own.stop], self.beside[own.start : own.stop]])
            for piece, own in pieces.items()
        }
        return pieces, keys


def shuffle_keys(shuffle: Shuffle, me: Mapping[str, Any], outputs: Outputs) -> ShuffleKeys:
    over, onto = outputs[shuffle.over], outputs[shuffle.onto] if shuffle.onto else None
    ranges = Ranges.of_partitions(onto.rows) if onto else Ranges.of_hashes()
    starts = dict(zip(over.parts, itertools.accumulate([0, *over.rows.values()])))
    common = fingerprint([me, {name: outputs[name].sha256 for name in shuffle.needs}, ranges.identity()])
    scatter = {}
    for part, sha256 in over.parts.items():
        aligned = {name: outputs[name].parts[part] for name in shuffle.requires}
        scatter[part] = fingerprint([common, sha256, starts[part], aligned])
    parts = tuple(onto.parts) if onto else ()
    beside = [[outputs[name].parts[part] for name in shuffle.beside] for part in parts]
    return ShuffleKeys(ranges, starts, scatter, beside, parts, shuffle.aligned)


def pending(ledger: Ledger, name: str, keys: Mapping[str, str], folder: Path, may_be_gone: bool = False) -> list[str]:
    """The pieces whose entry names another fingerprint, or whose output is not there as it was.

    `may_be_gone`: an output that is not there at all is no reason to make it again.
    """

    def is_done(piece: str, key: str) -> bool:
        entry, output = ledger.read(name, piece), folder if piece == WHOLE else folder / piece
        if entry is None or entry.fingerprint != key:
            return False
        if not output.exists():
            return may_be_gone
        return output.is_dir() or output.stat().st_size == entry.bytes

    return [piece for piece, key in keys.items() if not is_done(piece, key)]


def known_size(ledger: Ledger, name: str, keys: Mapping[str, str]) -> int | None:
    """Bytes of all pieces, whether or not they are still there; None where one was never made."""
    entries = [ledger.read(name, piece) for piece in keys]
    made = [entry.bytes for entry, key in zip(entries, keys.values()) if entry is not None and entry.fingerprint == key]
    return sum(made) if len(made) == len(keys) else None


def output_of(ledger: Ledger, node: Node, keys: Mapping[str, str], folder: Path) -> Output:
    """What a partitioned node has made, once every piece is done."""
    entries = {piece: ledger.read(node.name, piece) for piece in keys}
    parts = {piece: entry.sha256 for piece, entry in entries.items() if entry is not None}
    rows = {piece: entry.rows for piece, entry in entries.items() if entry is not None}
    bad = {
        piece: entry.counts["quarantined"]
        for piece, entry in entries.items()
        if entry and entry.counts.get("quarantined")
    }
    return output_by(folder, parts, rows, bad)


def output_by(
    folder: Path, parts: dict[str, str], rows: dict[str, int], quarantined: dict[str, int] | None = None
) -> Output:
    return Output(folder, fingerprint(parts), parts, rows, quarantined or {})


def step_output(ledger: Ledger, step: Step, folder: Path) -> Output:
    """What a step that is done has made."""
    entry = ledger.read(step.name, WHOLE)
    assert entry is not None, "the ledger entry of a step that is done"
    parts = {path.name: ledger.file_sha256(path) for path in sorted(folder.glob("part-*.parquet"))}
    return Output(folder, entry.sha256, parts, {part: pq.read_metadata(folder / part).num_rows for part in parts})
