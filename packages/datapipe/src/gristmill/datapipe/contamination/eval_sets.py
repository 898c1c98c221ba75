"""Evaluation sets as files: a folder of JSONL, one file a set, or an index that holds their n-grams and no text."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gristmill.base.errors import GristmillError, UsageError
from gristmill.datapipe.contamination.fields import FieldNames, Item, item_of
from gristmill.datapipe.ingest.readers import Bad, read_rows

BUNDLED = "bundled"
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
MAX_LINE_BYTES = 1 << 26


@dataclass(frozen=True)
class EvalSetsConfig(FieldNames):
    sets: tuple[str, ...] = ()
    """Folders of JSONL (.gz, .zst), one file a set; indexes made by `datapipe index-evals`; or `bundled`."""


def locate(sets: Sequence[str]) -> tuple[Path, ...]:
    """Every file that the sets are read from, by its whole path.

    Raises:
        UsageError: nothing is there, or it holds no set; or two files hold sets of one name.
    """
    files: list[Path] = []
    for given in sets:
        path = bundled_index() if given == BUNDLED else Path(given).absolute()
        found = sorted(file for file in path.iterdir() if _is_set(file)) if path.is_dir() else [path]
        if not found or not all(map(_is_known, found)):
            raise UsageError(
                f"{given}: no evaluation sets; give a folder of *.jsonl (.gz, .zst), an index that "
                f"`datapipe index-evals` made, or `{BUNDLED}`"
            )
        files += found
    named: dict[str, Path] = {}
    for file in dict.fromkeys(files):
        if not is_index(file) and named.setdefault(set_name(file), file) != file:
            raise UsageError(f"{named[set_name(file)]} and {file} hold sets of one name; rename one")
    return tuple(dict.fromkeys(files))


def bundled_index() -> Path:
    """The index of known benchmarks that comes with this package; its README says which."""
    return Path(str(importlib.resources.files("gristmill.datapipe.contamination"))) / "bundled" / "benchmarks.parquet"


def is_index(path: Path) -> bool:
    return path.suffix == ".parquet"


def set_name(path: Path) -> str:
    """The name of a file of text up to its suffix."""
    return next(path.name.removesuffix(suffix) for suffix in SUFFIXES if path.name.endswith(suffix))


def read_items(path: Path, names: FieldNames) -> Iterator[Item]:
    """The items of one JSONL file. An id that an earlier line has becomes `ID (line N)`, so that it names one item.

    Raises:
        GristmillError: a line is no JSON object or has no question, named by file and line; or there is no line.
    """
    seen: set[str] = set()
    for row in read_rows(path, path.name, "text", MAX_LINE_BYTES):
        where = f"{path} line {row.number}"
        if isinstance(row, Bad):
            raise GristmillError(f"{where}: {row.reason} ({row.detail})")
        try:
            item = item_of(row.values, row.number, set_name(path), names)
        except GristmillError as error:
            raise GristmillError(f"{where}: {error}") from None
        except RecursionError:
            raise GristmillError(f"{where}: nested too deeply") from None
        while item.id in seen:
            item = replace(item, id=f"{item.id} (line {row.number})")
        seen.add(item.id)
        yield item
    if not seen:
        raise GristmillError(f"{path}: an evaluation set without items")


def _is_set(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()


def _is_known(path: Path) -> bool:
    return path.is_file() and (_is_set(path) or is_index(path))
