"""Semantic duplicates as annotations: documents whose states, from a frozen model, nearly agree. See dedup.semantic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.base.files import atomic_path
from gristmill.datapipe.dedup import semantic
from gristmill.datapipe.dedup.semantic import SemanticConfig
from gristmill.datapipe.stages.duplicates import PAIR, JoinPairs, matrix
from gristmill.datapipe.text.hashing import BASE
from gristmill.datapipe.workflow.stage import Bucket, Inputs, Node, Shuffle, Step

LEAST_SAMPLE = 1024
"""Documents that the mean is taken of, where there are so many."""


class Centroids(Step):
    """semantic/: mean.npy and centroids.npy, of documents drawn evenly from the run."""

    libraries = ("numpy",)  # whose random streams may differ
    name, folder, requires = "semantic_centroids", "semantic", ("states",)

    def __init__(self, config: SemanticConfig) -> None:
        self.config = config

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        known = [
            inputs.part("states", part, ("state",))["state"].is_valid().to_numpy() for part in inputs.parts["states"]
        ]
        rows = np.flatnonzero(np.concatenate([np.zeros(0, bool), *known]))
        cells = self.config.cells(len(rows))
        wanted = min(len(rows), max(LEAST_SAMPLE, cells * self.config.sample_per_cell))
        drawn = rows[np.arange(wanted) * len(rows) // max(wanted, 1)]
        sample, start = [], 0
        for part, here in zip(inputs.parts["states"], known, strict=True):
            at = drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, start + len(here))] - start
            states = inputs.part("states", part, ("state",))["state"].take(pa.array(at))
            sample.append(matrix(states).astype(np.float32))
            start += len(here)
        width = max((piece.shape[1] for piece in sample), default=1)
        vectors = np.concatenate([np.zeros((0, width), np.float32), *(piece for piece in sample if len(piece))])
        sample.clear()  # the largest thing that this step holds, and only once
        mean = semantic.mean_of(vectors)
        vectors = semantic.centred(vectors, mean)
        centroids = semantic.kmeans(vectors, cells, self.config.seed, self.config.iterations)
        for name, array in (("mean", mean), ("centroids", centroids)):
            with atomic_path(out / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        return {"documents": len(rows), "cells": len(centroids)}


class SemanticPairs(Shuffle):
    """semantic_pairs: (first, second, similarity) of rows in one cell whose similarity reaches the threshold."""

    name, folder, disposable = "semantic_pairs", "shuffles/semantic_pairs", True
    libraries = ("numpy",)
    over, columns, needs = "states", ("state",), ("semantic_centroids",)

    def __init__(self, config: SemanticConfig) -> None:
        self.config = self._semantic = config

    def setup(self, folders: Mapping[str, Path]) -> None:
        folder = folders["semantic_centroids"]
        self._mean, self._centroids = (
            np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("mean", "centroids")
        )

    def scatter(self, table: pa.Table, previous: Mapping[str, pa.Table], start: int) -> pa.Table:
        known = np.flatnonzero(table["state"].is_valid().to_numpy())
        states = table["state"].take(pa.array(known)).combine_chunks()
        cell = semantic.assign(semantic.centred(matrix(states), self._mean), self._centroids).astype(np.uint64)
        return pa.table({"key": cell * np.uint64(BASE), "cell": cell, "row": start + known, "state": states})

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        config, cell, row = self._semantic, entries["cell"].to_numpy(), entries["row"].to_numpy()
        found = []
        for number in np.unique(cell):
            members = np.flatnonzero(cell == number)
            vectors = semantic.centred(matrix(entries["state"].take(pa.array(members))), self._mean)
            pairs = semantic.alike(vectors, row[members], config.threshold, max_cell=config.max_cell, seed=config.seed)
            found.append(pa.table(list(pairs), [*PAIR, "similarity"]))
        none = np.zeros(0, np.int64)
        empty = pa.table([none, none, none.astype(np.float32)], [*PAIR, "similarity"])
        return pa.concat_tables([empty, *found])


def semantic_nodes(config: SemanticConfig) -> list[Node]:
    """semantic: documents whose states are alike; needs a stage `states` and exact_nodes()."""
    return [Centroids(config), SemanticPairs(config), JoinPairs("semantic", "semantic_pairs", ("states",))]
