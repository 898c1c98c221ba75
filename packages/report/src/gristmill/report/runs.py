"""The runs at a folder: the folder itself where it is one, else those below it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gristmill.base.errors import UsageError

DEPTH = 3  # folders below the one given
Kind = Literal["pipeline", "training"]


@dataclass(frozen=True)
class Run:
    key: str
    """The path below the folder that was opened, with slashes; "" where that folder is the run."""
    folder: Path
    kind: Kind


def find(folder: Path) -> list[Run]:
    """Runs at or below `folder`, by key. Trainings inside a pipeline's run belong to its page, and are not listed.

    Raises:
        UsageError: `folder` is no folder, or holds no run.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such run folder; give the folder that a pipeline wrote (it holds run.json)")
    found = list(_below(folder, "", DEPTH))
    if not found:
        raise UsageError(f"{folder}: no run at or below it (none holds run.json, documents/ or events.jsonl)")
    return sorted(found, key=lambda run: run.key)


def kind_of(folder: Path) -> Kind | None:
    if (folder / "events.jsonl").is_file():
        return "training"
    if (folder / "documents").is_dir() or (folder / "run.json").is_file() or (folder / "training").is_dir():
        return "pipeline"
    return None


def _below(folder: Path, key: str, depth: int) -> list[Run]:
    try:
        if kind := kind_of(folder):
            return [Run(key, folder, kind)]
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except (PermissionError, FileNotFoundError):  # not ours to read, or gone meanwhile
        return []
    inside = [name for name in names if not name.startswith(".")] if depth else []
    return [run for name in inside for run in _below(folder / name, f"{key}/{name}".lstrip("/"), depth - 1)]
