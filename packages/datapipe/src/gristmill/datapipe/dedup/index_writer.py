"""Making an index of signatures (see dedup.index) from finished runs, or from an older index and more runs.

Memory is bounded: rows are written as they come, keys are scattered over files and sorted file by file.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import read_json, replace_folder, sha256_file, write_json
from gristmill.base.progress import Progress
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.dedup.index import (
    FORMAT,
    SKETCH_COLUMNS,
    Recipe,
    SignatureIndex,
    identity_of,
    recipe_of,
    signature_of,
)
from gristmill.datapipe.dedup.minhash import Bands, band_keys, bands_for, has_words
from gristmill.datapipe.workflow.stage import Inputs, open_run

_ROWS = 1 << 16
"""Entries that are written at once; the last batch has fewer."""
_SORTED = 1 << 22
"""Keys that are sorted at once, about: what bounds the memory of build() to some hundred megabytes."""
_RECORD = np.dtype([("key", "<u8"), ("entry", "<u4")])


def build(
    runs: Sequence[Path],
    output: Path,
    everything: bool = False,
    threshold: float = 0.7,
    extend: Path | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Write the index of the documents of finished runs, as a whole or not at all.

    Args:
        runs: run folders with sketches; their documents become entries in this order.
        output: the index's folder, which must not be there (see `replace`).
        everything: take documents that a run's selection drops, too.
        threshold: least similarity that the index is meant to find, 0 to 1; its bands follow from it.
        extend: an index whose entries come first; it stays as it is.
        replace: put the new index in the place of an index at `output`.

    Returns:
        What index.json holds.

    Raises:
        UsageError: nothing to index; `output` exists; runs or `extend` that cannot be in one index.
        GristmillError: a run is not finished, or its sketches do not say how they were made.
        DataError: `extend` is damaged.
    """
    check_range("threshold", threshold, 0, 1)
    _check_place(output, extend, replace)
    old = [SignatureIndex.open(extend, check=True)] if extend is not None else []
    opened = {run: open_run(run) for run in runs}
    recipes = {index.folder: index.recipe for index in old}
    recipes |= {run: _check_run(run, inputs, everything) for run, inputs in opened.items()}
    if not recipes:
        raise UsageError("no run to index")
    first, recipe = next(iter(recipes.items()))
    for folder, other in recipes.items():
        recipe.refuse(other, folder, first)
    for index in old:
        if threshold != index.about["threshold"]:
            raise UsageError(f"{index.folder} is made for --threshold {index.about['threshold']}, not {threshold}")
    made_of = [made for index in old for made in index.about["made_of"]]
    made_of += [
        {"run": run.absolute().name, "all": everything, "documents": sum(map(len, _chosen(inputs, everything)))}
        for run, inputs in opened.items()
    ]
    entries = sum(made["documents"] for made in made_of)
    if entries >= 2**32:
        raise UsageError(f"{entries:,} documents are more than the {2**32 - 1:,} that an index holds; make several")
    tables = [_of_index(index) for index in old]
    tables += [_of_run(run, inputs, everything, recipe) for run, inputs in opened.items()]
    bands = old[0].bands if old else bands_for(threshold, recipe.minhash.permutations)
    work = output.absolute().with_name(f".{output.absolute().name}.tmp-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)  # of a process that had this number once
    try:
        work.mkdir(parents=True)
        searchable = _write(work, itertools.chain.from_iterable(tables), recipe, bands, entries)
        written = sorted(work.iterdir())
        about = {
            "format": FORMAT, "recipe": asdict(recipe), "threshold": threshold, "bands": asdict(bands),
            "entries": entries, "searchable": searchable, "made_of": made_of,
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in written},
        }  # fmt: skip
        write_json(work / "index.json", about)
        replace_folder(work, output.absolute())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return about


def _check_place(output: Path, extend: Path | None, replace: bool) -> None:
    if output.is_symlink():
        raise UsageError(f"{output} is a link; give --output the folder that it leads to, or another")
    if not output.exists():
        return
    if extend is not None and output.resolve() == extend.resolve():
        raise UsageError(f"{output}: an index is not changed in its place; give --output another folder")
    if not replace:
        raise UsageError(f"{output} exists; give another --output, or --replace")
    held = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    about = read_json(output / "index.json") if "index.json" in held else {}
    ours = isinstance(about, dict) and about.get("format") == FORMAT
    if held and (not ours or held - {"index.json", *about["files"]}):
        raise UsageError(f"{output} holds what is of no index, and is not replaced; give another --output")


def _check_run(run: Path, inputs: Inputs, everything: bool) -> Recipe:
    needed = ("documents", "sketch") if everything else ("documents", "sketch", "selection")
    for name in needed:
        if not inputs.parts.get(name) or inputs.parts[name] != inputs.parts["documents"]:
            hint = "; --all takes every document" if name == "selection" else ""
            raise GristmillError(f"{run}: its {name} is not there or not finished: run its pipeline first{hint}")
    return recipe_of(inputs.part("sketch", inputs.parts["sketch"][0], ()).schema, run)


def _chosen(inputs: Inputs, everything: bool) -> Iterator[NDArray[np.int64]]:
    """The rows of each partition that become entries."""
    for part in inputs.parts["sketch"]:
        if everything:
            yield np.arange(inputs.part("sketch", part, ()).num_rows)
        else:
            keep = pc.fill_null(inputs.part("selection", part, ("keep",))["keep"], False)
            yield np.flatnonzero(keep.to_numpy())


def _of_run(run: Path, inputs: Inputs, everything: bool, recipe: Recipe) -> Iterator[pa.Table]:
    for part, rows in zip(inputs.parts["sketch"], _chosen(inputs, everything), strict=True):
        sketch = inputs.part("sketch", part, SKETCH_COLUMNS)
        recipe.refuse(recipe_of(sketch.schema, run), run, f"its other partitions than {part}")
        ids = inputs.part("documents", part, ("id",))["id"].cast(pa.large_string())
        yield sketch.append_column("id", ids).take(rows).replace_schema_metadata(None)


def _of_index(index: SignatureIndex) -> Iterator[pa.Table]:
    for start in range(0, len(index), _ROWS):
        signature, identity = index.signatures[start : start + _ROWS], index.identities[start : start + _ROWS]
        flat = pa.FixedSizeListArray.from_arrays(pa.array(signature.reshape(-1)), index.recipe.minhash.permutations)
        ids = index.ids(np.arange(start, start + len(identity)))
        columns = [pa.array(identity[:, 0]), pa.array(identity[:, 1]), flat, ids]
        yield pa.table(columns, [*SKETCH_COLUMNS, "id"])


def _batches(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, _ROWS at a time: an index does not tell how its runs were cut into partitions."""
    waiting, rows = [], 0
    for table in tables:
        waiting, rows = [*waiting, table], rows + len(table)
        while rows >= _ROWS:
            held = pa.concat_tables(waiting)
            yield held.slice(0, _ROWS)
            waiting, rows = [held.slice(_ROWS)], rows - _ROWS
    if rows:
        yield pa.concat_tables(waiting)


def _write(folder: Path, tables: Iterable[pa.Table], recipe: Recipe, bands: Bands, entries: int) -> int:
    """Every file but index.json. Returns how many entries have words."""
    exact = _Sorter(folder, "exact", entries)
    buckets = [_Sorter(folder, f"band-{band:02d}", entries) for band in range(bands.bands)]
    schema = pa.schema([("id", pa.large_string())])
    with (
        _array_file(folder / "signatures.npy", "<u4", (entries, recipe.minhash.permutations)) as signatures,
        _array_file(folder / "identities.npy", "<u8", (entries, 2)) as identities,
        pa.ipc.new_file(folder / "ids.arrow", schema) as ids,
        Progress("index", entries, "documents") as progress,
    ):
        start = 0
        for table in _batches(tables):
            signature, identity = signature_of(table, recipe), identity_of(table)
            signatures.write(signature.tobytes())
            identities.write(identity.tobytes())
            ids.write_table(table.select(["id"]).combine_chunks())
            wordy = np.flatnonzero(has_words(signature))
            keys = band_keys(signature[wordy], bands)
            exact.add(identity[wordy, 0], start + wordy)
            for band, bucket in enumerate(buckets):
                bucket.add(keys[:, band], start + wordy)
            start += len(table)
            progress.update(start)
    if start != entries:
        raise GristmillError(
            f"a run has changed while it was indexed, from {entries:,} to {start:,} documents: try again"
        )
    low = np.load(folder / "identities.npy", mmap_mode="r")[:, 1]
    searchable = exact.finish(low)
    for bucket in buckets:
        bucket.finish()
    return searchable


class _Sorter:
    """Sorts keys that come in any order: scattered over files by their uppermost bits, then sorted file by file.

    A key that very many entries have makes one file longer than the others, and nothing worse.
    """

    def __init__(self, folder: Path, name: str, entries: int) -> None:
        self._folder, self._name = folder, name
        self._bits = math.ceil(math.log2(max(1.0, entries / _SORTED)))
        self._rows = 0

    def add(self, keys: NDArray[np.uint64], entries: NDArray[np.int64]) -> None:
        records = np.empty(len(keys), _RECORD)
        records["key"], records["entry"] = keys, entries
        piece = (keys >> np.uint64(64 - self._bits)).astype(np.int64) if self._bits else np.zeros(len(keys), np.int64)
        records = records[np.argsort(piece, kind="stable")]
        for number, own in enumerate(np.split(records, np.cumsum(np.bincount(piece, minlength=1 << self._bits))[:-1])):
            with self._piece(number).open("ab") as file:
                file.write(own.tobytes())
        self._rows += len(keys)

    def finish(self, low: NDArray[np.uint64] | None = None) -> int:
        """Write the two files. `low`: by entry, what equal keys are sorted by before their entries."""
        with (
            _array_file(self._folder / f"{self._name}.keys.npy", "<u8", (self._rows,)) as keys,
            _array_file(self._folder / f"{self._name}.entries.npy", "<u4", (self._rows,)) as entries,
        ):
            for number in range(1 << self._bits if self._rows else 0):
                records = np.fromfile(self._piece(number), _RECORD)
                self._piece(number).unlink()
                by = (records["key"],) if low is None else (low[records["entry"]], records["key"])
                records = records[np.lexsort(by)]
                keys.write(records["key"].tobytes())
                entries.write(records["entry"].tobytes())
        return self._rows

    def _piece(self, number: int) -> Path:
        return self._folder / f"{self._name}.{number}.unsorted"


@contextlib.contextmanager
def _array_file(path: Path, kind: str, shape: tuple[int, ...]) -> Iterator[io.BufferedWriter]:
    """A .npy file whose rows are written as they come, and not through a mapping, whose pages would count as memory."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        yield file
