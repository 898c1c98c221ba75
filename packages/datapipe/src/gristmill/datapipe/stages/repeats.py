"""Repeats as annotations: lines, paragraphs and passages of the corpus that stood in it before, as spans to cut.

Only what the policy keeps so far is looked at: the copy that stays must not be in a document that goes. Of equal units
the first of the run is no repeat. A partition sends each key once, with its first place there, and hears which of those
another partition had before: units of a hundred million copies are as many entries as there are partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.dedup import substrings
from gristmill.datapipe.dedup.clusters import groups
from gristmill.datapipe.dedup.substrings import SubstringConfig, merged
from gristmill.datapipe.dedup.units import Kind, tidied, units
from gristmill.datapipe.stages.measure import UNICODE
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.buffers import batches, text_of
from gristmill.datapipe.text.folded import IDENTITY
from gristmill.datapipe.workflow.stage import Bucket, Node, Shuffle

KEPT = {"unique": ("keep",)}
"""The selection by the policy's rules so far."""


@dataclass(frozen=True)
class UnitConfig:
    min_words: int = 5
    """Shorter lines or paragraphs repeat for good reasons, and are left alone."""

    def __post_init__(self) -> None:
        check_range("min_words", self.min_words, 1)


@dataclass(frozen=True)
class Found:
    """Units of a partition in its order: document and byte span [n] each, keys [n, 2]."""

    document: NDArray[np.int32]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    key: NDArray[np.uint64]
    copies: pa.Array
    """Spans of each document that are repeats whatever the rest of the corpus holds."""

    @property
    def place(self) -> NDArray[np.int64]:
        """One ascending number for document and start."""
        return _place(self.document, self.start)


class FindUnits:
    """Lines or paragraphs. `beside` names annotations that find() reads besides the text."""

    beside: Mapping[str, tuple[str, ...]] = KEPT

    def __init__(self, kind: Kind, config: UnitConfig) -> None:
        self.config: dict[str, Any] = {"kind": kind, "units": config, "identity": IDENTITY, **UNICODE}
        self._kind: Kind = kind
        self._min_words = config.min_words

    def find(self, texts: pa.Array, previous: Mapping[str, pa.Table]) -> Found:
        document, start, end, key, copies = _by_batch(texts, self._units)
        return Found(document, start, end, key, copies)

    def _units(self, batch: pa.Array, _rows: slice) -> tuple[Any, ...]:
        found = units(text_of(batch), self._kind, self._min_words)
        none = pa.array([[]], spans.TYPE).take(pa.array(np.zeros(len(batch), np.int64)))
        return found.document, found.start, found.end, found.key, none

    def finish(self, texts: pa.Array, cut: pa.Array, document: NDArray[np.int32]) -> tuple[pa.Array, NDArray[np.int64]]:
        """(cut, number): no empty lines where lines went; so many units, `document` says whose."""
        return tidied(text_of(texts), cut), np.bincount(document, minlength=len(texts))


class FindPassages:
    """All windows of so many words that hold an anchor which the corpus has more than once: see dedup.substrings."""

    beside: Mapping[str, tuple[str, ...]] = {**KEPT, "substrings_anchored": ("words",)}

    def __init__(self, config: SubstringConfig) -> None:
        self.config: dict[str, Any] = {"substrings": config, **UNICODE}
        self._substrings = config

    def find(self, texts: pa.Array, previous: Mapping[str, pa.Table]) -> Found:
        words = previous["substrings_anchored"]["words"].combine_chunks()

        def windows(batch: pa.Array, rows: slice) -> tuple[Any, ...]:
            found = substrings.windows(text_of(batch), words[rows], self._substrings)
            return found.document, found.start, found.end, found.key, found.copies

        document, start, end, key, copies = _by_batch(texts, windows)
        return Found(document, start, end, key, copies)

    def finish(self, texts: pa.Array, cut: pa.Array, document: NDArray[np.int32]) -> tuple[pa.Array, NDArray[np.int64]]:
        """(cut, number): passages, of which each is many windows."""
        cut = substrings.tidied(text_of(texts), cut)
        return cut, pc.list_value_length(cut).to_numpy(zero_copy_only=False) // 2


class Firsts(Shuffle):
    """NAME_firsts: place (row, start) of each key's first unit in its partition, where an earlier one has it too."""

    over, columns, disposable = "documents", ("text",), True
    libraries = ("pyarrow",)

    def __init__(self, name: str, what: FindUnits | FindPassages) -> None:
        self.name, self.folder = f"{name}_firsts", f"shuffles/{name}_firsts"
        self.config, self.requires = what.config, what.beside
        self._what = what

    def scatter(self, table: pa.Table, previous: Mapping[str, pa.Table], start: int) -> pa.Table:
        found = self._what.find(_kept(table["text"], previous), previous)
        first, _ = groups(found.key)
        key, row = found.key[first], start + found.document[first].astype(np.int64)
        return pa.table({"key": key[:, 0], "low": key[:, 1], "row": row, "start": found.start[first]})

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        first, _ = groups(np.stack([entries["key"].to_numpy(), entries["low"].to_numpy()], axis=1))
        later = np.ones(len(entries), bool)
        later[first] = False
        return entries.select(["row", "start"]).filter(pa.array(later))


class Repeats(Shuffle):
    """NAME: cut (spans of what stood in the corpus before), number (of units cut), share (of the document's bytes).

    Null for documents that were not looked at.
    """

    by, onto, aligned = "row", "documents", True
    libraries = ("pyarrow",)

    def __init__(self, name: str, what: FindUnits | FindPassages) -> None:
        self.name, self.folder = name, f"annotations/{name}"
        self.over, self.config = f"{name}_firsts", what.config
        self.beside = {"documents": ("text",), **what.beside}
        self._what = what

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        texts = _kept(previous["documents"]["text"], previous)
        found = self._what.find(texts, previous)
        first, group = groups(found.key)
        earlier = np.isin(
            found.place[first], _place(entries["row"].to_numpy() - bucket.start, entries["start"].to_numpy())
        )
        repeated = earlier[group]
        repeated[np.setdiff1d(np.arange(len(group)), first, assume_unique=True)] = True
        document = found.document[repeated]
        cut = merged(document, found.start[repeated], found.end[repeated], len(texts))
        cut, number = self._what.finish(texts, spans.union([cut, found.copies]), document)
        length = pc.binary_length(texts).to_numpy(zero_copy_only=False)
        share = spans.covered(cut) / np.maximum(length, 1)
        dropped = pc.invert(_keep(previous))
        columns = cut, pa.array(number.astype(np.int32)), pa.array(share.astype(np.float32))
        nulled = [pc.if_else(dropped, pa.scalar(None, column.type), column) for column in columns]
        return pa.table(nulled, ["cut", "number", "share"])

    def counts(self, table: pa.Table, bucket: Bucket) -> dict[str, int]:
        cut = pc.fill_null(table["number"], 0).to_numpy()
        return {"documents": int((cut > 0).sum()), "repeats": int(cut.sum())}


class AnchorFirsts(Shuffle):
    """substrings_anchors: place (row, word) of each anchor's first in its partition, where the corpus has it again."""

    name, folder, disposable = "substrings_anchors", "shuffles/substrings_anchors", True
    over, columns, requires = "documents", ("text",), KEPT
    libraries = ("pyarrow",)

    def __init__(self, config: SubstringConfig) -> None:
        self.config = {"substrings": config, **UNICODE}
        self._substrings = config

    def scatter(self, table: pa.Table, previous: Mapping[str, pa.Table], start: int) -> pa.Table:
        document, word, key = _anchors(_kept(table["text"], previous), self._substrings)
        first, group = groups(key)
        row = start + document[first].astype(np.int64)
        count = np.bincount(group, minlength=len(first))
        return pa.table({"key": key[first], "row": row, "word": word[first], "count": count})

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        first, group = groups(entries["key"].to_numpy())
        count = np.bincount(group, entries["count"].to_numpy(), len(first))
        return entries.select(["row", "word"]).filter(pa.array(count[group] > 1))


class Anchored(Shuffle):
    """substrings_anchored: words (where in the document the anchors begin that the corpus has more than once)."""

    name, folder, disposable = "substrings_anchored", "shuffles/substrings_anchored", True
    over, by, onto, aligned = "substrings_anchors", "row", "documents", True
    beside: Mapping[str, tuple[str, ...]] = {"documents": ("text",), **KEPT}
    libraries = ("pyarrow",)

    def __init__(self, config: SubstringConfig) -> None:
        self.config = {"substrings": config, **UNICODE}
        self._substrings = config

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        document, word, key = _anchors(_kept(previous["documents"]["text"], previous), self._substrings)
        first, group = groups(key)
        theirs = _place(entries["row"].to_numpy() - bucket.start, entries["word"].to_numpy())
        again = np.isin(_place(document[first], word[first]), theirs)[group]
        offsets = np.searchsorted(document[again], np.arange(bucket.rows + 1)).astype(np.int32)
        return pa.table({"words": pa.ListArray.from_arrays(pa.array(offsets), pa.array(word[again]))})


def line_nodes(config: UnitConfig) -> list[Node]:
    """lines: those of at least so many words that stood in the corpus before; see dedup.units for what is the same."""
    return [Firsts("lines", FindUnits("line", config)), Repeats("lines", FindUnits("line", config))]


def paragraph_nodes(config: UnitConfig) -> list[Node]:
    return [Firsts("paragraphs", FindUnits("paragraph", config)), Repeats("paragraphs", FindUnits("paragraph", config))]


def substring_nodes(config: SubstringConfig) -> list[Node]:
    """substrings: passages of at least so many words that stood in the corpus before, wherever they begin and end."""
    what = FindPassages(config)
    return [AnchorFirsts(config), Anchored(config), Firsts("substrings", what), Repeats("substrings", what)]


def _keep(previous: Mapping[str, pa.Table]) -> pa.Array:
    """What the policy keeps so far."""
    return next(previous[name]["keep"].combine_chunks() for name in KEPT)


def _kept(texts: pa.ChunkedArray, previous: Mapping[str, pa.Table]) -> pa.Array:
    """The texts, empty where the policy's rules so far drop the document."""
    return pc.if_else(_keep(previous), pc.fill_null(texts.combine_chunks(), ""), "")


def _anchors(texts: pa.Array, config: SubstringConfig) -> tuple[Any, ...]:
    """(document, word, key) of all anchors of a partition."""

    def anchors(batch: pa.Array, _rows: slice) -> tuple[Any, ...]:
        found = substrings.anchors(text_of(batch), config)
        return found.document, found.word, found.key

    return _by_batch(texts, anchors)


def _by_batch(texts: pa.Array, find: Callable[[pa.Array, slice], tuple[Any, ...]]) -> tuple[Any, ...]:
    """The columns that `find` makes of each batch, joined; the first names documents, and counts them through."""
    found, start = [], 0
    for batch in batches(texts) if len(texts) else (texts,):
        document, *columns = find(batch, slice(start, start + len(batch)))
        found.append((document + np.int32(start), *columns))
        start += len(batch)
    return tuple(
        np.concatenate(column) if isinstance(column[0], np.ndarray) else pa.concat_arrays(column)
        for column in zip(*found, strict=True)
    )


def _place(document: NDArray[Any], start: NDArray[Any]) -> NDArray[np.int64]:
    return document.astype(np.int64) << 32 | start.astype(np.int64)
