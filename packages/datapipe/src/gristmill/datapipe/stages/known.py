"""Documents that a published corpus has already: each is looked up in a saved index of signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError
from gristmill.datapipe.dedup.index import SignatureIndex, identity_of, recipe_of, signature_of
from gristmill.datapipe.workflow.stage import Stage


@dataclass(frozen=True)
class KnownConfig:
    index: str = ""
    """The folder that `datapipe index` wrote."""
    threshold: float = 0.7
    """Least estimated Jaccard similarity. One below that for which the index was made finds fewer than it could."""

    def __post_init__(self) -> None:
        check_range("known.threshold", self.threshold, 0, 1)


class Known(Stage):
    """known: similarity to the most alike document of an index, and that document's id; null where none is alike.

    What counts is index.json, which holds the hashes of the index's other files.
    """

    name, folder, version = "known", "annotations/known", 1
    columns, requires = (), ("sketch",)

    def __init__(self, config: KnownConfig) -> None:
        if not config.index:
            raise UsageError("known.index is missing: the folder of an index; datapipe index makes one")
        self._index_folder, self._threshold = Path(config.index).absolute(), config.threshold
        self.config = {"threshold": config.threshold}  # the index counts by its content

    def files(self) -> Sequence[Path]:
        return (self._index_folder / "index.json",)

    def writes(self) -> pa.Schema:
        return pa.schema([("similarity", pa.float32()), ("document", pa.string())])

    def setup(self, folders: Mapping[str, Path]) -> None:
        self._index = SignatureIndex.open(self._index_folder)

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        sketch, index = previous["sketch"], self._index
        index.recipe.refuse(recipe_of(sketch.schema, "this run"), "this run", self._index_folder)
        entry, similarity = index.lookup(signature_of(sketch, index.recipe), identity_of(sketch), self._threshold)
        missing = entry < 0
        places = pa.array(np.cumsum(~missing) - 1, mask=missing)
        return pa.table(
            {
                "similarity": pa.array(similarity, mask=missing),
                "document": index.ids(entry[~missing]).take(places).cast(pa.string()),
            }
        )
