"""The files of a heads/ folder: which there are, that they are those of its manifest, and how they are replaced.

Of every file the manifest has the size and the hash. There is no pickle among them, and none that is not ours. The
folder is written beside its place and put there whole, so that a crash leaves the old one or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import fingerprint, read_json, read_object, replace_folder, sha256_file, write_json
from gristmill.scorer.heads.calibration import ALL, MINIMUM_UNLABELLED, labels_needed
from gristmill.scorer.heads.calibration import FORMAT as CALIBRATION_FORMAT

FORMAT = "gristmill.scorer/2"
MANIFEST, CALIBRATION = "manifest.json", "calibration.json"
FILES = ("scorer.json", "heads.safetensors", "selftest.safetensors", "metrics.json", CALIBRATION, "README.md")
"""All but the manifest; calibration.json is there once the heads are calibrated."""


def check_files(folder: Path) -> None:
    """That the folder holds what its manifest lists, to the byte, and nothing else but hidden files.

    Raises:
        DataError: no manifest, a file missing or altered, or one that is no bundle's, such as a pickle.
    """
    mend = "fetch the heads again, or train them again"
    listed: dict[str, Any] = read_object(folder / MANIFEST, mend, files=dict)["files"]
    if strange := [*_strangers(folder), *sorted(set(listed) - set(FILES))]:
        raise DataError(f"{folder}: {strange[0]} is no file of a heads folder, which holds safetensors and JSON only")
    for name in FILES:
        path, entry = folder / name, listed.get(name)
        if entry is None and (path.exists() or name != CALIBRATION):
            raise DataError(f"{path}: not listed in {MANIFEST}; {mend}")
        if entry is not None and not path.is_file():
            raise DataError(f"{path}: missing, though {MANIFEST} lists it; {mend}")
        if entry is not None and (path.stat().st_size, sha256_file(path)) != (entry["bytes"], entry["sha256"]):
            raise DataError(f"{path}: altered since the heads were written ({MANIFEST} has another hash); {mend}")


def read_scorer(folder: Path) -> dict[str, Any]:
    """scorer.json of a folder whose files have been checked.

    Raises:
        DataError: it is of another format.
    """
    where = folder / "scorer.json"
    values = read_object(where, "train the heads again")
    if values.get("format") != FORMAT:
        raise DataError(
            f"{where}: format {values.get('format')!r}, this version reads {FORMAT!r}; train the heads again"
        )
    return values


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """calibration.json of a folder whose files have been checked; None where the heads are not calibrated.

    Raises:
        DataError: as of check_calibration().
    """
    path = folder / CALIBRATION
    if not path.exists():
        return None
    calibration = read_json(path)
    check_calibration(calibration, path)
    return calibration


def identity(folder: Path) -> str:
    """What scores depend on, as 16 digits: backbone, settings, the heads, and weights that were fitted; no threshold.

    Of a folder whose files have been checked.
    """
    calibration = read_calibration(folder) or {}
    files = [sha256_file(folder / name) for name in ("scorer.json", "heads.safetensors")]
    return fingerprint([*files, calibration.get("weights")])[:16]


def check_calibration(calibration: Any, path: Path) -> None:
    """Refuse thresholds that no calibration gives.

    Raises:
        DataError: another format, a count below the least, or a tau_drop above its tau_keep.
    """
    mend = "run `scorer calibrate` again"
    if not isinstance(calibration, dict) or calibration.get("format") != CALIBRATION_FORMAT:
        raise DataError(f"{path}: not {CALIBRATION_FORMAT!r}; {mend}")
    if calibration["mode"] == "certified":
        needed = labels_needed(calibration["max_false_drop"], calibration["confidence"])
        if calibration["n_good"] < needed:
            raise DataError(f"{path}: says certified by {calibration['n_good']} labels, which takes {needed}; {mend}")
    if (scored := calibration["groups"][ALL]["n"]) < MINIMUM_UNLABELLED:
        raise DataError(f"{path}: made from {scored} unlabelled documents, {MINIMUM_UNLABELLED} needed; {mend}")
    for name, group in calibration["groups"].items():
        if group["tau_drop"] is not None and group["tau_drop"] > group["tau_keep"]:
            detail = json.dumps({key: group[key] for key in ("tau_drop", "tau_keep")})
            raise DataError(f"{path}: group {name!r} has tau_drop above tau_keep ({detail}); {mend}")


def write_manifest(folder: Path) -> None:
    """Of the files as they are now; it is written last."""
    paths = [folder / name for name in FILES if (folder / name).exists()]
    listed = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in paths}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": listed})


def check_place(folder: Path) -> None:
    """That heads can be put there.

    Raises:
        UsageError: it is a file, or holds files that are no heads.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; name a folder")
    if strange := _strangers(folder):
        raise UsageError(f"{folder}: holds {strange[0]}, which is no part of heads; name an empty folder")


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A place for a new folder, not there yet, that then takes the place of `folder`.

    Raises:
        UsageError: `folder` holds files that are no heads.
    """
    folder = folder.resolve()
    check_place(folder)
    temporary = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _strangers(folder: Path) -> list[str]:
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.name not in (*FILES, MANIFEST))
