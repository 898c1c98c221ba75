"""Every output of a run against the hash that the ledger took of it."""

from __future__ import annotations

from pathlib import Path

from gristmill.base.errors import DataError
from gristmill.base.files import sha256_file, sha256_folder
from gristmill.datapipe.workflow.ledger import Ledger, read_listing

DISPOSABLE = "shuffles/"
"""Where outputs lie that are made again when they are needed: that one is gone is no fault."""


def verify(run: Path) -> int:
    """Number of outputs that match.

    Raises:
        DataError: no run there, or an output is missing or differs; names the first.
    """
    listing, ledger, checked = run / "ledger" / "outputs.json", Ledger(run), 0
    if not listing.exists():
        raise DataError(f"{run}: not a run folder (no ledger/outputs.json)")
    for name, folder in read_listing(listing).items():
        for key in ledger.pieces(name):
            entry = ledger.read(name, key)
            if entry is None:
                continue  # forgotten since it was listed: a run is at work
            parts = entry.counts["parts"] if name == "documents" else [{"name": key, "sha256": entry.sha256}]
            wanted = [(part["name"], part["sha256"]) for part in parts]
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
