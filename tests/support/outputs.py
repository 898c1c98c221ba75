"""What a finished run must be: the same bytes as another, and every row of its inputs accounted for."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gristmill.base.files import read_json, sha256_file
from gristmill.datapipe.policy import QUARANTINED
from gristmill.datapipe.workflow.stage import read_part

TIMED = ("run.json", "report/index.html", "training/*/run.json", "training/*/events.jsonl")
"""Hold times, and what each attempt did."""
STATE = "training/*/checkpoints/*/state.json"
"""A checkpoint's place in the run; of its fields only `seconds` may differ."""


def differences(run: Path, other: Path) -> list[str]:
    """Files that are in one run only, or differ. The ledger, which holds times, and hidden files are left out."""
    here, there = _contents(run), _contents(other)
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))


def _contents(run: Path) -> dict[str, str]:
    found = {}
    for path in run.rglob("*"):
        relative = path.relative_to(run)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and relative.parts[0] != "ledger" and not any(map(relative.match, TIMED)):
            state = relative.match(STATE)
            found[relative.as_posix()] = str(read_json(path) | {"seconds": 0}) if state else sha256_file(path)
    return found


@dataclass(frozen=True)
class Account:
    """Rows of the inputs, and what became of them."""

    ingested: int
    kept: int
    dropped: int
    quarantined: int


def account(run: Path, inputs: Path) -> Account:
    """Every row of every input file is a document, under its own id, or in quarantine, once; every document is kept,
    dropped for a reason, or listed by the stage that could not handle it. Says which row is missing, or there twice.

    `inputs`: a folder of JSON lines whose good rows each have an id.
    """
    rows = dict(_rows(inputs))
    documents: list[tuple[tuple[str, int], str, bool, str | None]] = []
    for path in sorted((run / "documents").glob("part-*.parquet")):
        table, decided = read_part(path, ("file", "row", "id")), read_part(run / "selection" / path.name)
        assert len(table) == len(decided), f"{path.name}: {len(table)} documents, {len(decided)} decisions"
        places = zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True)
        columns = (table["id"], decided["keep"], decided["reason"])
        documents += zip(places, *(column.to_pylist() for column in columns), strict=True)
    refused, unhandled = (_listed(run / "quarantine", pattern) for pattern in ("*.jsonl", "*/*.jsonl"))
    seen = Counter([*(place for place, *_ in documents), *refused])
    assert not (twice := [place for place, times in seen.items() if times > 1]), f"there twice: {twice}"
    assert not (missing := rows.keys() - seen.keys()), f"missing: {sorted(missing)}"
    assert not (invented := seen.keys() - rows.keys()), f"in no input: {sorted(invented)}"
    for place, identity, keep, reason in documents:
        assert identity == rows[place], f"{place}: id {identity!r}, in the input {rows[place]!r}"
        assert keep == (reason is None), f"{identity}: keep is {keep}, and its reason {reason!r}"
        assert (reason == QUARANTINED) == (place in unhandled), f"{identity}: {reason!r}, and {place} in quarantine?"
    identities = Counter(identity for _, identity, *_ in documents)
    assert not (twice := [identity for identity, times in identities.items() if times > 1]), f"there twice: {twice}"
    kept = sum(keep for *_, keep, _ in documents)
    aside = sum(reason == QUARANTINED for *_, reason in documents)
    return Account(len(rows), kept, len(documents) - kept - aside, len(refused) + aside)


def _listed(quarantine: Path, pattern: str) -> list[tuple[str, int]]:
    """(file, row) of what the files there list."""
    lines = [
        line for path in sorted(quarantine.glob(pattern)) for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [(record["file"], record["row"]) for record in map(json.loads, lines)]


def _rows(inputs: Path) -> list[tuple[tuple[str, int], str | None]]:
    """(file, line from 1) of every line, and the id that it holds; None where it holds none that can be read."""
    found: list[tuple[tuple[str, int], str | None]] = []
    for path in sorted(inputs.glob("*.jsonl*")):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for number, line in enumerate(content.splitlines(), 1):
            try:
                values = json.loads(line.decode())
                identity = values.get("id") if isinstance(values, dict) else None
            except ValueError:
                identity = None
            found.append(((path.name, number), identity))
    return found
