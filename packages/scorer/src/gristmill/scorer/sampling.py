"""Which documents the oracle grades: a stratified sample with inverse-probability weights, and a split by id alone.

Strata are source x language x length, in a second round also nearness to a threshold. In every stratum the documents
whose ids hash lowest are taken, so each stratum holds a simple random sample and weighs N / n: Horvitz and Thompson
1952, conditional on the sizes. Order of rows does not matter, and a larger budget keeps what a smaller one had drawn.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gristmill.base.config import check_range
from gristmill.base.errors import DataError, UsageError

SPLITS = ("fit", "select", "certify", "audit")
# fit trains the heads, select chooses among them, certify carries the bound of tau_drop, audit is never chosen on.
FRACTIONS = (0.5, 0.15, 0.25, 0.1)
# Breadth serves training better than repeated grades; what decides and what is reported is worth the repetition.
REPEATED = SPLITS[1:]


@dataclass(frozen=True)
class SamplingConfig:
    length_bins: int = 3
    languages: int = 8
    """The commonest languages of a source are strata of their own; its others are one together."""
    uniform: float = 0.2
    """Share of the labels that is drawn uniformly from all documents: rates among those need no weights."""


@dataclass(frozen=True)
class Sample:
    """Row numbers in ascending order, those labelled before among them, and what each stands for."""

    indices: np.ndarray  # int64 [n]
    weights: np.ndarray  # float64 [n]; they sum to the number of documents sampled from
    uniform: np.ndarray  # bool [n]: of the part that is a uniform sample of all documents
    new: np.ndarray  # bool [n]: not labelled before


def stratified_sample(
    sources: Sequence[str],
    lengths: Sequence[int],
    n: int,
    seed: int,
    *,
    ids: Sequence[str] | None = None,
    languages: Sequence[str | None] | None = None,
    near: np.ndarray | None = None,
    near_share: float = 0.5,
    labelled: np.ndarray | None = None,
    config: SamplingConfig | None = None,
) -> Sample:
    """Draw up to `n` rows that have no label yet: evenly over sources, by the root of their size over languages.

    Without `ids` the row numbers stand for them. lengths: any measure of size (tokens, words, characters).
    near, bool [N]: see near_threshold(); so large a share of the labels that are not drawn uniformly goes there.
    labelled, bool [N]: rows with a label from earlier rounds; they are not drawn again but come back with their weight
    in all rounds together, which is exact where the strata refine the earlier ones (same documents, same config).

    A source's weights sum to its documents, unless `n` is too small to draw from each source, when the smallest are one
    stratum together.

    Raises:
        UsageError: n < 1, sequences of different lengths, or a setting out of range.
    """
    config = config or SamplingConfig()
    for name, most in (("length_bins", 2**31), ("languages", 2**31), ("uniform", 1)):
        check_range(name, getattr(config, name), name == "length_bins", most)
    check_range("near_share", near_share, 0, 1)
    names = list(range(len(sources))) if ids is None else ids
    spoken = [None] * len(sources) if languages is None else languages
    before = np.zeros(len(sources), bool) if labelled is None else np.asarray(labelled, bool)
    close = np.zeros(len(sources), bool) if near is None else np.asarray(near, bool)
    if n < 1 or len({len(part) for part in (sources, lengths, names, spoken, before, close)}) > 1:
        raise UsageError(
            f"cannot sample {n} rows from {len(sources)} sources, {len(lengths)} lengths, {len(names)} ids"
        )
    population = _Population(
        _hashes(names, seed), _codes(sources), _codes(spoken), np.asarray(lengths, np.float64), before
    )
    uniform = _uniform(population, n, config.uniform)
    drawn = before | uniform
    weights = np.zeros(len(sources))
    budget = n - int((uniform & ~before).sum())
    for rows, units in _halves(close, drawn, budget, near_share):
        _draw(population, rows, units, drawn, weights, config)
    indices = np.flatnonzero(drawn)
    return Sample(indices.astype(np.int64), weights[indices], uniform[indices], ~before[indices])


def near_threshold(
    scores: np.ndarray, sources: Sequence[str], tau: float | Mapping[str, float], closest: float = 0.2
) -> np.ndarray:
    """Mask of the share `closest` of each source's scored documents whose scores lie nearest to the threshold.

    scores: NaN where there is none. tau: one for all, or one for each source.

    Raises:
        UsageError: a source has no threshold, or `closest` is not in 0..1.
    """
    check_range("closest", closest, 0, 1)
    values = np.asarray(scores, np.float64)
    mask = np.zeros(len(values), bool)
    for rows in _grouped(np.arange(len(values)), _codes(sources)):
        source = str(sources[int(rows[0])])
        if isinstance(tau, Mapping) and source not in tau:
            raise UsageError(f"no threshold for source {source!r}; known: {', '.join(sorted(tau))}")
        at = tau[source] if isinstance(tau, Mapping) else tau
        scored = rows[np.isfinite(values[rows])]
        if len(scored):
            distance = np.abs(values[scored] - at)
            mask[scored] = distance <= np.quantile(distance, closest)
    return mask


def sample_documents(
    documents: pa.Table, n: int, seed: int, *, labelled: pa.Table | None = None, near: np.ndarray | None = None,
    config: SamplingConfig | None = None,
) -> Sample:  # fmt: skip
    """stratified_sample() of a table with columns id, source, text, and language where known.

    labelled: the label table of earlier rounds; its rows in `documents` are part of the sample, as not new.

    Raises:
        DataError: a label of a document that is not there, or there twice, so that weights would be wrong.
    """
    ids = documents["id"].to_pylist()
    before = np.zeros(len(ids), bool)
    if labelled is not None:
        rows = {identifier: row for row, identifier in enumerate(ids)}
        if len(rows) < len(ids):
            raise DataError(f"{len(ids) - len(rows)} ids are of several documents: which of them has a label?")
        for identifier in labelled["id"].to_pylist():
            if identifier not in rows:
                raise DataError(f"label of {identifier!r}: no such document; give all documents that were sampled from")
            before[rows[identifier]] = True
    languages = documents["language"].to_pylist() if "language" in documents.column_names else None
    lengths = [len(text or "") for text in documents["text"].to_pylist()]
    return stratified_sample(
        documents["source"].to_pylist(), lengths, n, seed, ids=ids, languages=languages, near=near, labelled=before,
        config=config,
    )  # fmt: skip


def join_rounds(documents: pa.Table, sample: Sample, new: pa.Table, labelled: pa.Table) -> pa.Table:
    """The labels of all rounds as one table, earlier ones first, with the weights that they have together.

    new: labels of the sample's new rows. Splits and grades of earlier labels stay what they were.
    """
    ids = np.asarray(documents["id"].to_pylist(), dtype=object)[sample.indices]
    table = pa.concat_tables([labelled, new], promote_options="default").replace_schema_metadata(new.schema.metadata)
    rows = {identifier: row for row, identifier in enumerate(ids)}
    order = [rows[identifier] for identifier in table["id"].to_pylist()]
    for name, values in (("weight", sample.weights.astype(np.float32)), ("uniform", sample.uniform)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values[order]))
    return table


def share(
    n: int, capacities: Sequence[int], start: Sequence[int] | None = None, sizes: Sequence[float] | None = None
) -> list[int]:
    """Hand out n units, each to the one that is furthest behind; earlier ones take the remainders.

    start: what each has already, beside its capacity. sizes: in what proportion they should have; evenly without.
    """
    taken = [0] * len(capacities)
    had = [0] * len(capacities) if start is None else start
    size = [1.0] * len(capacities) if sizes is None else sizes
    queue = [(had[i] / size[i], i) for i, capacity in enumerate(capacities) if capacity]
    heapq.heapify(queue)
    for _unit in range(min(n, sum(capacities))):
        i = queue[0][1]
        taken[i] += 1
        if taken[i] < capacities[i]:
            heapq.heapreplace(queue, ((had[i] + taken[i]) / size[i], i))
        else:
            heapq.heappop(queue)
    return taken


def split_of(identifier: str, salt: str = "", fractions: Sequence[float] = FRACTIONS) -> str:
    """fit, select, certify or audit, by a hash of the id: adding documents moves no document to another split."""
    digest = hashlib.sha256(f"{salt}\0{identifier}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64 * sum(fractions)
    for name, edge in zip(SPLITS, np.cumsum(fractions)):
        if position < edge:
            return name
    return SPLITS[-1]


def repeated(splits: Sequence[str], times: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers [M] and repeat numbers [M] of all gradings: once each, and `times` in the splits REPEATED.

    All first gradings come first, in order, so that breadth is there before depth is paid for.

    Raises:
        UsageError: times < 1.
    """
    if times < 1:
        raise UsageError(f"repeats is {times}; it must be at least 1 (1: every document is graded once)")
    again = np.flatnonzero([split in REPEATED for split in splits])
    rows = np.concatenate([np.arange(len(splits)), *[again] * (times - 1)]).astype(np.int64)
    counts = [len(splits), *[len(again)] * (times - 1)]
    return rows, np.repeat(np.arange(times), counts).astype(np.int32)


@dataclass(frozen=True)
class _Population:
    hashes: np.ndarray
    sources: np.ndarray  # int codes in the order of the names
    languages: np.ndarray
    lengths: np.ndarray
    labelled: np.ndarray


def _hashes(names: Sequence[object], seed: int) -> np.ndarray:
    salt = f"{seed}\0"
    digests = (hashlib.blake2b(f"{salt}{name}".encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _codes(values: Sequence[str | None]) -> np.ndarray:
    """0, 1, ... in the order of the values' names; None is the empty name."""
    encoded = pa.array([value or "" for value in values], pa.string()).dictionary_encode()
    rank = np.argsort(np.argsort(np.asarray(encoded.dictionary.to_pylist(), dtype=object)))
    return rank[encoded.indices.to_numpy()] if len(values) else np.zeros(0, np.int64)


def _uniform(population: _Population, n: int, part: float) -> np.ndarray:
    """Mask of the documents with the lowest hashes of all: a uniform sample, whoever of them has a label already."""
    order = np.argsort(population.hashes, kind="stable")
    wanted = int(part * (n + population.labelled.sum()))
    affordable = int(np.searchsorted(np.cumsum(~population.labelled[order]), n, side="right"))
    mask = np.zeros(len(order), bool)
    mask[order[: min(wanted, affordable)]] = True
    return mask


def _halves(close: np.ndarray, drawn: np.ndarray, budget: int, part: float) -> list[tuple[np.ndarray, int]]:
    """Rows and budget of the documents near the threshold and of the others; what one cannot use the other gets."""
    rows = np.arange(len(close))
    units = min(round(part * budget), budget - 1)
    if not close.any() or close.all() or units < 1:
        return [(rows, budget)]
    free_near, free_other = int((close & ~drawn).sum()), int((~close & ~drawn).sum())
    other = min(budget - min(units, free_near), free_other)
    return [(rows[close], min(budget - other, free_near)), (rows[~close], other)]


def _draw(
    population: _Population, rows: np.ndarray, budget: int, drawn: np.ndarray, weights: np.ndarray,
    config: SamplingConfig,
) -> None:  # fmt: skip
    """Draw `budget` more of `rows` and set the weight of each that is drawn by now. Changes drawn and weights."""
    sources = _merged(_grouped(rows, population.sources[rows]), population.labelled, budget)
    for members, units in zip(sources, _shares(sources, drawn, budget, even=True)):
        cells = _merged(_cells(population, members, config), population.labelled, units)
        for cell, more in zip(cells, _shares(cells, drawn, units, even=False)):
            free = cell[~drawn[cell]]
            drawn[free[np.argsort(population.hashes[free], kind="stable")[:more]]] = True
            taken = cell[drawn[cell]]
            weights[taken] = len(cell) / max(len(taken), 1)


def _cells(population: _Population, rows: np.ndarray, config: SamplingConfig) -> list[np.ndarray]:
    """Rows of one source by language, then by quantiles of length; neighbours are alike."""
    codes, counts = np.unique(population.languages[rows], return_counts=True)
    common = codes[np.lexsort((codes, -counts))][: config.languages]
    spoken = population.languages[rows]
    cells: list[np.ndarray] = []
    for members in _grouped(rows, np.where(np.isin(spoken, common), spoken, len(population.languages))):
        ordered = members[np.lexsort((population.hashes[members], population.lengths[members]))]
        cells += [part for part in np.array_split(ordered, min(config.length_bins, len(ordered))) if len(part)]
    return cells


def _grouped(rows: np.ndarray, codes: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(codes, kind="stable")
    edges = np.flatnonzero(np.diff(codes[order])) + 1
    return [part for part in np.split(rows[order], edges) if len(part)]


def _merged(groups: list[np.ndarray], labelled: np.ndarray, budget: int) -> list[np.ndarray]:
    """Neighbours put together, smallest first, until each that has no label yet can get one.

    Before the draw, so that what is drawn stands for a stratum that was fixed without a look at it.
    """
    groups = list(groups)
    empty = [not labelled[group].any() for group in groups]
    while sum(empty) > max(budget, all(empty)):
        i = min((i for i in range(len(groups)) if empty[i]), key=lambda i: len(groups[i]))
        j = min((j for j in (i - 1, i + 1) if 0 <= j < len(groups)), key=lambda j: len(groups[j]))
        low, high = sorted((i, j))
        groups[low : high + 1] = [np.concatenate([groups[low], groups[high]])]
        empty[low : high + 1] = [empty[low] and empty[high]]
    return groups


def _shares(groups: list[np.ndarray], drawn: np.ndarray, budget: int, even: bool) -> list[int]:
    """Evenly over sources; over languages by the root of their size (Bankier 1988), as labels of them are noisy."""
    had = [int(drawn[group].sum()) for group in groups]
    sizes = [1.0 if even else len(group) ** 0.5 for group in groups]
    return share(budget, [len(group) - d for group, d in zip(groups, had)], had, sizes)
