"""Evaluation items without their text: a table with a row per item, of the hashes of its n-grams.

What `datapipe index-evals` writes (Parquet) and what a folder of sets becomes when it is read. All else is computed
from it, so that an index finds exactly what its folder would. Sets add up by joining their tables.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gristmill.base.errors import GristmillError
from gristmill.base.files import atomic_path
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.contamination.eval_sets import bundled_index, is_index, read_items
from gristmill.datapipe.contamination.fields import FieldNames, Item
from gristmill.datapipe.contamination.ngrams import SIZE, ngrams
from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.folded import fold

ANSWER_SIZE = 3
"""Words of the n-grams that answers are found by; a shorter answer is one n-gram (decon: answer_ngram_size)."""
MIN_WORDS, MIN_DISTINCT = 16, 4
"""Items with fewer words, or fewer different ones, are no evidence and left out (decon: eval_min_token_length, 20 BPE
tokens; eval_min_unique_word_count). Question, answer and passage count together: a short question needs its answer."""

_HASHES = pa.list_(pa.field("element", pa.uint64(), nullable=False))
SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("id", pa.string()),
        ("question_words", pa.int32()),
        ("answer_words", pa.int32()),
        ("passage_words", pa.int32()),
        ("question", _HASHES),  # of 5 words, in their order
        ("answer", _HASHES),
        ("answer_short", _HASHES),  # of 3 words, or of all
        ("passage", _HASHES),
    ]
)
_KEY, _VERSION = b"gristmill.evals", 2


@dataclass
class Counts:
    """What became of a set's items."""

    items: int = 0
    short: int = 0
    """Left out: too few words."""
    repeated: int = 0
    """Left out: the set has the same item already."""


@dataclass(frozen=True)
class HashedSets:
    table: pa.Table
    """By SCHEMA."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """By set; of an index nothing is known but its items."""


def read_sets(files: Sequence[Path], names: FieldNames) -> HashedSets:
    """The sets of these files, joined.

    Raises:
        GristmillError: a file is broken, has a bad row (named by its line), or is no index; an index is damaged, or of
            another version or Unicode; or nothing is left.
    """
    parts: list[pa.Table] = []
    counts: dict[str, Counts] = {}
    for path in files:
        if is_index(path):
            table = _read_index(path)
            for name, number in zip(*(c.to_pylist() for c in table["set"].combine_chunks().value_counts().flatten())):
                counts.setdefault(name, Counts()).items += number
        else:
            table = hash_items(read_items(path, names), counts)
        parts.append(table)
    table = pa.concat_tables(parts)
    if not len(table):
        raise GristmillError(f"{', '.join(map(str, files))}: no item has {MIN_WORDS} words or more")
    return HashedSets(table, counts)


def write_index(sets: HashedSets, output: Path) -> None:
    """Write the table as a Parquet file, with a digest of what it holds. The same sets give the same bytes."""
    about = {"version": _VERSION, "unicode": unicodedata.unidata_version, "sha256": _digest(sets.table)}
    with atomic_path(output) as temporary:
        table = sets.table.replace_schema_metadata({_KEY: json.dumps(about).encode()})
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False, write_statistics=False)


def hash_items(items: Iterable[Item], counts: dict[str, Counts]) -> pa.Table:
    """The table of those items that are evidence; what became of all is added to `counts`, by set."""
    seen: set[Item] = set()
    rows: list[Item] = []
    for item in items:
        told = counts.setdefault(item.set, Counts())
        content = Item(item.set, "", item.question, item.answer, item.passage)
        told.repeated += content in seen
        if content not in seen:
            seen.add(content)
            rows.append(item)
    question, answer, passage = (
        fold(text_of(pa.array([getattr(row, part) for row in rows], pa.large_string())))
        for part in ("question", "answer", "passage")
    )
    words = np.stack([np.diff(part.offsets) for part in (question, answer, passage)], axis=1)
    enough = words.sum(axis=1) >= MIN_WORDS
    for index in np.flatnonzero(enough):
        own = [part.hashes[part.offsets[index] : part.offsets[index + 1]] for part in (question, answer, passage)]
        enough[index] = len(np.unique(np.concatenate(own))) >= MIN_DISTINCT
    for row, kept in zip(rows, enough):
        counts[row.set].items += int(kept)
        counts[row.set].short += int(not kept)
    fives = np.full(len(rows), SIZE)
    columns = [
        pa.array([row.set for row in rows], pa.string()),
        pa.array([row.id for row in rows], pa.string()),
        *(pa.array(words[:, part], pa.int32()) for part in range(3)),
        _lists(*ngrams(question.hashes, question.offsets, fives)),
        _lists(*ngrams(answer.hashes, answer.offsets, fives)),
        _lists(*ngrams(answer.hashes, answer.offsets, np.minimum(words[:, 1], ANSWER_SIZE))),
        _lists(*ngrams(passage.hashes, passage.offsets, fives)),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA).filter(pa.array(enough))


def _read_index(path: Path) -> pa.Table:
    again = "`datapipe index-evals FOLDER --output FILE` makes one"
    damaged = f"{path}: a damaged index of evaluation sets; {again}"
    if path == bundled_index():
        again = "the README beside it says how to make it"
        damaged = f"{path}: the bundled index of evaluation sets is damaged; install gristmill-datapipe again"
    told = f"{path}: no index of evaluation sets; {again}"
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            if _KEY not in metadata:
                raise GristmillError(told)
            about = json.loads(metadata[_KEY])
            if about.get("version") != _VERSION:
                raise GristmillError(f"{path}: an index of version {about.get('version')!r}, not {_VERSION}; {again}")
            own = path == bundled_index()  # its words, English and code, are folded alike by every version
            if about.get("unicode") != unicodedata.unidata_version and not own:  # words, and how they are folded
                raise GristmillError(
                    f"{path}: an index made by Unicode {about.get('unicode')!r}, while this Python has "
                    f"{unicodedata.unidata_version}; make it again with this Python ({again})"
                )
            table = file.read().replace_schema_metadata(None)
        if table.schema != SCHEMA:
            raise GristmillError(told)
        if about.get("sha256") != _digest(table):
            raise GristmillError(damaged)
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise GristmillError(f"{damaged if path == bundled_index() else told} ({error})") from None
    if any(column.null_count for column in table.columns) or not _fits(table):
        raise GristmillError(told)
    return table


def _digest(table: pa.Table) -> str:
    """SHA-256 of the values of all columns, however they are stored."""
    digest = hashlib.sha256()
    for column in table.columns:
        if pa.types.is_list(column.type):
            digest.update(pc.list_value_length(column).to_numpy().tobytes())
            digest.update(pc.list_flatten(column).to_numpy().tobytes())
        elif pa.types.is_string(column.type):
            digest.update(json.dumps(column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()


def _fits(table: pa.Table) -> bool:
    """Whether each item has as many n-grams as its words make: kernels trust these numbers."""
    questions, answers, passages = (table[f"{part}_words"].to_numpy() for part in ("question", "answer", "passage"))
    wanted = {"question": questions - SIZE + 1, "answer": answers - SIZE + 1, "passage": passages - SIZE + 1}
    wanted["answer_short"] = answers - np.minimum(answers, ANSWER_SIZE) + (answers > 0)
    held = {name: pc.list_value_length(table[name]).to_numpy() for name in wanted}
    counted = all((words >= 0).all() for words in (questions, answers, passages))
    return counted and all((held[name] == np.maximum(count, 0)).all() for name, count in wanted.items())


def _lists(values: NDArray[np.uint64], offsets: NDArray[np.int64]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values), type=_HASHES)
