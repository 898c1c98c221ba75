"""Every output of a run against the hash that the ledger took of it."""

from __future__ import annotations

from pathlib import Path

from gristmill.base.errors import DataError
from gristmill.base.files import read_json, sha256_file, sha256_folder

DISPOSABLE = "shuffles/"
"""Where outputs lie that are made again when they are needed: that one is gone is no fault."""


def verify(run: Path) -> int:
    """Number of outputs that match.

    Raises:
        DataError: no run there, or an output is missing or differs; names the first.
    """
    outputs = read_json(run / "ledger" / "outputs.json")
    checked = 0
    for name, folder in outputs.items():
        for entry_path in sorted((run / "ledger" / name).glob("*.json")):
            entry = read_json(entry_path)
            parts = entry["counts"].get("parts") if name == "documents" else None
            wanted = (
                [(part["name"], part["sha256"]) for part in parts]
                if parts is not None
                else [(entry_path.stem, entry["sha256"])]
            )
            for piece, sha256 in wanted:
                path = run / folder if piece == "whole" else run / folder / piece
                if not path.exists() and folder.startswith(DISPOSABLE):
                    continue
                if not path.exists():
                    raise DataError(f"{path}: missing; run the pipeline again to have it made")
                if (sha256_folder(path) if path.is_dir() else sha256_file(path)) != sha256:
                    raise DataError(f"{path}: is not what was written; delete it and run the pipeline again")
                checked += 1
    return checked
