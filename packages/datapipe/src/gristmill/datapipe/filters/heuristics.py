"""What the published rules of thumb measure, side by side: a batch of text is split once, and every family reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.filters.bad_words import BadWordsConfig, bad_words
from gristmill.datapipe.filters.c4 import C4Config, c4
from gristmill.datapipe.filters.fineweb import FineWebConfig, fineweb
from gristmill.datapipe.filters.gopher import GopherConfig, gopher
from gristmill.datapipe.filters.length import length
from gristmill.datapipe.filters.line_edits import LineEditConfig, line_edits
from gristmill.datapipe.filters.madlad import MadladConfig, madlad
from gristmill.datapipe.filters.olmo3 import Olmo3Config, olmo3
from gristmill.datapipe.filters.repetition import olmo3_repetition, repetition
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.buffers import batches
from gristmill.datapipe.text.features import Features, featurise


@dataclass(frozen=True)
class HeuristicsConfig:
    families: tuple[str, ...] = ("gopher", "repetition", "c4", "fineweb", "olmo3")
    """What is measured, besides lengths; "bad_words" too, where a policy asks for it."""
    gopher: GopherConfig = field(default_factory=GopherConfig)
    c4: C4Config = field(default_factory=C4Config)
    fineweb: FineWebConfig = field(default_factory=FineWebConfig)
    fineweb_after_c4: bool = False
    """Measure FineWeb's columns on what C4's cuts leave, as a chain of filters that rewrite the text would."""
    olmo3: Olmo3Config = field(default_factory=Olmo3Config)
    line_edits: LineEditConfig = field(default_factory=LineEditConfig)
    madlad: MadladConfig = field(default_factory=MadladConfig)
    bad_words: BadWordsConfig = field(default_factory=BadWordsConfig)

    def __post_init__(self) -> None:
        for family in self.families:
            if family not in FAMILIES:
                raise UsageError(f"measure.heuristics.families: no family {family!r}{nearest(family, FAMILIES)}")


Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Batch:
    """What the families of one batch share."""

    texts: pa.Array
    config: HeuristicsConfig

    @cached_property
    def features(self) -> Features:
        return featurise(self.texts)

    @cached_property
    def c4(self) -> Columns:
        return c4(self.texts, self.config.c4)

    @cached_property
    def after_c4(self) -> Features:
        return featurise(spans.apply(self.texts, [(self.c4["c4_cut"], "")]))

    def gopher(self) -> Columns:
        return gopher(self.features, self.config.gopher)

    def repetition(self) -> Columns:
        return repetition(self.features)

    def fineweb(self) -> Columns:
        return fineweb(self.after_c4 if self.config.fineweb_after_c4 else self.features, self.config.fineweb)

    def olmo3(self) -> Columns:
        config = self.config
        edits = line_edits(self.texts, config.line_edits)
        left = spans.apply(self.texts, [(edits["olmo3_cut"], "")])  # the recipe judges sentences after its edits
        return {
            **olmo3(self.features, config.olmo3),
            **olmo3_repetition(self.features),
            **edits,
            **madlad(left, config.madlad),
        }


FAMILIES: dict[str, Callable[[Batch], Columns]] = {
    "gopher": Batch.gopher,
    "repetition": Batch.repetition,
    "c4": lambda batch: batch.c4,
    "fineweb": Batch.fineweb,
    "olmo3": Batch.olmo3,
    "bad_words": lambda batch: bad_words(batch.texts, batch.config.bad_words),
}

_COUNT, _SHARE, _FLAG, _WORD, _SPANS = pa.int32(), pa.float32(), pa.bool_(), pa.string(), pa.list_(pa.int32())
_REPEATED = " ".join([*(f"top_{n}_gram" for n in (2, 3, 4)), *(f"duplicate_{n}_gram" for n in range(5, 11))])


def _named(prefix: str, *columns: tuple[pa.DataType, str]) -> list[tuple[str, pa.DataType]]:
    return [(prefix + name, kind) for kind, names in columns for name in names.split()]


LENGTHS = _named(
    "", (_COUNT, "bytes characters words lines"), (_SHARE, "mean_word_length alphabetic digits symbols whitespace"),
    (_WORD, "unmeasured"),
)  # fmt: skip
# What each family writes, known without loading a kernel.
COLUMNS: dict[str, list[tuple[str, pa.DataType]]] = {
    "gopher": _named(
        "gopher_", (_COUNT, "words"),
        (_SHARE, "mean_word_length hashes ellipses bullet_lines ellipsis_lines alphabetic_words"),
        (_COUNT, "stop_words"),
    ),
    "repetition": _named(
        "repetition_", (_SHARE, f"lines line_characters paragraphs paragraph_characters {_REPEATED}")
    ),
    "c4": _named(
        "c4_", (_COUNT, "lines lines_kept sentences lines_long_word lines_no_terminal lines_few_words"),
        (_COUNT, "lines_javascript lines_policy"), (_FLAG, "lorem_ipsum curly_bracket"), (_WORD, "stop"),
        (_COUNT, "long_lines"), (_SPANS, "cut"),
    ),
    "fineweb": _named("fineweb_", (_SHARE, "terminal_lines short_lines duplicate_characters newlines_per_word")),
    "olmo3": [
        *_named("olmo3_", (_COUNT, "words")),
        *_named("olmo3_", (_SHARE, "mean_word_length symbols bullet_lines ellipsis_lines other_words")),
        *_named("olmo3_", (_COUNT, "stop_words")),
        *_named("olmo3_repetition_", (_SHARE, f"lines line_bytes paragraphs paragraph_bytes {_REPEATED}")),
        *_named("olmo3_", (_COUNT, "lines_cut"), (_SHARE, "words_removed"), (_SPANS, "cut")),
        *_named("olmo3_", (_COUNT, "sentences listed cursed"), (_SHARE, "questionable")),
    ],
    "bad_words": [("c4_bad_words", _COUNT)],
}  # fmt: skip


def schema(config: HeuristicsConfig) -> pa.Schema:
    """The columns of heuristics()."""
    return pa.schema([*LENGTHS, *(column for family in config.families for column in COLUMNS[family])])


def heuristics(texts: pa.ChunkedArray | pa.Array, config: HeuristicsConfig) -> pa.Table:
    """One row per text: the lengths (filters.length), `unmeasured`, and the columns of each family, named after it.

    `unmeasured` says why shares are null: "empty", or "no words"; else it is null. Memory grows with the longest text,
    not with their number.
    """
    if not len(texts):  # a table without rows has the same columns
        return _batch(pa.array([""]), config).slice(0, 0)
    return pa.concat_tables([_batch(batch, config) for batch in batches(texts)])


def _batch(texts: pa.Array, config: HeuristicsConfig) -> pa.Table:
    batch = Batch(texts, config)
    columns: dict[str, Any] = length(batch.features)
    columns["unmeasured"] = _unmeasured(columns["characters"], columns["words"])
    for family in config.families:
        columns |= FAMILIES[family](batch)
    return pa.table(columns)


def _unmeasured(characters: pa.Array, words: pa.Array) -> pa.Array:
    return pc.case_when(
        pc.make_struct(pc.equal(characters, 0), pc.equal(words, 0)), "empty", "no words"
    )  # fmt: skip
