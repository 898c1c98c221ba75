"""Evaluation items in documents: which n-grams of an item stand there, how close together, how telling they are.

Every 5-gram of a document is looked up (a bit tells nearly all of them apart from the items'). Those of one question
that stand together make a cluster, which contamination.score judges. After decon (allenai/decon:
src/detect/detection.rs, cluster.rs), which samples every tenth n-gram and then grows the cluster to both sides; here
one pass from the left finds the same clusters, and short ones that sampling misses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.datapipe.contamination.index import Index
from gristmill.datapipe.contamination.ngrams import SIZE, fill_fives, longer_ngram
from gristmill.datapipe.contamination.score import close
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.buffers import Text, text_of
from gristmill.datapipe.text.hashing import as_key, slot_of
from gristmill.datapipe.text.kernel import compiled, kernel
from gristmill.datapipe.text.places import Places, places
from gristmill.datapipe.text.spans import push

MISSES = 11
"""So many n-grams in a row that are not the question's end a cluster (decon: question_max_consecutive_misses)."""
LONGEST = 4
"""A cluster ends after so many times the words of its question: text that repeats it over and over is not one match."""
FEWEST = 8
"""8-grams of an item that has fewer are held against so many: one phrase is not most of it."""

STATE = np.dtype(
    [
        ("document", np.int64), ("cluster", np.int64),  # serial numbers: what is older does not count
        ("first", np.int64), ("last", np.int64), ("end", np.int64), ("sum", np.int64),
        ("places", np.int64), ("eights", np.int64), ("thirteens", np.int64), ("score", np.float64),
    ]
)  # fmt: skip

FOUND = np.dtype(
    [("score", np.float32), ("eights", np.float32), ("thirteens", np.float32), ("items", np.int32), ("best", np.int32)]
)


class Marks(NamedTuple):
    """What the search notes as it goes; a note is a serial number, so that nothing is ever wiped."""

    serial: NDArray[np.int64]
    """[2]: documents and clusters so far."""
    state: NDArray[np.void]
    """By item, of STATE."""
    touched: NDArray[np.int32]
    """The items that the document has anything of."""
    questions: NDArray[np.int64]
    """By entry of the index's lists: the cluster that had it last; for eights and thirteens, the document."""
    eights: NDArray[np.int64]
    thirteens: NDArray[np.int64]
    answers: NDArray[np.int64]
    passages: NDArray[np.int64]


@dataclass(frozen=True)
class ContaminationConfig:
    matched: float = 0.5
    """Score from which an item counts in `items` and its text in `spans`. What decon would call has 0.8."""

    def __post_init__(self) -> None:
        check_range("matched", self.matched, 0, 1)


class Searcher:
    """The index with what a search keeps per item, made once and used for any number of batches."""

    def __init__(self, index: Index, config: ContaminationConfig | None = None) -> None:
        self.index = index
        self._matched = (config or ContaminationConfig()).matched
        tiers = index.tiers
        self._marks = Marks(
            np.zeros(2, np.int64), np.zeros(len(index), STATE), np.empty(len(index), np.int32),
            np.zeros(len(tiers.questions.items), np.int64), np.zeros(len(tiers.eights.weights), np.int64),
            np.zeros(len(tiers.thirteens.weights), np.int64), np.zeros(len(tiers.answers.ngrams), np.int64),
            np.zeros(len(tiers.passages.ngrams), np.int64),
        )  # fmt: skip

    def measure(self, texts: pa.ChunkedArray | pa.Array) -> dict[str, pa.Array]:
        """Columns by document:

        score (float32): the largest of any item, see contamination.score; ngram_13, ngram_8 (float32): the largest
        share of an item's n-grams that stand in the document; items (int32): those of score `matched` or more; set,
        item (string): of the item with the largest of the three numbers, null where all are 0; spans, spans_13: text
        of the items that count in `items`, and all that n-grams of 13 words of any item cover.
        """
        text = text_of(texts)
        found, words, cover = self.search(text)
        best = pa.array(found["best"], mask=found["best"] < 0)
        return {
            "score": pa.array(found["score"]),
            "ngram_13": pa.array(found["thirteens"]),
            "ngram_8": pa.array(found["eights"]),
            "items": pa.array(found["items"]),
            "set": self.index.sets.take(best),
            "item": self.index.ids.take(best),
            "spans": _covered(found["best"], cover[0], words),
            "spans_13": _covered(found["best"], cover[1], words),
        }

    def search(self, text: Text) -> tuple[NDArray[np.void], Places, NDArray[np.int32]]:
        """([documents] of FOUND, the words, changes of how many matches lie over each word).

        Changes have a row for spans and one for spans_13, and for each document one place more than it has words: what
        begins in it ends there, too.
        """
        words = places(text)
        most = int(np.diff(words.offsets).max(initial=0))
        fives = np.empty(most, np.uint64)
        hits = np.empty(most, np.int64), np.empty(most, np.int32)
        found = np.zeros(len(text), FOUND)
        found["best"] = -1
        cover = np.zeros((2, len(words.hashes) + len(text)), np.int32)
        _search(words.hashes, words.offsets, self.index.tiers, self._marks, fives, *hits, self._matched, found, cover)
        return found, words, cover


@kernel
def _search(words, offsets, index, marks, fives, where, which, matched, found, cover):
    questions, state, facts = index.questions, marks.state, index.facts
    for document in range(len(offsets) - 1):
        begin, end = offsets[document], offsets[document + 1]
        mine = words[begin:end]
        hits = _hits(mine, index, fives, where, which)
        if hits == 0:
            continue
        marks.serial[0] += 1
        over, over_13 = cover[:, begin + document : end + document + 1]
        count = _shared(8, mine, fives, where, hits, index.eights, marks, marks.eights, 0, over_13)
        count = _shared(13, mine, fives, where, hits, index.thirteens, marks, marks.thirteens, count, over_13)
        hot = 0
        for hit in range(hits):
            at, number = where[hit], which[hit]
            hot += questions.weights[number] == 0
            place = at - hot  # what is hot is neither found nor missed
            for post in range(questions.starts[number], questions.starts[number + 1]):
                item = questions.items[post]
                count = _touch(marks, item, count)
                own = state[item]
                longest = LONGEST * facts[item]["question_words"]
                if own["cluster"] and (place - own["last"] > MISSES or at - own["first"] > longest):
                    close(mine, item, index, marks, matched, over)
                if own["cluster"] == 0:
                    marks.serial[1] += 1
                    own["cluster"], own["sum"] = marks.serial[1], 0
                    own["first"], own["last"] = at, place
                if marks.questions[post] != own["cluster"]:
                    marks.questions[post] = own["cluster"]
                    own["sum"] += questions.weights[number]
                    own["last"] = place
                else:
                    own["last"] += 1  # a repeated n-gram is neither found again nor missed
                own["end"] = at + SIZE
        for number in range(count):
            if state[marks.touched[number]]["cluster"]:
                close(mine, marks.touched[number], index, marks, matched, over)
        _best(state, facts, marks.touched[:count], matched, found[document])


@kernel
def _hits(words, index, fives, where, which):
    """Fills in the hashes of the 5-grams, and positions and numbers of those in the index; returns how many."""
    bits, questions = index.bits, index.questions
    fill_fives(words, fives)
    mask, hits = np.uint64(8 * len(bits) - 1), 0
    for at in range(len(words) - SIZE + 1):
        value = fives[at]
        bit = value & mask
        if bits[np.int64(bit >> np.uint64(3))] >> np.uint8(bit & np.uint64(7)) & 1:
            slot = slot_of(questions.keys, len(questions.keys), as_key(value))
            if questions.keys[slot]:
                where[hits], which[hits] = at, questions.numbers[slot]
                hits += 1
    return hits


@kernel
def _touch(marks, item, count):
    """Whatever the item has from an earlier document is forgotten. Returns how many items are touched."""
    own = marks.state[item]
    if own["document"] == marks.serial[0]:
        return count
    own["document"], own["cluster"], own["places"] = marks.serial[0], 0, 0
    own["eights"], own["thirteens"], own["score"] = 0, 0, 0.0
    marks.touched[count] = item
    return count + 1


@kernel
def _shared(size, words, fives, where, hits, ngrams, marks, seen, count, over):
    """Counts for each item its different n-grams of `size` in the document; marks those of 13 words."""
    for hit in range(hits):
        at = where[hit]
        if at + size > len(words):
            break
        key = as_key(longer_ngram(fives, at, size))
        slot = slot_of(ngrams.keys, len(ngrams.keys), key)
        if ngrams.keys[slot] == 0:
            continue
        if size == 13:
            over[at] += 1
            over[at + size] -= 1
        number = ngrams.numbers[slot]
        if seen[number] == marks.serial[0]:
            continue
        seen[number] = marks.serial[0]
        for post in range(ngrams.starts[number], ngrams.starts[number + 1]):
            item = ngrams.items[post]
            count = _touch(marks, item, count)
            if size == 13:
                marks.state[item]["thirteens"] += 1
            else:
                marks.state[item]["eights"] += 1
    return count


@kernel
def _best(state, facts, touched, matched, out):
    """The document's numbers; the item of the largest, of equal ones that of the largest score, then the first."""
    most, score, best = 0.0, 0.0, np.int64(-1)
    for item in touched:
        own, fact = state[item], facts[item]
        eights = own["eights"] / max(FEWEST, fact["eights"])
        thirteens = own["thirteens"] / max(1, fact["thirteens"])
        largest = max(own["score"], eights, thirteens)
        out["score"] = max(out["score"], own["score"])
        out["eights"] = max(out["eights"], eights)
        out["thirteens"] = max(out["thirteens"], thirteens)
        out["items"] += own["score"] >= matched
        if (largest, own["score"], -np.int64(item)) > (most, score, -best):
            most, score, best = largest, own["score"], np.int64(item)
    if most > 0:
        out["best"] = best


def _covered(best: NDArray[np.int32], changes: NDArray[np.int32], words: Places) -> pa.ListArray:
    """Spans (text.spans) over runs of words that any match covers; `best` is negative where there is none."""
    return spans.column(*_runs(best, changes, words.offsets, words.starts, words.ends))


@compiled
def _runs(best, changes, offsets, starts, ends):
    bounds, ranges = np.empty(16, np.int64), np.zeros(len(offsets), np.int64)
    used = 0
    for document in range(len(offsets) - 1):
        inside, over = False, 0
        ranges[document + 1] = used
        if best[document] < 0:
            continue
        for word in range(offsets[document], offsets[document + 1]):
            over += changes[word + document]
            if over > 0 and not inside:
                bounds = push(bounds, used, starts[word], ends[word])
                used += 2
            elif over > 0:
                bounds[used - 1] = ends[word]
            inside = over > 0
        ranges[document + 1] = used
    return bounds[:used], ranges
