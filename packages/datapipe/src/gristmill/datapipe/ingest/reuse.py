"""What an earlier run has read is not read again, whatever place its file has among the inputs now.

Partitions are named by where their file stands among the inputs, so that names sort in the order of rows. When an input
is put in front of others, or taken away, the partitions of those others are renamed, and what stages found in them with
them: their content is what counts, and that stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gristmill.datapipe.ingest.splitting import Piece
from gristmill.datapipe.workflow.ledger import Entry, Ledger
from gristmill.datapipe.workflow.quarantine import listing

DOCUMENTS, QUARANTINE = "documents", "quarantine"
Renames = list[tuple[Path, Path]]


def is_read(run: Path, ledger: Ledger, piece: Piece) -> bool:
    """Whether the ledger has the piece as it is now, and its partitions are there, and what it has in quarantine."""
    entry = ledger.read(DOCUMENTS, piece.key)
    if entry is None or entry.fingerprint != piece.fingerprint:
        return False
    return _is_there(run, piece.key, entry)


def rename(run: Path, ledger: Ledger, pieces: Sequence[Piece], stages: Mapping[str, str]) -> int:
    """Rename what was read under another key to where it belongs now. `stages`: name to folder of those over documents.

    Returns how many pieces were found so. Killed at any moment it leaves entries that vouch for nothing: those pieces
    are read again, and come out as they were.
    """
    staging = run / ".work" / "renamed"
    if staging.exists():  # of a run that was killed here: among other inputs, its names are those of other pieces
        shutil.rmtree(staging)
    new = [piece for piece in pieces if not is_read(run, ledger, piece)]
    found = _under_other_keys(run, ledger, new) if new else {}
    if not found:
        return 0
    outputs: Renames = []
    entries: Renames = []
    documents: dict[str, Entry] = {}
    for piece, (key, entry) in found.items():
        olds = [part["name"] for part in entry.counts["parts"]]
        names = {old: f"part-{piece.key}{old.removeprefix(f'part-{key}')}" for old in olds}
        parts = [{**part, "name": names[part["name"]]} for part in entry.counts["parts"]]
        documents[piece.key] = replace(entry, counts={**entry.counts, "parts": parts})
        outputs.append((Path(QUARANTINE, f"{key}.jsonl"), Path(QUARANTINE, f"{piece.key}.jsonl")))
        for folder in (DOCUMENTS, *stages.values()):
            outputs += [(Path(folder, old), Path(folder, name)) for old, name in names.items()]
        for stage in stages:
            of_stage = Path("ledger", stage)
            outputs += [
                (listing(Path(QUARANTINE, stage), old), listing(Path(QUARANTINE, stage), name))
                for old, name in names.items()
            ]
            entries += [(of_stage / f"{old}.json", of_stage / f"{name}.json") for old, name in names.items()]
    # All leave their old names before any takes its new one, which may be the old one of another. An output is never
    # where an entry could vouch for it that was written for something else: entries leave last, and come back last.
    _move(outputs, run, staging)
    for key, _ in found.values():
        ledger.forget(DOCUMENTS, key)
    _move(entries, run, staging)
    for key in documents:
        ledger.forget(DOCUMENTS, key)
    for _, target in entries:
        (run / target).unlink(missing_ok=True)
    _place(run, staging)
    shutil.rmtree(staging)
    for key, entry in documents.items():
        ledger.write(DOCUMENTS, key, entry)
    return len(found)


def _is_there(run: Path, key: str, entry: Entry) -> bool:
    paths = [(run / DOCUMENTS / part["name"], part["bytes"]) for part in entry.counts["parts"]]
    listed = (run / QUARANTINE / f"{key}.jsonl").exists()
    return listed and all(path.exists() and path.stat().st_size == size for path, size in paths)


def _under_other_keys(run: Path, ledger: Ledger, pieces: Sequence[Piece]) -> dict[Piece, tuple[str, Entry]]:
    wanted = {piece.fingerprint: piece for piece in pieces}
    found: dict[Piece, tuple[str, Entry]] = {}
    for path in sorted((run / "ledger" / DOCUMENTS).glob("*.json")):
        entry = ledger.read(DOCUMENTS, path.stem)
        if entry is not None and entry.fingerprint in wanted and _is_there(run, path.stem, entry):
            found[wanted[entry.fingerprint]] = (path.stem, entry)
    return found


def _move(renames: Renames, run: Path, staging: Path) -> None:
    for old, new in renames:
        if (run / old).exists():
            (staging / new).parent.mkdir(parents=True, exist_ok=True)
            (run / old).replace(staging / new)


def _place(run: Path, staging: Path) -> None:
    """Outputs first, then entries."""
    paths = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file()]
    for path in sorted(paths, key=lambda path: path.parts[0] == "ledger"):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (staging / path).replace(run / path)
