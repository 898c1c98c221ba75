"""How much of an item a cluster of its question's n-grams stands for: with its answer behind and its passage before it.

Three overlaps make a score, by decon's rules (allenai/decon: src/detect/answer_boundary.rs, passage_boundary.rs,
scoring.rs).
"""

from __future__ import annotations

import numpy as np

from gristmill.datapipe.contamination.ngrams import SIZE, ngram
from gristmill.datapipe.text.kernel import kernel, part

ANSWER_WINDOW, SHORT_ANSWER_WINDOW, PASSAGE_WINDOW = 100, 50, 100
"""Words in which an answer is looked for behind the question, a passage before it; twice the length of either, if
that is more (decon: min_long_answer_window, short_answer_window_length, min_passage_distance)."""
PLACES = 32
"""Of the places in a document where a question stands, so many are held against its answer and passage."""
_FULL, _NORMAL = 20, 50  # words: up to the first an item must be found whole, from the second on the score stands
_THRESHOLD = 0.8  # ... of which decon calls a document contaminated (contamination_score_threshold)


@kernel
def close(words, item, index, marks, matched, over):
    """Score the item's open cluster; what is behind and before it counts where half of the question stands there.

    A cluster is at most LONGEST (contamination.search) times as long as its question, which bounds what is looked at.
    """
    own, fact, answers, passages = marks.state[item], index.facts[item], index.answers, index.passages
    serial, first, end = own["cluster"], own["first"], own["end"]
    own["cluster"] = 0
    found_answer, found_passage = np.int64(0), np.int64(0)
    # What the cluster holds beyond the question's length may be the answer's beginning.
    behind = min(end, first + fact["question_words"])
    short = fact["answer_words"] <= fact["answer_size"]
    window = SHORT_ANSWER_WINDOW if short else max(ANSWER_WINDOW, 2 * fact["answer_words"])
    until = min(len(words), end + window)  # a question that stands there twice has its answer behind the second
    since = max(0, first - max(PASSAGE_WINDOW, 2 * fact["passage_words"]))
    size = fact["answer_size"]
    near = 2 * own["sum"] >= fact["question"] and own["places"] < PLACES
    if near:
        own["places"] += 1
        found_answer = _overlap(words, behind, until, size, answers, item, marks.answers, serial)
        # A question that quotes its passage begins the cluster there: the passage goes on within it.
        found_passage = _overlap(words, since, end, SIZE, passages, item, marks.passages, serial)
    score = _score(own["sum"], found_answer, found_passage, fact)
    own["score"] = max(own["score"], score)
    if near and score >= matched:
        over[first] += 1
        over[end] -= 1
        _mark(words, behind, until, size, answers, item, over)
        _mark(words, since, end, SIZE, passages, item, over)


@kernel
def _overlap(words, start, end, size, ngrams, item, seen, serial):
    """The weights of the item's n-grams that stand in words[start:end], each once."""
    first, last, total = ngrams.starts[item], ngrams.starts[item + 1], np.int64(0)
    if first == last:
        return total
    for at in range(start, end - size + 1):
        place = _find(ngrams.ngrams, first, last, ngram(words, at, size))
        if place >= 0 and seen[place] != serial:
            seen[place] = serial
            total += ngrams.weights[place]
    return total


@kernel
def _mark(words, start, end, size, ngrams, item, over):
    first, last = ngrams.starts[item], ngrams.starts[item + 1]
    if first == last:
        return
    for at in range(start, end - size + 1):
        if _find(ngrams.ngrams, first, last, ngram(words, at, size)) >= 0:
            over[at] += 1
            over[at + size] -= 1


@part
def _find(ascending, first, last, value):
    """Where `value` is in ascending[first:last], or -1."""
    end = last
    while first < last:
        middle = (first + last) // 2
        if ascending[middle] < value:
            first = middle + 1
        else:
            last = middle
    return first if first < end and ascending[first] == value else np.int64(-1)


@kernel
def _score(question, answer, passage, fact):
    """decon's score (src/detect/scoring.rs) of overlaps given as sums of weights.

    Overlaps are shares of the item's weight. A question weighs 0.7, its answer 0.2, its passage 0.1; without passage
    0.75 and 0.25, without answer 0.85 and 0.15. What has few n-grams weighs less, in favour of the other parts. Items
    of less than 50 words score less, so that 0.8 asks for more of them, down to 20, which must be found whole.
    """
    if fact["question"] == 0:
        return 0.0
    whole = question == fact["question"] and answer == fact["answer"] and passage == fact["passage"]
    if whole:
        return 1.0
    overlap = question / fact["question"]
    few = min(1.0, 0.5 + 0.5 * fact["ngrams"] / 20)
    if fact["answer"] and fact["passage"]:
        on_question, rest = 0.7 * few, 0.7 * (1 - few)
        short = min(1.0, 0.5 + 0.5 * fact["answer_words"] / 4)
        on_answer = (0.2 + rest / 2) * short
        score = overlap * on_question + answer / fact["answer"] * on_answer
        score += passage / fact["passage"] * (1 - on_question - on_answer)
    elif fact["answer"]:
        score = overlap * 0.75 * few + answer / fact["answer"] * (1 - 0.75 * few)
    elif fact["passage"]:
        score = overlap * 0.85 * few + passage / fact["passage"] * (1 - 0.85 * few)
    else:
        score = overlap
    length = fact["question_words"] + fact["answer_words"] + fact["passage_words"]
    asked = 1 - (1 - _THRESHOLD) * min(1.0, max(0.0, (length - _FULL) / (_NORMAL - _FULL)))
    return score * _THRESHOLD / asked
