"""Evaluation items in the documents, as annotations; see contamination.search for what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from gristmill.datapipe.contamination.eval_sets import EvalSetsConfig, is_index, locate, set_name
from gristmill.datapipe.contamination.fields import FieldNames
from gristmill.datapipe.contamination.hashed import read_sets
from gristmill.datapipe.contamination.index import build
from gristmill.datapipe.contamination.search import ContaminationConfig, Searcher
from gristmill.datapipe.stages.measure import UNICODE, by_batch
from gristmill.datapipe.text import spans
from gristmill.datapipe.workflow.stage import Stage

_SHARE, _WORD = pa.float32(), pa.string()


class Contamination(Stage):
    """contamination: score, ngram_13, ngram_8, items, set, item, spans, spans_13."""

    name, folder, version = "contamination", "annotations/contamination", 1
    libraries = ("pyarrow",)  # its normal form of the items

    def __init__(self, sets: EvalSetsConfig, config: ContaminationConfig | None = None) -> None:
        """Raises UsageError where a set is not there."""
        self._files = locate(sets.sets)
        self._names = FieldNames(sets.question, sets.answer, sets.passage)
        self._config = config or ContaminationConfig()
        # The sets count by content and name; an index holds its names.
        names = [set_name(path) for path in self._files if not is_index(path)]
        self.config = {"contamination": self._config, "fields": self._names, "sets": names, **UNICODE}

    def files(self) -> Sequence[Path]:
        return self._files

    def setup(self, folders: Mapping[str, Path]) -> None:
        self._searcher = Searcher(build(read_sets(self._files, self._names).table), self._config)

    def writes(self) -> pa.Schema:
        numbers = [("score", _SHARE), ("ngram_13", _SHARE), ("ngram_8", _SHARE), ("items", pa.int32())]
        named = [("set", _WORD), ("item", _WORD)]
        return pa.schema([*numbers, *named, ("spans", spans.TYPE), ("spans_13", spans.TYPE)])

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return by_batch(table, lambda rows: self._searcher.measure(rows["text"]))
