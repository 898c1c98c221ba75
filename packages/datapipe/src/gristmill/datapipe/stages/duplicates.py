"""Duplicates as annotations: documents of equal words or of one address, and documents that are nearly equal.

Rows meet in shuffles, so that no worker holds more than a bucket: a cluster is the same however the run is cut into
partitions and however many work on it. It is named by its first row; the policy decides which member stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError
from gristmill.datapipe.dedup import clusters, jaccard, minhash, urls
from gristmill.datapipe.dedup.clusters import Components, candidate_pairs, distinct_pairs, groups
from gristmill.datapipe.dedup.index import SKETCH_COLUMNS, sketch_metadata
from gristmill.datapipe.dedup.minhash import Bands, MinHashConfig
from gristmill.datapipe.stages.measure import UNICODE
from gristmill.datapipe.text.buffers import batches
from gristmill.datapipe.text.features import featurise
from gristmill.datapipe.workflow.aligned import write_aligned
from gristmill.datapipe.workflow.stage import Bucket, Inputs, Node, Shuffle, Stage, Step

PAIR = ["first", "second"]
"""Rows of the run, first < second."""


class Sketch(Stage):
    """sketch: the 128-bit identity of the words and the MinHash signature."""

    name, folder, version = "sketch", "annotations/sketch", 3
    libraries = ("pyarrow",)

    def __init__(self, config: MinHashConfig) -> None:
        self.config = {"minhash": config, **UNICODE}
        self._minhash = config

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        texts = table["text"]
        identity = np.empty((len(texts), 2), np.uint64)
        signature = np.empty((len(texts), self._minhash.permutations), np.uint32)
        start = 0
        for batch in batches(texts):
            features, here = featurise(batch), slice(start, start + len(batch))
            identity[here], signature[here] = features.identity, minhash.signatures(features, self._minhash)
            start += len(batch)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(signature.reshape(-1)), self._minhash.permutations)
        columns = [pa.array(identity[:, 0]), pa.array(identity[:, 1]), flat]
        return pa.table(columns, [*SKETCH_COLUMNS], metadata=sketch_metadata(self._minhash))


# Equal by a key -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keyed:
    """What makes rows equal: a 128-bit key made of some columns."""

    name: str
    over: str
    columns: tuple[str, ...]
    keys: Callable[[pa.Table], tuple[NDArray[np.uint64], NDArray[np.bool_]]]
    """(keys [n, 2], known [n]) of a table; a row without a key is equal to no other."""
    version: int = 1
    libraries: tuple[str, ...] = ()


def _identities(table: pa.Table) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    keys = np.stack([table[name].to_numpy() for name in SKETCH_COLUMNS[:2]], axis=1)
    return keys, np.ones(len(keys), bool)


def _addresses(table: pa.Table) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    canonical = urls.canonical(table["url"])
    return urls.keys(canonical), canonical.is_valid().to_numpy(zero_copy_only=False)


EXACT = Keyed("exact", "sketch", SKETCH_COLUMNS[:2], _identities)
SAME_URL = Keyed("same_url", "documents", ("url",), _addresses, urls.VERSION, ("ada-url",))


class Groups(Shuffle):
    """NAME_groups: of each key in a partition its first row there (row), the first of the run (cluster), and how many.

    A partition sends each key once: a million equal documents are as many entries as there are partitions.
    """

    disposable = True

    def __init__(self, keyed: Keyed) -> None:
        self.name, self.folder = f"{keyed.name}_groups", f"shuffles/{keyed.name}_groups"
        self.over, self.columns, self.libraries = keyed.over, keyed.columns, keyed.libraries
        self.config = {"keys": keyed.version}
        self._keyed = keyed

    def scatter(self, table: pa.Table, previous: Mapping[str, pa.Table], start: int) -> pa.Table:
        keys, known = self._keyed.keys(table)
        rows = np.flatnonzero(known)
        first, group = groups(keys[rows])
        ours = keys[rows[first]]
        count = np.bincount(group, minlength=len(first))
        return pa.table({"key": ours[:, 0], "low": ours[:, 1], "row": start + rows[first], "size": count})

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        row = entries["row"].to_numpy()
        first, group = groups(np.stack([entries["key"].to_numpy(), entries["low"].to_numpy()], axis=1))
        size = np.bincount(group, entries["size"].to_numpy(), len(first)).astype(np.int32)
        return pa.table({"row": row, "cluster": row[first][group], "size": size[group]})


class Clusters(Shuffle):
    """NAME: cluster (first row of the run with this key), size."""

    by, onto, aligned = "row", "documents", True

    def __init__(self, keyed: Keyed) -> None:
        self.name, self.folder = keyed.name, f"annotations/{keyed.name}"
        self.over, self.beside, self.libraries = f"{keyed.name}_groups", {keyed.over: keyed.columns}, keyed.libraries
        self.config = {"keys": keyed.version}
        self._keyed = keyed

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        keys, known = self._keyed.keys(previous[self._keyed.over])
        rows = np.flatnonzero(known)
        first, group = groups(keys[rows])
        order = np.argsort(entries["row"].to_numpy())
        place = order[np.searchsorted(entries["row"].to_numpy()[order], bucket.start + rows[first])][group]
        cluster, size = bucket.start + np.arange(bucket.rows), np.ones(bucket.rows, np.int32)
        cluster[rows], size[rows] = entries["cluster"].to_numpy()[place], entries["size"].to_numpy()[place]
        return pa.table({"cluster": cluster, "size": size})

    def counts(self, table: pa.Table, bucket: Bucket) -> dict[str, int]:
        return _counted(table["cluster"].to_numpy(), bucket.start)


def exact_nodes() -> list[Node]:
    """exact: documents of the same words and symbols; case, space and line breaks do not count."""
    return [Groups(EXACT), Clusters(EXACT)]


def url_nodes() -> list[Node]:
    """same_url: documents of one address; see dedup.urls for what counts as one."""
    return [Groups(SAME_URL), Clusters(SAME_URL)]


# Nearly equal ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NearConfig:
    minhash: MinHashConfig = field(default_factory=MinHashConfig)
    threshold: float = 0.7
    """Jaccard similarity of word n-grams from which two documents count as near-duplicates."""
    bands: int = 0
    rows: int = 0
    """Bands of rows in which candidates meet; 0: those that miss few pairs above the threshold."""
    verify: Literal["exact", "signature"] = "exact"
    """How candidates are compared: by their n-grams, or by the share of their signatures' equal positions. That is an
    estimate (standard deviation .045 near .7), and of many candidates below the threshold some pass it."""

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, 0, 1)
        check_range("bands", self.bands)
        check_range("rows", self.rows)
        if (self.bands > 0) != (self.rows > 0):
            raise UsageError(f"bands, rows: {self.bands} and {self.rows}: give both, or neither")
        if self.bands * self.rows > self.minhash.permutations:
            raise UsageError(
                f"bands, rows: {self.bands} x {self.rows} is more than the {self.minhash.permutations} permutations"
            )

    @property
    def banding(self) -> Bands:
        chosen = Bands(self.bands, self.rows)
        return chosen if self.bands else minhash.bands_for(self.threshold, self.minhash.permutations)


class NearCandidates(Shuffle):
    """near_candidates: pairs (first, second) of rows that share a band key; of equal documents the first alone."""

    name, folder, disposable = "near_candidates", "shuffles/near_candidates", True
    over, columns, requires = "sketch", ("signature",), {"exact": ("cluster",)}

    def __init__(self, config: NearConfig) -> None:
        self.config = self._bands = config.banding

    def scatter(self, table: pa.Table, previous: Mapping[str, pa.Table], start: int) -> pa.Table:
        signature = matrix(table["signature"])
        rows = start + np.arange(len(signature))
        wanted = (previous["exact"]["cluster"].to_numpy() == rows) & minhash.has_words(signature)
        keys = minhash.band_keys(signature[wanted], self._bands)
        return pa.table({"key": keys.reshape(-1), "row": np.repeat(rows[wanted], self._bands.bands)})

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table(list(candidate_pairs(entries["key"].to_numpy(), entries["row"].to_numpy())), PAIR)


class _Compared(Shuffle):
    """What the two halves of a comparison share: where the documents' evidence lies."""

    onto, disposable = "sketch", True
    libraries = ("pyarrow",)

    def __init__(self, config: NearConfig) -> None:
        self.config = {"verify": config.verify, "ngram": config.minhash.ngram, **UNICODE}
        self._exact, self._minhash = config.verify == "exact", config.minhash
        self.beside = {"documents": ("text",)} if self._exact else {"sketch": ("signature",)}

    def evidence(self, previous: Mapping[str, pa.Table], rows: NDArray[np.int64]) -> pa.Array:
        """The sets of n-grams (their hashes, ascending) or the signatures of some rows of a partition."""
        if not self._exact:
            return previous["sketch"]["signature"].combine_chunks().take(pa.array(rows))
        own, which = np.unique(rows, return_inverse=True)
        texts = previous["documents"]["text"].take(pa.array(own))
        sets = [jaccard.shingle_sets(featurise(batch), self._minhash) for batch in batches(texts)]
        values = np.concatenate([np.zeros(0, np.uint32), *(_upper(values) for values, _ in sets)])
        lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(offsets) for _, offsets in sets)])
        return pa.LargeListArray.from_arrays(pa.array(np.cumsum(lengths)), pa.array(values)).take(pa.array(which))


class NearEvidence(_Compared):
    """near_evidence: each pair of candidates once, with what its first document is compared by."""

    name, folder, over, by = "near_evidence", "shuffles/near_evidence", "near_candidates", "first"

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        first, second = distinct_pairs(entries["first"].to_numpy(), entries["second"].to_numpy())
        evidence = self.evidence(previous, first - bucket.start)
        return pa.table([pa.array(first), pa.array(second), evidence], [*PAIR, "evidence"])


class NearPairs(_Compared):
    """near_pairs: the pairs (first, second) whose similarity reaches the threshold."""

    name, folder, over, by = "near_pairs", "shuffles/near_pairs", "near_evidence", "second"

    def __init__(self, config: NearConfig) -> None:
        super().__init__(config)
        self.config = {**self.config, "threshold": config.threshold}
        self._threshold = config.threshold

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        theirs = entries["evidence"].combine_chunks()
        ours = self.evidence(previous, entries["second"].to_numpy() - bucket.start)
        similarity = _jaccard(theirs, ours) if self._exact else _agreement(theirs, ours)
        enough = np.flatnonzero(similarity >= np.float32(self._threshold))
        pairs = entries.select(PAIR).take(pa.array(enough))
        return pairs.append_column("similarity", pa.array(similarity[enough]))


class JoinPairs(Step):
    """NAME: cluster, size, similarity (the largest to a member that it was compared with; null where it has none)."""

    def __init__(self, name: str, pairs: str, made_of: tuple[str, ...] = ()) -> None:
        """`made_of`: row-aligned annotations that the pairs come of, whose marks of quarantined documents go along."""
        self.name, self.folder, self.config = name, f"annotations/{name}", None
        self.requires = ("exact", pairs, *made_of)
        self._pairs = pairs

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        components = Components(inputs.table("exact", ("cluster",))["cluster"].to_numpy().copy())
        alike = np.where(inputs.table("exact", ("size",))["size"].to_numpy() > 1, np.float32(1), np.float32(-1))
        for part in inputs.parts[self._pairs]:
            pairs = inputs.part(self._pairs, part)
            first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()
            components.join(first, second)
            for side in (first, second):
                np.maximum.at(alike, side, pairs["similarity"].to_numpy())
        cluster = components.clusters()
        columns = {"cluster": cluster, "size": clusters.sizes(cluster), "similarity": pa.array(alike, mask=alike < 0)}
        write_aligned(inputs, "exact", out, columns)
        return {"documents": len(cluster), **_counted(cluster, 0)}


def near_nodes(config: NearConfig) -> list[Node]:
    """near: documents whose word n-grams are alike, by MinHash and locality-sensitive hashing; needs exact_nodes()."""
    return [NearCandidates(config), NearEvidence(config), NearPairs(config), JoinPairs("near", "near_pairs")]


def duplicate_nodes(config: NearConfig) -> list[Node]:
    """sketch, exact and near: what every pipeline has."""
    return [Sketch(config.minhash), *exact_nodes(), *near_nodes(config)]


def matrix(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """[n, size] of a column of lists of one size without nulls; a view where it is in one piece."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy().reshape(len(array), array.type.list_size)


def _upper(values: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Half of each hash: enough to tell the n-grams of two documents apart."""
    return (values >> np.uint64(32)).astype(np.uint32)


def _agreement(left: pa.Array, right: pa.Array) -> NDArray[np.float32]:
    """[pairs] the share of equal positions of two columns of signatures."""
    ours, theirs = matrix(left), matrix(right)
    out = np.empty(len(ours), np.float32)
    for start in range(0, len(ours), 65536):  # bounded: 65,536 pairs of 112 positions are 59 MB
        piece = slice(start, start + 65536)
        out[piece] = (ours[piece] == theirs[piece]).mean(axis=1)
    return out


def _jaccard(left: pa.Array, right: pa.Array) -> NDArray[np.float32]:
    sides = [(side.flatten().to_numpy(), np.asarray(side.offsets) - side.offsets[0].as_py()) for side in (left, right)]
    return jaccard.jaccard(*sides[0], *sides[1])


def _counted(cluster: NDArray[np.int64], start: int) -> dict[str, int]:
    return {"duplicates": int((cluster != start + np.arange(len(cluster))).sum())}
