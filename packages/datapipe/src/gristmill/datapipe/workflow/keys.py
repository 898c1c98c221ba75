"""What a piece of work is keyed by: the content of everything that it depends on. Runner and plan agree on it here."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.base.files import fingerprint
from gristmill.datapipe.workflow.buckets import Into
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
    into: Into
    starts: dict[str, int]
    """The row of the run at which each partition of what the shuffle is over begins."""
    scatter: dict[str, str]
    """By partition."""
    gather: dict[str, str]
    """By bucket."""


def shuffle_keys(shuffle: Shuffle, me: Mapping[str, Any], outputs: Outputs) -> ShuffleKeys:
    over = outputs[shuffle.over]
    entries = sum(over.rows.values()) * shuffle.entries_per_row
    into = Into.partitions(outputs[shuffle.onto].rows) if shuffle.onto else Into.hashes(entries)
    starts = dict(zip(over.parts, itertools.accumulate([0, *over.rows.values()])))
    common = fingerprint([me, {name: outputs[name].sha256 for name in shuffle.needs}, into.identity()])

    def aligned(part: str, names: Iterable[str]) -> dict[str, str]:
        return {name: outputs[name].parts[part] for name in names}

    scatter = {
        part: fingerprint([common, sha256, starts[part], aligned(part, shuffle.requires)])
        for part, sha256 in over.parts.items()
    }
    everything = fingerprint(scatter)
    gather = {part: fingerprint([everything, part, aligned(part, shuffle.beside)]) for part in into.names}
    return ShuffleKeys(into, starts, scatter, gather)


def pending(ledger: Ledger, name: str, keys: Mapping[str, str], folder: Path) -> list[str]:
    """The pieces whose entry names another fingerprint, or whose output is not there as it was."""
    return [piece for piece, key in keys.items() if not _is_done(ledger, name, piece, key, folder)]


def _is_done(ledger: Ledger, name: str, piece: str, key: str, folder: Path) -> bool:
    entry, output = ledger.read(name, piece), folder if piece == WHOLE else folder / piece
    if entry is None or entry.fingerprint != key or not output.exists():
        return False
    return output.is_dir() or output.stat().st_size == entry.bytes


def output_of(ledger: Ledger, node: Node, keys: Mapping[str, str], folder: Path) -> Output:
    """What a partitioned node has made, once every piece is done."""
    entries = {piece: ledger.read(node.name, piece) for piece in keys}
    parts = {piece: entry.sha256 for piece, entry in entries.items() if entry is not None}
    rows = {piece: entry.rows for piece, entry in entries.items() if entry is not None}
    return Output(folder, fingerprint(parts), parts, rows)
