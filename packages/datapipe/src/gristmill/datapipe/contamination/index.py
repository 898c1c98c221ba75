"""The two-tier index over evaluation items: which n-grams there are at all, then which items hold them.

Nearly every n-gram of a training document is in no item, so the first tier answers that alone: a bit array that fits
the cache, then a table of hashes. The second lists each n-gram's items with its weight. After decon (allenai/decon,
src/detect/reference_index.rs): rare n-grams weigh more (inverse document frequency), and those of very many items are
no evidence. Unlike there, weights are whole numbers, so that an item found whole scores exactly 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.datapipe.contamination.hashed import ANSWER_SIZE
from gristmill.datapipe.contamination.ngrams import longer
from gristmill.datapipe.text.hashing import hash_table
from gristmill.datapipe.text.kernel import kernel

HOT = 500
"""An n-gram of more items starts no match and weighs nothing: it bounds the work per word of a hostile document."""
COMMON = 10
"""Of n-grams of 8 and 13 words, those in more questions count as boilerplate, not as overlap; as GPT-3 (Brown et al.
2020, appendix C) sets n-grams aside that more than 10 training documents hold."""
_BITS_PER_NGRAM = 16
_WEIGHT_UNIT = 1 << 20

FACTS = np.dtype(
    [
        ("question_words", np.int64), ("answer_words", np.int64), ("passage_words", np.int64),
        ("answer_size", np.int64),  # words of the n-grams that the answer is found by
        ("ngrams", np.int64),  # different ones of the question that weigh something
        ("question", np.int64), ("answer", np.int64), ("passage", np.int64),  # sums of weights
        ("eights", np.int64), ("thirteens", np.int64),  # different ones that count
    ]
)  # fmt: skip


Lists = tuple[NDArray[np.uint64], NDArray[np.int64]]
"""Hashes by item: item i has values[offsets[i] : offsets[i + 1]]."""


class Inverted(NamedTuple):
    """N-gram -> items: slots of an open-addressing table hold the number of an n-gram, whose items are
    items[starts[number] : starts[number + 1]], ascending."""

    keys: NDArray[np.uint64]
    numbers: NDArray[np.int32]
    starts: NDArray[np.int64]
    items: NDArray[np.int32]
    weights: NDArray[np.int64]
    """By n-gram; 0 marks what is hot."""


class Forward(NamedTuple):
    """Item -> n-grams: item i has the different hashes ngrams[starts[i] : starts[i + 1]], ascending."""

    starts: NDArray[np.int64]
    ngrams: NDArray[np.uint64]
    weights: NDArray[np.int64]


class Tiers(NamedTuple):
    """What kernels read."""

    bits: NDArray[np.uint8]
    """Bit h >> shift of every 5-gram h: an n-gram whose bit is 0 is in no question or answer."""
    questions: Inverted
    """5-grams of questions and answers; only questions are listed as items."""
    eights: Inverted
    thirteens: Inverted
    """Of questions and answers; without what is common."""
    answers: Forward
    passages: Forward
    facts: NDArray[np.void]
    """By item, of FACTS."""


@dataclass(frozen=True)
class Index:
    sets: pa.Array
    ids: pa.Array
    """By item, strings."""
    tiers: Tiers

    def __len__(self) -> int:
        return len(self.ids)


def build(table: pa.Table) -> Index:
    """The index over the items of a table (hashed.SCHEMA)."""
    questions, answers, short, passages = (
        _lists(table[name]) for name in ("question", "answer", "answer_short", "passage")
    )
    groups = _questions(*questions)
    grams = [_flat(*part) for part in (questions, answers)]
    every = _distinct(np.concatenate([values for values, _ in grams]))
    eights, thirteens = (_overlaps(questions, answers, size, groups) for size in (8, 13))
    inverted = _inverted(*grams[0], groups, every=every)
    forward = _forward(*short, groups), _forward(*passages, groups)
    facts = np.zeros(len(table), FACTS)
    for name in ("question_words", "answer_words", "passage_words"):
        facts[name] = table[name].to_numpy()
    facts["answer_size"] = np.minimum(facts["answer_words"], ANSWER_SIZE)
    facts["ngrams"] = np.bincount(inverted.items, minlength=len(table))
    facts["question"] = _sums(inverted.items, np.repeat(inverted.weights, np.diff(inverted.starts)), len(table))
    for name, part in zip(("answer", "passage"), forward):
        facts[name] = _sums(np.repeat(np.arange(len(table)), np.diff(part.starts)), part.weights, len(table))
    facts["eights"] = np.bincount(eights.items, minlength=len(table))
    facts["thirteens"] = np.bincount(thirteens.items, minlength=len(table))
    sets, ids = (table[name].combine_chunks() for name in ("set", "id"))
    return Index(sets, ids, Tiers(_bits(every), inverted, eights, thirteens, *forward, facts))


def _lists(column: pa.ChunkedArray) -> Lists:
    lists = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    lengths = lists.value_lengths().to_numpy()
    return lists.flatten().to_numpy(), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _flat(values: NDArray[np.uint64], offsets: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(hashes, the item of each)."""
    return values, np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _questions(values: NDArray[np.uint64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """[items] the same number where the question is: rows of one question with other answers count once."""
    known: dict[bytes, int] = {}
    numbers = np.empty(len(offsets) - 1, np.int64)
    for item in range(len(numbers)):
        key = values[offsets[item] : offsets[item + 1]].tobytes() or item.to_bytes(7, "little")
        numbers[item] = known.setdefault(key, len(known))
    return numbers


def _weights(numbers: NDArray[np.int64], count: int, groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """(weight, questions that hold it) of each of `count` n-grams; numbers[k] is in a question of groups[k]."""
    total = int(groups.max(initial=0)) + 1
    frequency = np.bincount(_distinct(numbers * total + groups) // total, minlength=count)
    # decon's logarithm of (items / items with it), one item added so that a single one is not worth nothing
    weights = np.rint(_WEIGHT_UNIT * np.log((total + 1) / np.maximum(frequency, 1)))
    return weights.astype(np.int64), frequency


def _inverted(
    hashes: NDArray[np.uint64],
    items: NDArray[np.int64],
    groups: NDArray[np.int64],
    every: NDArray[np.uint64] | None = None,
    common: int | None = None,
) -> Inverted:
    """Of the n-grams `hashes`, in `items`, each once; `every` (ascending) may hold more than occur there."""
    every = _distinct(hashes) if every is None else every
    number, item = np.divmod(_distinct(np.searchsorted(every, hashes) * len(groups) + items), len(groups))
    weights, frequency = _weights(number, len(every), groups[item])
    held = np.bincount(number, minlength=len(every))
    if common is not None:
        kept = frequency <= common
        renumbered = np.cumsum(kept) - 1
        chosen = kept[number]
        number, item = renumbered[number[chosen]], item[chosen]
        every, weights, held = every[kept], weights[kept], held[kept]
    else:
        chosen = held[number] <= HOT
        number, item = number[chosen], item[chosen]
        weights[held > HOT] = 0
        held[held > HOT] = 0
    keys, numbers = hash_table(every, np.arange(len(every), dtype=np.int32))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(held, dtype=np.int64)])
    return Inverted(keys, numbers, starts, item.astype(np.int32), weights)


def _overlaps(questions: Lists, answers: Lists, size: int, groups: NDArray[np.int64]) -> Inverted:
    """The n-grams of `size` words of questions and of answers; none spans both."""
    (asked, asking), (told, telling) = (_flat(*longer(*part, size)) for part in (questions, answers))
    return _inverted(np.concatenate([asked, told]), np.concatenate([asking, telling]), groups, common=COMMON)


def _forward(values: NDArray[np.uint64], offsets: NDArray[np.int64], groups: NDArray[np.int64]) -> Forward:
    hashes, items = _flat(values, offsets)
    every = _distinct(hashes)
    found = items * max(1, len(every)) + np.searchsorted(every, hashes)
    item, number = np.divmod(_distinct(found), max(1, len(every)))
    weights, _ = _weights(number, len(every), groups[item])
    starts = np.searchsorted(item, np.arange(len(groups) + 1))
    return Forward(starts, every[number], weights[number])


def _distinct(values: NDArray[Any]) -> NDArray[Any]:
    """The different values, ascending. Sorting is many times faster than what numpy.unique does (2.3)."""
    ordered = np.sort(values)
    return ordered[np.concatenate([np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]])]


def _sums(items: NDArray[np.int64] | NDArray[np.int32], weights: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    sums = np.zeros(count, np.int64)
    np.add.at(sums, items, weights)
    return sums


def _bits(hashes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    size = 1 << max(10, (_BITS_PER_NGRAM * len(hashes)).bit_length())
    bits = np.zeros(size // 8, np.uint8)
    _set(hashes, bits)
    return bits


@kernel
def _set(hashes, bits):
    mask = np.uint64(8 * len(bits) - 1)
    for value in hashes:
        at = value & mask
        bits[np.int64(at >> np.uint64(3))] |= np.uint8(1 << np.int64(at & np.uint64(7)))
