"""Documents with planted duplicates for bench dedup: pairs of a known likeness, and a corpus of any size as Parquet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gristmill.datapipe.arrow import compute as pc

NGRAM = 5
MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Pairs:
    """Each text of `left` and the one of `right` in its place have this Jaccard similarity of word n-grams."""

    left: pa.Array
    right: pa.Array
    jaccard: NDArray[np.float64]


def vocabulary(texts: Sequence[str]) -> pa.Array:
    """The distinct words of the texts that every tokenizer takes for one."""
    return pa.array(sorted({word for text in texts for word in re.findall(r"\b[a-z]{2,12}\b", text)}))


def planted_pairs(words: pa.Array, pairs: int, seed: int = 0, at_once: int = 1000) -> Iterator[Pairs]:
    """Documents of 200 to 400 random words, each with a second one in which some words are others.

    Likeness is spread from 0.48 to 0.97, and counted from the sets of n-grams that came out.
    """
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 2**64, len(words), dtype=np.uint64)
    for start in range(0, pairs, at_once):
        shape = min(at_once, pairs - start), int(generator.integers(200, 400))
        left = generator.integers(0, len(words), shape)
        wanted = generator.uniform(0.48, 0.97, (shape[0], 1))
        # A word that stands alone changes NGRAM n-grams on each side.
        changes = np.round((1 - wanted) / (1 + wanted) * (shape[1] - NGRAM + 1) / NGRAM)
        changed = generator.random(shape).argsort(axis=1).argsort(axis=1) < changes
        right = np.where(changed, generator.integers(0, len(words), shape), left)
        sets = [_ngrams(codes[side]) for side in (left, right)]
        sizes, union = [_distinct(side) for side in sets], _distinct(np.concatenate(sets, axis=1))
        yield Pairs(_joined(words, left), _joined(words, right), (sum(sizes) - union) / union)


def _ngrams(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[documents, n-grams]: a number for each, from those of its words."""
    count = codes.shape[1] - NGRAM + 1
    value = np.zeros((len(codes), count), np.uint64)
    for at in range(NGRAM):
        value = value * MIX + codes[:, at : at + count]
    return value


def _distinct(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[documents] how many different ones each row holds."""
    return 1 + (np.diff(np.sort(values, axis=1), axis=1) != 0).sum(axis=1)


def _joined(words: pa.Array, numbers: NDArray[np.int64]) -> pa.Array:
    ends = np.arange(len(numbers) + 1, dtype=np.int32) * numbers.shape[1]
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(ends), words.take(pa.array(numbers.reshape(-1)))), " ")


# A corpus of any size -------------------------------------------------------------------------------------------------

FRAGMENT = 10
"""Words. A document is 6 to 16 fragments of real text in an order of its own."""
COPIES, VARIANTS, SAME = 0.08, 0.08, 0.01
"""Shares of documents that copy an earlier one, that copy one but for a fragment, and that are all one and the same."""
_OTHER = np.int64(2**40)
"""Above every document's number: where the fragments of variants are drawn from."""


def fragments(texts: Sequence[str]) -> pa.Array:
    """The texts in distinct pieces of FRAGMENT words."""
    pieces = {
        " ".join(words[at : at + FRAGMENT])
        for words in (text.split() for text in texts)
        for at in range(0, len(words) - FRAGMENT + 1, FRAGMENT)
    }
    return pa.array(sorted(pieces))


def write_corpus(pieces: pa.Array, folder: Path, files: int, documents: int) -> list[int]:
    """`files` Parquet files of `documents` each. Returns how many of each file's documents are exact copies of one
    before them (the first of all that are the same counts, too)."""
    folder.mkdir(parents=True)
    generator, at_once = np.random.default_rng(0), -(-documents // 25)  # copies are of earlier batches
    origins = np.zeros(files * documents, np.int64)  # whose fragments a document has
    schema, copies = pa.schema([("id", pa.string()), ("text", pa.string())]), []
    for number in range(files):
        copied = 0
        with pq.ParquetWriter(folder / f"corpus{number}.parquet", schema, compression="zstd") as writer:
            for start in range(number * documents, (number + 1) * documents, at_once):
                rows = np.arange(start, min(start + at_once, (number + 1) * documents))
                chance, earlier = generator.random(len(rows)), generator.integers(0, max(start, 1), len(rows))
                same = chance < SAME
                copy = (chance >= SAME) & (chance < SAME + COPIES) & (start > 0)
                variant = (chance >= SAME + COPIES) & (chance < SAME + COPIES + VARIANTS) & (start > 0)
                origins[rows] = np.where(same, _OTHER - 1, np.where(copy | variant, origins[earlier], rows))
                texts = _texts(pieces, origins[rows], np.where(variant, rows, -1))
                ids = pa.array(rows).cast(pa.string())
                writer.write_table(pa.table({"id": ids, "text": texts}, schema=schema))
                copied += int((same | copy).sum())
        copies.append(copied)
    return copies


def _texts(pieces: pa.Array, origin: NDArray[np.int64], variant: NDArray[np.int64]) -> pa.Array:
    """Documents of their origins' fragments; a variant (>= 0) has another fragment somewhere, or one more."""
    lengths = 6 + (_hash(origin, -1) % np.uint64(11)).astype(np.int64)
    place = (_hash(variant, -1) % (lengths + 1).astype(np.uint64)).astype(np.int64)
    longer = (variant >= 0) & (place == lengths)
    lengths = lengths + longer
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    document = np.repeat(np.arange(len(lengths)), lengths)
    at = np.arange(ends[-1]) - ends[document]
    drawn_from = np.where(
        (variant[document] >= 0) & (at == place[document]), _OTHER + variant[document], origin[document]
    )
    chosen = (_hash(drawn_from, at) % np.uint64(len(pieces))).astype(np.int64)
    lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pieces.take(pa.array(chosen)))
    return pc.binary_join(lists, " ")


def _hash(first: NDArray[np.int64], second: NDArray[np.int64] | int) -> NDArray[np.uint64]:
    """A random number for each pair of numbers: SplitMix64."""
    value = (first.astype(np.uint64) << np.uint64(20)) + np.asarray(second).astype(np.uint64)
    value = (value + MIX) * MIX
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
