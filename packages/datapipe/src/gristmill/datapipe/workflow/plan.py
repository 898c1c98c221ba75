"""What a run would do and why, before it does anything: by the same keys that the runner goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gristmill.base.progress import duration
from gristmill.datapipe.ingest.ingest import Ingest
from gristmill.datapipe.ingest.reuse import is_read
from gristmill.datapipe.ingest.splitting import Seen
from gristmill.datapipe.workflow import keys
from gristmill.datapipe.workflow.keys import Output
from gristmill.datapipe.workflow.ledger import Entry, Ledger
from gristmill.datapipe.workflow.record import kind_of, plain_identity, read_record
from gristmill.datapipe.workflow.stage import Node, Shuffle, Stage, Step

REASONS_SHOWN = 4


@dataclass(frozen=True)
class Planned:
    name: str
    kind: str
    state: Literal["cached", "runs", "follows"]
    """follows: it depends on one that runs, and is done again where that one comes out otherwise."""
    pieces: int
    left: int
    """Pieces of work: partitions, buckets or the whole; 0 of 0 where they cannot be counted yet."""
    documents: int | None
    """In the pieces that are left, where it is known."""
    seconds: float | None
    """Of one worker, as long as the same work took before; None where it was never done."""
    why: tuple[str, ...]


def plan(folder: Path, ingest: Ingest, nodes: Sequence[Node], again: frozenset[str] = frozenset()) -> list[Planned]:
    """Every node in its order. Reads inputs' sizes and hashes that are known; counts no lines, starts no worker.

    Args:
        again: nodes to be done again whatever is there.

    Raises:
        GristmillError: an input or a model file is not there.
    """
    ledger = Ledger(folder)
    there = (folder / "run.json").exists()
    record = {node["name"]: node for node in read_record(folder)["nodes"]} if there else {}
    outputs: dict[str, Output] = {}
    planned = [_documents(folder, ledger, ingest, outputs)]
    for node in nodes:
        found = _node(folder, ledger, node, outputs, record.get(node.name, {}), node.name in again)
        planned.append(found)
    return planned


def table(planned: Sequence[Planned], workers: int) -> list[str]:
    """The plan as text: a line for each node, and what it may cost."""
    lines = []
    for each in planned:
        pieces = f"{each.left:,}/{each.pieces:,}" if each.left else f"{each.pieces:,}" if each.pieces else ""
        cost = f"about {duration(each.seconds)}" if each.seconds and each.state != "cached" else ""
        documents = f"{each.documents:,} documents" if each.documents and each.state != "cached" else ""
        told = "; ".join(filter(None, [*each.why[:REASONS_SHOWN], documents, cost]))
        lines.append(f"{each.name:<20} {each.state:<8} {pieces:>11}  {told}".rstrip())
    runs = [each for each in planned if each.state != "cached"]
    known = [each.seconds for each in runs if each.seconds is not None]
    if not runs:
        return [*lines, "nothing to do"]
    more = f", and {len(runs) - len(known)} that were never timed" if len(known) < len(runs) else ""
    total = f"about {duration(sum(known) / max(workers, 1))} with {max(workers, 1)} workers" if known else "no estimate"
    return [*lines, f"{len(runs)} of {len(planned)} nodes to run: {total}{more}"]


def _documents(folder: Path, ledger: Ledger, ingest: Ingest, outputs: dict[str, Output]) -> Planned:
    files = ingest.discover(folder)
    seen = Seen(folder / "ledger" / "inputs.json")
    if missing := seen.missing(ingest.ranges(files)):
        new = len({part.file.name for batch in missing for part in batch})
        why = f"of {len(files):,} input files {new:,} are new or changed"
        return Planned(ingest.name, "ingest", "runs", 0, 0, None, None, (why,))
    pieces = ingest.pieces(files, seen)
    left = [piece for piece in pieces if not is_read(folder, ledger, piece)]
    entries = [entry for piece in pieces if (entry := ledger.read(ingest.name, piece.key)) is not None]
    if left:
        why = ("never run",) if len(left) == len(pieces) else (f"{len(left):,} inputs are new, or not as they were",)
        return Planned(ingest.name, "ingest", "runs", len(pieces), len(left), None, _cost(entries, len(left)), why)
    parts = {part["name"]: part for entry in entries for part in entry.counts["parts"]}
    outputs[ingest.name] = keys.output_by(
        folder / "documents",
        {name: part["sha256"] for name, part in parts.items()},
        {name: part["rows"] for name, part in parts.items()},
    )
    documents = sum(part["rows"] for part in parts.values())
    return Planned(ingest.name, "ingest", "cached", len(pieces), 0, documents, None, ())


def _node(
    folder: Path, ledger: Ledger, node: Node, outputs: dict[str, Output], record: Mapping[str, Any], again: bool
) -> Planned:
    place, kind = folder / node.folder, kind_of(node)
    known, vouching = _entries(ledger, node.name), node.name
    if after := [name for name in node.dependencies if name not in outputs]:
        why = (f"after {', '.join(after[:3])}{' ...' if len(after) > 3 else ''}",)
        return Planned(node.name, kind, "follows", 0, 0, None, _cost(known, len(known)), why)
    me = keys.identity(node, ledger)
    if isinstance(node, Stage):
        wanted, rows = keys.stage_keys(node, me, outputs), outputs[node.over].rows
        left = list(wanted) if again else keys.pending(ledger, node.name, wanted, place)
    elif isinstance(node, Shuffle):
        shuffle, rows = keys.shuffle_keys(node, me, outputs), {}
        size = keys.known_size(ledger, f"{node.name}.scattered", shuffle.scatter)
        if size is None or again:  # from scattering on
            vouching, wanted, left = f"{node.name}.scattered", shuffle.scatter, list(shuffle.scatter)
        else:
            wanted = shuffle.gather(size)[1]
            left = keys.pending(ledger, node.name, wanted, place, node.disposable)
    elif isinstance(node, Step):
        wanted, rows = keys.step_keys(node, me, outputs), {}
        left = list(wanted) if again else keys.pending(ledger, node.name, wanted, place)
    else:
        raise TypeError(f"node {node.name!r} is neither a Stage, a Shuffle nor a Step")
    documents = sum(rows.get(piece, 0) for piece in left) or None
    if not left:
        if isinstance(node, Step):
            outputs[node.name] = keys.step_output(ledger, node, place)
        else:
            outputs[node.name] = keys.output_of(ledger, node, wanted, place)
        return Planned(node.name, kind, "cached", len(wanted), 0, documents, None, ())
    cost = _cost(known, len(left))
    if vouching != node.name and (scattered := _cost(_entries(ledger, vouching), len(left))) is not None:
        cost = scattered + (_cost(known, len(known)) or 0.0)
    entries = {piece: ledger.read(vouching, piece) for piece in left}
    why = ("asked for",) if again else _why(entries, wanted, record, plain_identity(me))
    return Planned(node.name, kind, "runs", len(wanted), len(left), documents, cost, why)


def _entries(ledger: Ledger, name: str) -> list[Entry]:
    return [entry for piece in ledger.pieces(name) if (entry := ledger.read(name, piece)) is not None]


def _why(
    entries: Mapping[str, Entry | None], wanted: Mapping[str, str], record: Mapping[str, Any], me: Mapping[str, Any]
) -> tuple[str, ...]:
    """Of the pieces that are left: `entries` is what the ledger knows of them, `record` what run.json does."""
    left = list(entries)
    if not any(entries.values()):
        return ("never run",) if len(left) == len(wanted) else (f"{len(left):,} pieces are new or were left undone",)
    before = record.get("identity")
    if before is not None and (changed := differences(before, me)):
        return tuple(changed)
    gone = sum(entry is not None and entry.fingerprint == wanted[piece] for piece, entry in entries.items())
    new = sum(entry is None for entry in entries.values())
    other = len(left) - gone - new
    told = {"whose output is gone or altered": gone, "new or left undone": new, "whose input changed": other}
    return tuple(f"{count:,} pieces {what}" for what, count in told.items() if count)


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """`config.near.threshold 0.7 -> 0.8`, for every place in which two JSON values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for name in dict.fromkeys((*before, *now)):
            found += differences(before.get(name), now.get(name), f"{where}.{name}" if where else name)
        return found
    if before == now:
        return []
    if where == "files":
        return ["model files changed"]
    return [f"{where} {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    told = repr(value) if not isinstance(value, (dict, list)) else f"{type(value).__name__} of {len(value)}"
    return told if len(told) <= 40 else f"{told[:37]}..."


def _cost(entries: Sequence[Entry], pieces: int) -> float | None:
    """Seconds of one worker, at the mean of what each piece took."""
    timed = [entry.seconds for entry in entries]
    return pieces * sum(timed) / len(timed) if timed else None
