"""Files that are either whole or absent, and hashes that mean the same thing everywhere.

Every output is written to a temporary name in its own folder, synced, and renamed; a reader never sees half a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gristmill.base.errors import DataError, WriteError

CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
"""What the machine says where no program is at fault."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the machine says while a file, or a folder of files, is written into an error that names it.

    Raises:
        WriteError: the disk is full, a quota is used up, or nothing may be written there.
    """
    try:
        yield
    except OSError as error:
        at = Path(str(error.filename or path))
        here = at.is_relative_to(path) or path.is_relative_to(at) or at.parent == path.parent
        if error.errno not in CANNOT_WRITE or not here:  # what was read meanwhile is another matter
            raise
        why = os.strerror(error.errno)
        raise WriteError(f"{path}: cannot be written ({why}); mend that, and run it again") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it onto `path`, on failure remove it.

    Raises:
        WriteError: as of writing().
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with a final newline. Keys keep their order; non-finite numbers are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, mend: str = "delete it to have it made again") -> Any:
    """Raises DataError where there is no such file, or it is damaged; `mend` says what to do then."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error}); {mend}") from None


def read_object(path: Path, mend: str = "delete it to have it made again", **kinds: type) -> dict[str, Any]:
    """A JSON file that holds an object in which each of these keys is of that type.

    Raises:
        DataError: there is no such file, or it is damaged; `mend` says what to do then.
    """
    value = read_json(path, mend)
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds no JSON object; {mend}")
    for key, kind in kinds.items():
        if not isinstance(value.get(key), kind):
            raise DataError(f"{path}: {key!r} is missing, or of a wrong type; {mend}")
    return value


def replace_folder(temporary: Path, final: Path) -> None:
    """Put a finished folder in its place. The old one is moved aside first: a crash leaves one of the two."""
    aside = final.with_name(f".{final.name}.old-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that had this number once
    if final.exists():
        final.replace(aside)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(final)
    shutil.rmtree(aside, ignore_errors=True)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """Hash of every file's relative path and content, in sorted order. Names that start with a dot are left out."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            total.update(f"{relative.as_posix()}\0{sha256_file(path)}\n".encode())
    return total.hexdigest()


def limited_lines(stream: io.BufferedIOBase, limit: int) -> Iterator[bytes | int]:
    """Lines, or the length of one that has over `limit` bytes: read past in pieces, never held."""
    while line := stream.readline(limit + 1):
        if len(line) <= limit or line.endswith(b"\n"):
            yield line
            continue
        length = len(line)
        while (piece := stream.readline(2**20)) and not piece.endswith(b"\n"):
            length += len(piece)
        yield length + len(piece)


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces. Refuses what it cannot spell instead of calling str() on it.

    Raises:
        TypeError: a value that is no JSON type, dataclass, Path, mapping or sequence.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """sha256 (hex) of canonical_json(value)."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"cannot fingerprint a mapping with the key {key!r}: keys must be strings")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item) for item in value]
    raise TypeError(
        f"cannot fingerprint {type(value).__name__} {value!r}: give it as numbers, strings, lists or mappings"
    )


def safe_join(root: Path, relative: str) -> Path:
    """Join a path that came from a manifest or an archive, refusing any that could leave `root`.

    Raises:
        DataError: absolute, a backslash, a colon, NUL, or an empty, `.` or `..` part; or a symlink out of `root`.
    """
    parts = relative.split("/")
    if (
        PurePosixPath(relative).is_absolute()
        or any(part in ("", ".", "..") for part in parts)
        or set(relative) & set("\\:\0")
    ):
        raise DataError(f"unsafe path {relative!r}: paths in a manifest must be relative and stay inside {root}")
    joined = root / relative
    if not joined.resolve().is_relative_to(root.resolve()):
        raise DataError(f"unsafe path {relative!r}: it leads out of {root}")
    return joined
