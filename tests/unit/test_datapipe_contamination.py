"""Evaluation items in documents: planted ones are found as far as they are there, and nothing else is."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import assert_measured_alone, column_of, hostile
from tests.support.real_texts import real_texts

from gristmill.datapipe.contamination import index as index_module
from gristmill.datapipe.contamination.eval_sets import bundled_index
from gristmill.datapipe.contamination.fields import FieldNames, Item
from gristmill.datapipe.contamination.hashed import hash_items, read_sets
from gristmill.datapipe.contamination.index import build
from gristmill.datapipe.contamination.search import ContaminationConfig, Searcher

RNG = random.Random(5)
VOCABULARY = ["".join(RNG.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(5000)]
# HumanEval/0 and a problem of GSM8K's test split (both MIT; bundled/README.md), which the bundled index knows by hash
HUMANEVAL = '''from typing import List


def has_close_elements(numbers: List[float], threshold: float) -> bool:
    """ Check if in given list of numbers, are any two numbers closer to each other than
    given threshold.
    >>> has_close_elements([1.0, 2.0, 3.0], 0.5)
    False
    >>> has_close_elements([1.0, 2.8, 3.0, 4.0, 5.0, 2.0], 0.3)
    True
    """
    for idx, elem in enumerate(numbers):
        for idx2, elem2 in enumerate(numbers):
            if idx != idx2:
                distance = abs(elem - elem2)
                if distance < threshold:
                    return True

    return False
'''
GSM8K = (
    "Melanie is a door-to-door saleswoman. She sold a third of her vacuum cleaners at the green house, 2 more to the "
    "red house, and half of what was left at the orange house. If Melanie has 5 vacuum cleaners left, how many did "
    "she start with?"
)


def words(count: int, seed: int) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=count)


def item(number: int, question: str, answer: str = "", passage: str = "") -> Item:
    return Item("set", str(number), question, answer, passage)


def searcher(items: Sequence[Item], matched: float = 0.5) -> Searcher:
    return Searcher(build(hash_items(items, {})), ContaminationConfig(matched))


def measure(search: Searcher, *texts: str) -> list[dict[str, Any]]:
    return pa.table(search.measure(pa.array(texts, pa.large_string()))).to_pylist()


QUESTION, ANSWER = " ".join(words(60, 1)), " ".join(words(25, 2))
BEFORE, AFTER = " ".join(words(200, 3)), " ".join(words(200, 4))
OTHERS = [item(n, " ".join(words(50, 100 + n)), " ".join(words(20, 200 + n))) for n in range(1, 40)]


@pytest.fixture(scope="module")
def planted() -> Searcher:
    return searcher([item(0, QUESTION, ANSWER), *OTHERS])


def test_an_item_that_stands_whole_in_a_document_scores_one(planted: Searcher) -> None:
    (found,) = measure(planted, f"{BEFORE} {QUESTION} {ANSWER} {AFTER}")
    start, size = len(BEFORE) + 1, len(f"{QUESTION} {ANSWER}")
    assert found == {
        "score": 1.0, "ngram_13": 1.0, "ngram_8": 1.0, "items": 1, "set": "set", "item": "0",
        "spans": [start, start + size], "spans_13": [start, start + size],
    }  # fmt: skip


def test_case_punctuation_and_layout_do_not_count(planted: Searcher) -> None:
    asked = ", ".join(QUESTION.title().split()) + "?!"
    told = "\n * ".join(ANSWER.upper().split())
    (found,) = measure(planted, f"{BEFORE}\n\n## Question\n{asked}\n\n**Answer:** {told}.\n\n{AFTER}")
    assert found["score"] == 1.0 and found["ngram_13"] == 1.0


def test_replaced_words_cost_what_their_n_grams_weigh(planted: Searcher) -> None:
    changed = QUESTION.split()
    changed[20], changed[40] = "other", "words"
    (found,) = measure(planted, f"{BEFORE} {' '.join(changed)} {ANSWER} {AFTER}")
    assert found["score"] == pytest.approx(0.75 * (56 - 10) / 56 + 0.25, abs=0.01)
    assert found["ngram_8"] == pytest.approx((53 - 16 + 18) / 71)
    assert found["ngram_13"] == pytest.approx((48 - 26 + 13) / 61)
    assert found["spans"] == [len(BEFORE) + 1, len(f"{BEFORE} {' '.join(changed)} {ANSWER}")]  # one, over the changes


def test_a_question_without_its_answer_scores_by_its_weight(planted: Searcher) -> None:
    asked, short, far = measure(
        planted,
        f"{BEFORE} {QUESTION} {AFTER}",
        f"{BEFORE} {' '.join(QUESTION.split()[:20])} {AFTER}",
        f"{QUESTION} {BEFORE} {ANSWER}",
    )
    assert asked["score"] == pytest.approx(0.75) and asked["items"] == 1
    assert short["score"] == pytest.approx(0.75 * 16 / 56, abs=0.01) and short["items"] == 0 and short["spans"] == []
    assert far["score"] == pytest.approx(0.75) and far["ngram_13"] == 1.0  # the answer stands too far away


def test_an_answer_without_its_question_is_told_by_n_grams_alone(planted: Searcher) -> None:
    (found,) = measure(planted, f"{BEFORE} {ANSWER} {AFTER}")
    assert found["score"] == 0 and found["items"] == 0 and found["item"] == "0"
    assert found["ngram_8"] == pytest.approx(18 / 71) and found["ngram_13"] == pytest.approx(13 / 61)
    assert found["spans"] == [] and found["spans_13"] == [len(BEFORE) + 1, len(f"{BEFORE} {ANSWER}")]


def test_a_passage_supports_its_question_and_says_nothing_alone() -> None:
    passage, asked, told = (" ".join(words(n, seed)) for n, seed in ((80, 11), (30, 12), (6, 13)))
    search = searcher([item(0, asked, told, passage), *OTHERS])
    alone, without, whole = measure(search, passage, f"{AFTER} {asked} {told}", f"{passage} {asked} {told}")
    assert alone["score"] == 0 and alone["ngram_13"] == 0 and alone["set"] is None
    assert without["score"] == pytest.approx(0.9)
    assert whole["score"] == 1.0 and whole["spans"] == [0, len(f"{passage} {asked} {told}")]


def test_short_answers_are_met_word_by_word_and_near() -> None:
    asked = " ".join(words(40, 21))
    search = searcher([item(0, asked, "42"), *OTHERS])
    near, none = measure(search, f"{asked}\nAnswer: 42", f"{asked}\nAnswer: 43")
    last, far = measure(search, *(f"{asked} {' '.join(words(count, 22))} 42" for count in (49, 50)))
    assert near["score"] == last["score"] == 1.0
    assert none["score"] == far["score"] == pytest.approx(0.75 * 0.8 / (1 - 0.2 * 21 / 30))


@pytest.mark.parametrize(("asked", "told"), [(40, 20), (60, 1), (60, 60), (110, 40)])
@pytest.mark.parametrize("copies", [2, 3, 4])
def test_an_answer_behind_several_copies_of_its_question_makes_the_item_whole(
    asked: int, told: int, copies: int
) -> None:
    question, answer = (" ".join(words(count, seed)) for count, seed in ((asked, 51), (told, 52)))
    text = f"{' '.join([question] * copies)} {answer}"
    (found,) = measure(searcher([item(0, question, answer), *OTHERS]), f"{BEFORE} {text} {AFTER}")
    assert found["score"] == 1.0 and found["item"] == "0"
    assert found["spans"] == [len(BEFORE) + 1, len(f"{BEFORE} {text}")]


@pytest.mark.parametrize("quoted", [6, 10, 20])
def test_a_question_that_quotes_the_end_of_its_passage_leaves_the_passage_whole(quoted: int) -> None:
    passage, told = words(100, 61), " ".join(words(4, 62))
    asked = " ".join([*words(3, 63), *passage[-quoted:], *words(12, 64)])
    text = f"{' '.join(passage)} {asked} {told}"
    (found,) = measure(searcher([item(0, asked, told, " ".join(passage)), *OTHERS]), text)
    assert found["score"] == 1.0 and found["spans"] == [0, len(text)]


def test_an_answer_is_looked_for_at_the_first_places_of_its_question() -> None:
    search = searcher([item(0, QUESTION, ANSWER), *OTHERS])
    apart = f"{QUESTION} {BEFORE} "
    assert [row["score"] for row in measure(search, *(f"{apart * n} {QUESTION} {ANSWER}" for n in (31, 32)))] == [
        1,
        0.75,
    ]


def test_items_that_are_no_evidence_are_left_out() -> None:
    counts: dict[str, object] = {}
    items = [item(0, "what is the capital of france", "paris"), item(1, "so so so " * 20, "so"), item(2, QUESTION)]
    table = hash_items([*items, item(3, QUESTION)], counts)  # pyright: ignore[reportArgumentType]
    assert table["id"].to_pylist() == ["2"]
    told = counts["set"]
    assert (told.items, told.short, told.repeated) == (1, 2, 1)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_short_question_needs_its_answer_and_both_whole() -> None:
    asked, told = " ".join(words(8, 31)), " ".join(words(13, 32))
    search = searcher([item(0, asked, told), *OTHERS])
    whole, question, changed = measure(
        search, f"{asked}? {told}", f"{asked}? {AFTER}", f"{asked}? {told.rpartition(' ')[0]} {AFTER}"
    )
    assert whole["score"] == 1.0
    assert question["score"] < 0.5 and changed["score"] < 0.8


def test_one_phrase_is_not_all_of_an_item_with_few_n_grams() -> None:
    frame = [" ".join(words(20, seed)) for seed in (71, 72)]
    items = [item(n, f"{frame[0]} {' '.join(words(1, 2000 + n))}", frame[1]) for n in range(40)]  # one 8-gram each
    phrase = " ".join(items[5].question.split()[-8:])
    (found,) = measure(searcher(items), f"{BEFORE} {phrase} {AFTER}")
    assert found["ngram_8"] == 1 / 8 and found["item"] == "5"


def test_boilerplate_of_many_items_is_no_match() -> None:
    frame = " ".join(words(30, 41))
    items = [item(n, f"{frame} {' '.join(words(20, 300 + n))}", " ".join(words(8, 900 + n))) for n in range(100)]
    search = searcher(items)
    alone, whole = measure(search, f"{BEFORE} {frame} {AFTER}", f"{items[7].question} {items[7].answer}")
    assert alone["score"] < 0.05 and alone["ngram_8"] == alone["ngram_13"] == 0 and alone["items"] == 0
    assert whole["score"] == 1.0 and whole["item"] == "7" and whole["items"] == 1


def test_n_grams_of_very_many_items_neither_match_nor_part_what_stands_around_them() -> None:
    frame = " ".join(words(30, 41))
    items = [item(n, f"{' '.join(words(15, 2000 + n))} {frame} {' '.join(words(15, 4000 + n))}") for n in range(600)]
    alone, whole = measure(searcher(items), f"{frame} {AFTER}", items[7].question)
    assert alone["score"] == 0 and alone["set"] is None
    assert whole["score"] == 1.0 and whole["item"] == "7"


def test_one_question_with_many_answers_is_not_common() -> None:
    items = [item(n, QUESTION, " ".join(words(10, 500 + n))) for n in range(30)]
    (found,) = measure(searcher(items), f"{QUESTION} {items[12].answer}")
    assert found["score"] == 1.0 and found["item"] == "12" and found["ngram_13"] == 1.0


def test_clean_text_has_nothing(planted: Searcher) -> None:
    for found in measure(planted, BEFORE, AFTER, "", " ".join(VOCABULARY)):
        assert found == {
            "score": 0, "ngram_13": 0, "ngram_8": 0, "items": 0, "set": None, "item": None, "spans": [], "spans_13": [],
        }  # fmt: skip


def test_the_bundled_index_finds_benchmarks_in_real_text() -> None:
    search = Searcher(build(read_sets([bundled_index()], FieldNames()).table))
    texts = real_texts()
    clean = pa.table(search.measure(pa.array(texts, pa.large_string())))
    assert max(clean["score"].to_pylist()) < 0.3 and max(clean["ngram_8"].to_pylist()) < 0.3
    code, problem, only = measure(
        search,
        f"{texts[3]}\n\n```python\n{HUMANEVAL}```\n{texts[4]}",
        f"{texts[5]}\n{GSM8K.upper()}\n{texts[6]}",
        HUMANEVAL.partition("    for idx,")[0],
    )
    assert code["score"] == 1.0 and (code["set"], code["item"]) == ("humaneval", "HumanEval/0")
    assert problem["score"] == pytest.approx(0.75) and (problem["set"], problem["item"]) == ("gsm8k", "gsm8k-test-0013")
    assert only["score"] == pytest.approx(0.75) and only["ngram_8"] > 0.7


def test_any_bytes_are_measured_alone_and_inside(planted: Searcher) -> None:
    pieces = [*(f"{word} ".encode() for word in QUESTION.split()[:8]), QUESTION.encode()]
    assert_measured_alone(hostile(7, pieces), lambda column: planted.measure(column))
    assert_measured_alone(
        column_of([ANSWER.encode(), b"", QUESTION.encode() * 2, b"\xff" + ANSWER.encode()]), planted.measure
    )


def test_endless_repetition_is_read_in_one_pass() -> None:
    few = ["one two three four five six seven eight", "one " * 40 + "two three four"]
    search = searcher(
        [item(n, f"{few[n % 2]} {word} {few[0]}", few[0] + f" and {word}") for n, word in enumerate(VOCABULARY[:200])]
    )
    many = f"{few[0]} {VOCABULARY[0]} " * 20_000
    found = measure(search, "one " * 300_000, many, f"{few[0]} " * 30_000)
    assert [row["item"] for row in found[:2]] == ["1", "0"] and found[1]["score"] > 0.4


# Against a plain reading of what the columns mean ---------------------------------------------------------------------

Ngram = tuple[str, ...]


def grams(text: Sequence[str], size: int) -> list[Ngram]:
    return [tuple(text[at : at + size]) for at in range(len(text) - size + 1)]


def reference_share(items: Sequence[Item], text: str, size: int, common: int) -> float:
    """The largest share of an item's n-grams that stand in the text, without those of more than `common` questions."""
    own = [{*grams(i.question.split(), size), *grams(i.answer.split(), size)} for i in items]
    questions: dict[Ngram, set[str]] = defaultdict(set)
    for each, held in zip(items, own):
        for gram in held:
            questions[gram].add(each.question if len(each.question.split()) >= 5 else each.id)
    counted = [{gram for gram in held if len(questions[gram]) <= common} for held in own]
    there = set(grams(text.split(), size))
    fewest = 8 if size == 8 else 1
    return max((len(held & there) / max(fewest, len(held)) for held in counted if held), default=0.0)


def reference_score(items: Sequence[Item], text: str) -> float:
    """The score by its definition: clusters of one question's 5-grams, then answer and passage around them."""
    document = text.split()
    total = len({i.question if len(i.question.split()) >= 5 else i.id for i in items})

    def weights(part: str, sizes: Sequence[int]) -> tuple[list[set[Ngram]], dict[Ngram, float]]:
        own = [set(grams(getattr(i, part).split(), size)) if size else set() for i, size in zip(items, sizes)]
        holders: dict[Ngram, set[str]] = defaultdict(set)
        for each, held in zip(items, own):
            for gram in held:
                holders[gram].add(each.question if len(each.question.split()) >= 5 else each.id)
        return own, {gram: math.log((total + 1) / len(held)) for gram, held in holders.items()}

    fives = [5] * len(items)
    sizes = [min(3, len(i.answer.split())) for i in items]
    questions, answers, passages = weights("question", fives), weights("answer", sizes), weights("passage", fives)
    best = 0.0
    for number, each in enumerate(items):
        lengths = [len(part.split()) for part in (each.question, each.answer, each.passage)]
        asked = sum(questions[1][gram] for gram in questions[0][number])
        if not asked:
            continue
        places = [at for at, gram in enumerate(grams(document, 5)) if gram in questions[0][number]]
        clusters: list[list[int]] = []
        seen: set[Ngram] = set()
        last = 0
        for at in places:
            gram = tuple(document[at : at + 5])
            if not clusters or at - last > 11 or at - clusters[-1][0] > 4 * lengths[0]:
                clusters.append([])
                seen = set()
            last = last + 1 if gram in seen else at
            seen.add(gram)
            clusters[-1].append(at)
        held = 0
        for cluster in clusters:
            found = {tuple(document[at : at + 5]) for at in cluster}
            overlap = sum(questions[1][gram] for gram in found) / asked
            told = near = 0.0
            behind = min(cluster[-1] + 5, cluster[0] + lengths[0])
            if overlap >= 0.5 - 1e-9 and held < 32:
                held += 1
                window = 50 if lengths[1] <= 3 else max(100, 2 * lengths[1])
                told = share(document[behind : cluster[-1] + 5 + window], answers, number, sizes[number])
                before = max(0, cluster[0] - max(100, 2 * lengths[2]))
                near = share(document[before : cluster[-1] + 5], passages, number, 5)
            best = max(
                best, combined(overlap, told, near, len(questions[0][number]), lengths, bool(passages[0][number]))
            )
    return best


def share(text: Sequence[str], known: tuple[list[set[Ngram]], dict[Ngram, float]], number: int, size: int) -> float:
    own = known[0][number]
    return sum(known[1][gram] for gram in own & set(grams(text, size))) / sum(known[1][g] for g in own) if own else 0.0


def combined(asked: float, told: float, near: float, ngrams: int, lengths: list[int], passage: bool) -> float:
    answer, few = lengths[1] > 0, min(1.0, 0.5 + ngrams / 40)
    if min(asked, told if answer else 1.0, near if passage else 1.0) > 1 - 1e-9:
        return 1.0
    if answer and passage:
        short = min(1.0, 0.5 + lengths[1] / 8)
        by_answer = (0.2 + 0.35 * (1 - few)) * short
        score = 0.7 * few * asked + by_answer * told + (1 - 0.7 * few - by_answer) * near
    elif answer:
        score = 0.75 * few * asked + (1 - 0.75 * few) * told
    elif passage:
        score = 0.85 * few * asked + (1 - 0.85 * few) * near
    else:
        score = asked
    return score * 0.8 / (1 - 0.2 * min(1.0, max(0.0, (sum(lengths) - 20) / 30)))


SOME = st.lists(st.sampled_from([*"abcdefgh"]), max_size=25).map(" ".join)


@st.composite
def plants(draw: st.DrawFn) -> tuple[list[Item], list[str]]:
    """Items of few different words, and documents made of pieces of them."""
    items = [item(n, draw(SOME), draw(SOME), draw(SOME)) for n in range(draw(st.integers(1, 4)))]
    pieces = [part for i in items for part in (i.question, i.answer, i.passage)]
    cut = st.tuples(st.sampled_from(pieces), st.integers(0, 5), st.integers(0, 30)).map(
        lambda piece: " ".join(piece[0].split()[piece[1] : piece[1] + piece[2]])
    )
    texts = draw(st.lists(st.lists(cut | st.sampled_from(pieces) | SOME, max_size=8).map(" ".join), max_size=4))
    return items, texts


def compared(items: Sequence[Item], texts: Sequence[str], common: int = 10) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "COMMON", common)
        table = hash_items(items, {})
        if not len(table):
            return
        search = Searcher(build(table))
    kept = [i for i in items if i.id in set(table["id"].to_pylist())]
    found = measure(search, *texts)
    for text, row in zip(texts, found, strict=True):
        assert row["ngram_8"] == pytest.approx(reference_share(kept, text, 8, common), abs=1e-6)
        assert row["ngram_13"] == pytest.approx(reference_share(kept, text, 13, common), abs=1e-6)
        assert row["score"] == pytest.approx(reference_score(kept, text), abs=1e-5)
    alone = [row for text in reversed(texts) for row in measure(search, text)]
    assert alone[::-1] == found  # whatever was searched before, and with whatever


@settings(max_examples=200)
@given(plants(), st.sampled_from([1, 10]))
def test_numbers_are_those_of_a_plain_reading(drawn: tuple[list[Item], list[str]], common: int) -> None:
    compared(*drawn, common)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_at_every_distance_are_those_of_a_plain_reading(seed: int) -> None:
    rng = random.Random(seed)

    def text(least: int, most: int, different: int) -> list[str]:
        return rng.choices(VOCABULARY[:different], k=rng.randint(least, most))

    def torn(part: list[str]) -> list[str]:
        """A copy with some words left out or put in."""
        at, gap = rng.randrange(len(part) + 1), rng.choice([0, 1, 4, 5, 6, 7, 8, 11, 12])
        return [*part[:at], *text(gap, gap, 5000), *part[at + rng.choice([0, 0, 1, 5, 8]) :]]

    parts = [(text(5, 40, 40), text(1, 60, 40), text(0, 60, 40)) for _ in range(6)]
    items = [item(n, *(" ".join(part) for part in each)) for n, each in enumerate(parts)]
    texts = []
    for _ in range(150):
        pieces: list[str] = []
        for _ in range(rng.randint(1, 6)):
            gap = rng.choice([0, 1, 5, rng.randint(6, 13), rng.randint(44, 56), rng.randint(90, 125)])
            asked, told, before = rng.choice(parts)
            pieces += [
                *text(gap, gap, 5000),
                *rng.choice([asked, asked, told, before, torn(asked), torn(told), asked * 40]),
            ]
        texts.append(" ".join(pieces))
    compared(items, texts)


def test_spans_are_those_of_what_was_matched(planted: Searcher) -> None:
    text = f"ééé {QUESTION} {ANSWER} 漢字 {OTHERS[0].question} {BEFORE} {OTHERS[1].question}"
    (found,) = measure(planted, text)
    data, spans = text.encode(), found["spans"]
    assert isinstance(spans, list)
    cut = [data[start:end].decode() for start, end in zip(spans[::2], spans[1::2], strict=True)]
    assert cut == [f"{QUESTION} {ANSWER}", OTHERS[0].question, OTHERS[1].question]
    assert found["items"] == 3
    none = measure(searcher([item(0, QUESTION, ANSWER), *OTHERS], matched=0.8), f"{BEFORE} {QUESTION}")[0]
    assert none["score"] == pytest.approx(0.75) and none["items"] == 0 and none["spans"] == []


def test_a_searcher_keeps_nothing_between_batches(planted: Searcher) -> None:
    texts = [f"{BEFORE} {QUESTION} {ANSWER}", QUESTION, BEFORE, f"{ANSWER} {OTHERS[3].question}", ""] * 20
    together = measure(planted, *texts)
    order = np.random.Generator(np.random.PCG64(1)).permutation(len(texts))
    assert [measure(planted, texts[row])[0] for row in order] == [together[row] for row in order]
