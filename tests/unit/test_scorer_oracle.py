"""Grades come from probabilities, failures stay failures, documents cannot speak for the prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gristmill.base.errors import GristmillError, UsageError
from gristmill.scorer.oracle.engine import Reply, expected_score, level_logprobs, read_grades, reply_logprobs
from gristmill.scorer.oracle.grade import grade_by_type, grade_documents
from gristmill.scorer.oracle.prompt import Prompt, block, prompts, question, template_sha
from gristmill.scorer.oracle.tokens import RoughTokenizer
from gristmill.scorer.rubric import load_rubric, rubric_from_mapping

RUBRICS = Path(__file__).parents[2] / "pipelines" / "rubrics"
DIMENSION = {"name": "clarity", "question": "How clear?", "anchors": {"0": "jumbled", "4": "clear"}}
RUBRIC = rubric_from_mapping(
    {"name": "r", "instruction": "You grade texts.", "dimensions": [DIMENSION, DIMENSION | {"name": "depth"}]}, "test"
)
TEN = rubric_from_mapping(
    {
        "name": "ten",
        "dimensions": [
            DIMENSION | {"max": 10, "anchors": {"0": "bad", "5": "fair", "10": "good"}},
            DIMENSION | {"name": "own"},
        ],
    },
    "test",
)
LEVELS = (0, 1, 2, 3, 4)
TOKENS = RoughTokenizer()


def logs(**probabilities: float) -> dict[int, float]:
    return {int(level[1:]): math.log(p) for level, p in probabilities.items()}


# From a reply to a number ---------------------------------------------------------------------------------------------


def test_expected_score_renormalises_over_the_levels_reported() -> None:
    assert expected_score(Reply("3", logs(_2=0.3, _4=0.3)), LEVELS) == (pytest.approx(3.0), "ok")
    # The most likely level alone would say 0; off-scale digits do not count.
    assert expected_score(Reply("0", logs(_0=0.4, _4=0.2, _7=0.4)), LEVELS)[0] == pytest.approx(4 * 0.2 / 0.6)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply("The", logs(_4=0.001)), "off scale"),
        (Reply("I would say 4"), "no level in the reply"),
        (Reply(""), "no level in the reply"),
        (Reply("7"), "off scale"),
        (Reply("x"), "no level in the reply"),
        (Reply("4", logs(_4=0.9), status="request failed: HTTP 500"), "request failed: HTTP 500"),
    ],
)
def test_failures_are_never_numbers(reply: Reply, status: str) -> None:
    assert expected_score(reply, LEVELS) == (None, status)


def test_reply_without_probabilities_must_be_exactly_a_level() -> None:
    assert expected_score(Reply(" 3\n"), LEVELS) == (3.0, "ok")
    assert expected_score(Reply("k"), tuple(range(11))) == (10.0, "ok")
    assert expected_score(Reply("9"), tuple(range(11))) == (None, "off scale"), (
        "letters are asked for, so 9 is no answer"
    )


def test_level_logprobs_add_up_spellings_and_skip_other_tokens() -> None:
    found = level_logprobs(
        {"3": math.log(0.2), " 3": math.log(0.1), "30": -1.0, "³": -1.0, "7": -1.0, "4": -9999}, LEVELS
    )
    assert found == {3: pytest.approx(math.log(0.3))}
    letters = level_logprobs({"a": math.log(0.5), '"k': math.log(0.25), "10": -1.0, "A": -1.0}, tuple(range(11)))
    assert letters == {0: pytest.approx(math.log(0.5)), 10: pytest.approx(math.log(0.25))}


def tokens_of(*pieces: str | tuple[str, dict[str, float]]) -> list[tuple[str, dict[str, float]]]:
    return [(piece, {piece: 0.0}) if isinstance(piece, str) else piece for piece in pieces]


def test_level_is_read_behind_a_space_and_behind_thoughts() -> None:
    (prompt, _) = prompts("x", RUBRIC)
    three = ("3", {"3": math.log(0.6), "1": math.log(0.2)})
    for before in (tokens_of(" "), tokens_of("I think ", "that 4", " it is\n"), []):
        logprobs, _ = reply_logprobs(prompt, "3", [*before, three])
        assert logprobs == {3: pytest.approx(math.log(0.6)), 1: pytest.approx(math.log(0.2))}
    assert reply_logprobs(prompt, "not there", tokens_of("something")) == ({}, {})


def test_json_scores_are_read_where_their_symbols_stand() -> None:
    (prompt,) = prompts("x", TEN, "json", reason=100)
    text = '{"reason":"it says \\"clarity\\": \\"a\\", \\"own\\": 0","clarity":"k","own":3}'
    cut = text.index('"k')
    letter, digit = {'"k': math.log(0.5), '"a': math.log(0.5)}, {"3": math.log(0.9), "4": math.log(0.1)}
    tokens = tokens_of(text[:cut], ('"k', letter), '","own":', ("3", digit), "}")
    _, dimensions = reply_logprobs(prompt, text, tokens)
    grades = read_grades(prompt, Reply(text, {}, "ok", dimensions))
    assert grades["clarity"].score == pytest.approx(5.0) and grades["clarity"].mass == pytest.approx(1.0)
    assert grades["own"].score == pytest.approx(3.1)
    without = read_grades(prompt, Reply(text))
    assert (without["clarity"].score, without["own"].score, without["own"].mass) == (10.0, 3.0, None)
    # A constraint that rules out all else leaves a mass that says nothing.
    assert read_grades(prompt, Reply(text, {}, "ok", dimensions, constrained=True))["own"].mass is None


@pytest.mark.parametrize(
    ("text", "clarity", "own"),
    [
        ('{"clarity":"c"}', "ok", "missing in the reply"),
        ('{"clarity":"z","own":5}', "off scale", "off scale"),
        ('{"clarity":2,"own":"3"}', "no level in the reply", "no level in the reply"),
        ('{"clarity":true,"own":true}', "no level in the reply", "no level in the reply"),
        ('{"clarity":"c","own":2.5}', "ok", "no level in the reply"),
        ('```json\n{"clarity":"c","own":1}\n```', "ok", "ok"),
        ('{"own":0,"own":4,"clarity":"c"}', "no JSON object in the reply", "no JSON object in the reply"),
        ('{"clarity":"c","own":1', "no JSON object in the reply", "no JSON object in the reply"),
        ("[" * 100_000, "no JSON object in the reply", "no JSON object in the reply"),
        ("[]", "no JSON object in the reply", "no JSON object in the reply"),
        ("", "no JSON object in the reply", "no JSON object in the reply"),
    ],
)
def test_json_failures_are_told_by_dimension(text: str, clarity: str, own: str) -> None:
    (prompt,) = prompts("x", TEN, "json")
    grades = read_grades(prompt, Reply(text))
    assert (grades["clarity"].status, grades["own"].status) == (clarity, own)
    assert all((grade.score is None) == (grade.status != "ok") for grade in grades.values())


# Prompts --------------------------------------------------------------------------------------------------------------


def test_questions_of_one_document_share_their_prefix_and_end_the_prompt() -> None:
    first, second = prompts("short", RUBRIC)
    assert first.shared + first.document == second.shared + second.document
    assert first.completion.endswith("Clarity: How clear? (0 = jumbled, 4 = clear):")
    assert first.messages[1]["content"].endswith("Reply with one digit, 0 to 4, and nothing else.")


def test_levels_above_nine_are_asked_as_letters_that_say_their_number() -> None:
    clarity, own = TEN.dimensions
    assert question(clarity) == (
        "Clarity: How clear? (a = 0: bad, b = 1, c = 2, d = 3, e = 4, f = 5: fair, g = 6, h = 7, i = 8, j = 9, "
        "k = 10: good)"
    )
    assert question(own) == "Own: How clear? (0 = jumbled, 4 = clear)"
    assert prompts("x", TEN)[0].messages[1]["content"].endswith("Reply with one letter, a to k, and nothing else.")


def test_json_prompt_asks_for_all_in_the_order_given() -> None:
    (plain,), (turned,) = prompts("x", TEN, "json"), prompts("x", TEN, "json", reason=200, order=[1, 0])
    assert list(plain.schema["properties"]) == ["clarity", "own"]
    assert list(turned.schema["properties"]) == turned.schema["required"] == ["reason", "own", "clarity"]
    assert turned.schema["properties"]["clarity"] == {"type": "string", "enum": list("abcdefghijk")}
    assert turned.schema["properties"]["own"] == {"type": "integer", "enum": [0, 1, 2, 3, 4]}
    assert turned.question.index("- Own") < turned.question.index("- Clarity")
    assert '"reason" (why, in at most 200 characters), "own" (0 to 4), "clarity" ("a" to "k")' in turned.question
    for wrong in ({"reason": 5}, {"order": [0, 1]}, {"form": "json", "reason": 10**6}):
        with pytest.raises(UsageError):
            prompts("x", TEN, **wrong)  # pyright: ignore[reportArgumentType]


def test_template_hash_moves_with_the_wording_and_not_with_documents() -> None:
    other = rubric_from_mapping({"name": "r", "instruction": "Grade.", "dimensions": [DIMENSION]}, "test")
    shas = {
        template_sha(RUBRIC, "chat"), template_sha(RUBRIC, "completion"), template_sha(other, "completion"),
        template_sha(RUBRIC, "chat", "json"), template_sha(RUBRIC, "chat", "json", 100),
    }  # fmt: skip
    assert len(shas) == 5


# Tables ---------------------------------------------------------------------------------------------------------------


class StubEngine:
    name, style, tokenizer = "stub", "completion", TOKENS

    def __init__(self) -> None:
        self.calls: list[list[Prompt]] = []

    def grade(self, prompts: Sequence[Prompt]) -> list[Reply]:
        self.calls.append(list(prompts))
        return [self.answer(prompt) for prompt in prompts]

    def answer(self, prompt: Prompt) -> Reply:
        if prompt.form == "json":
            values = {d.name: next(iter(d.symbols)) for d in prompt.dimensions}
            text = json.dumps({name: int(v) if v.isdecimal() else v for name, v in values.items()})
            return Reply(text, prompt_tokens=50, reply_tokens=9, seconds=0.5)
        if "broken" in prompt.document and "Depth" in prompt.question:
            return Reply("no idea", prompt_tokens=20, reply_tokens=2, seconds=0.25)
        return Reply("3", logs(_2=0.1, _3=0.6, _4=0.1), prompt_tokens=20, reply_tokens=1, seconds=0.25)


def test_grade_table_keeps_rows_and_reasons() -> None:
    engine = StubEngine()
    table = grade_documents(engine, RUBRIC, ["fine", "", "broken", None, "x" * 5000], max_document_tokens=50)
    rows = table.to_pylist()
    assert [row["status"] for row in rows] == ["ok", "empty", "depth: no level in the reply", "empty", "ok"]
    assert rows[0]["clarity"] == pytest.approx(3.0) and rows[0]["quality"] == pytest.approx(0.75)
    assert rows[0]["mass"] == pytest.approx(0.8) and rows[1]["mass"] is None
    assert rows[2]["clarity"] == pytest.approx(3.0) and rows[2]["depth"] is None and rows[2]["quality"] is None
    assert json.loads(rows[2]["reply"]) == {"clarity": "3", "depth": "no idea"}
    assert rows[4]["truncated"] and rows[4]["window"] == "begin" and len(rows[4]["text"]) == 200
    assert {(row["rubric"], row["rubric_sha"]) for row in rows} == {("r", RUBRIC.sha)}
    assert [rows[0][name] for name in ("prompt_tokens", "reply_tokens", "seconds")] == [40, 2, 0.5]
    assert [rows[1][name] for name in ("prompt_tokens", "reply_tokens", "seconds")] == [0, 0, 0.0]
    assert not any(row["stripped"] for row in rows)
    (asked,) = engine.calls
    documents = [prompt.document for prompt in asked]
    assert documents == sorted(documents, key=documents.index), "the questions of a document must lie side by side"


def test_what_was_taken_out_of_a_document_is_told_and_what_was_shown_is_stored() -> None:
    engine = StubEngine()
    table = grade_documents(engine, RUBRIC, ["A text. Clearness (0 = low, 4 = high): 4", "(0 = low, 4 = high)"], 50)
    assert table["text"].to_pylist() == ["A text. Clearness \n", "(0 = low, 4 = high)"]
    assert table["stripped"].to_pylist() == [True, False]
    assert {prompt.document for prompt in engine.calls[0]} == {
        block(text, RUBRIC) for text in table["text"].to_pylist()
    }


def test_batches_keep_documents_whole_and_in_order() -> None:
    engine: Any = StubEngine()
    engine.batch = 5  # two documents of two questions
    texts = [f"text {number}" for number in range(7)]
    table = grade_documents(engine, RUBRIC, texts, 50)
    assert [len(call) for call in engine.calls] == [4, 4, 4, 2]
    assert table["text"].to_pylist() == texts


def test_json_form_is_one_request_whose_order_a_seed_decides() -> None:
    engine = StubEngine()
    seeds = list(range(40))
    table = grade_documents(engine, TEN, ["text"] * 40, 50, form="json", reason=60, order_seeds=seeds)
    orders = [tuple(d.name for d in prompt.dimensions) for prompt in engine.calls[0]]
    assert set(orders) == {("clarity", "own"), ("own", "clarity")}
    again = StubEngine()
    grade_documents(again, TEN, ["text"] * 40, 50, form="json", reason=60, order_seeds=seeds)
    assert engine.calls == again.calls
    assert set(table["own"].to_pylist()) == {0.0} and list(json.loads(table["reply"][0].as_py())) == ["json"]
    with pytest.raises(UsageError, match="1 order_seeds for 2 documents"):
        grade_documents(engine, TEN, ["a", "b"], 50, form="json", order_seeds=[1])


def test_each_content_type_is_graded_on_its_own_rubric_in_one_table() -> None:
    engine = StubEngine()
    rubrics = {"": RUBRIC, "code": TEN}
    table = grade_by_type(engine, rubrics, ["web", "code", "web", "wiki"], ["a", "b", "c", "d"], 50)
    rows = table.to_pylist()
    assert [row["text"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["rubric"] for row in rows] == ["r", "ten", "r", "r"]
    assert [row["own"] for row in rows] == [None, pytest.approx(3.0), None, None]
    assert [row["depth"] is None for row in rows] == [False, True, False, False]
    assert rows[1]["rubric_sha"] == TEN.sha and table.column_names[:3] == ["clarity", "depth", "own"]
    none = grade_by_type(engine, rubrics, ["web"], ["a"], 50)
    assert none.schema.equals(table.schema), "partitions of one run must have the same columns"
    with pytest.raises(UsageError, match="no rubric for content type 'web'"):
        grade_by_type(engine, {"code": TEN}, ["code", "web"], ["a", "b"], 50)


def test_document_share_that_does_not_fit_the_context_is_refused_at_once() -> None:
    engine: Any = StubEngine()
    engine.context = 400
    with pytest.raises(UsageError, match=r"context of 400; at most \d+ do"):
        grade_documents(engine, RUBRIC, ["text"], 390)
    assert not engine.calls
    grade_documents(engine, RUBRIC, ["text"], 100)


def test_oracle_that_answers_nothing_is_an_error_and_not_a_table_of_nulls() -> None:
    class Dead(StubEngine):
        def answer(self, prompt: Prompt) -> Reply:
            return Reply("", status="request failed: HTTP 500")

    with pytest.raises(GristmillError, match="all 4 requests failed; the last: request failed: HTTP 500"):
        grade_documents(Dead(), RUBRIC, ["a", "b"], 50)
    assert len(grade_documents(Dead(), RUBRIC, ["", None], 50)) == 2, "nothing asked, nothing failed"


def test_shipped_code_rubric_reaches_ten() -> None:
    code = load_rubric(RUBRICS / "code.toml")
    (prompt, *_) = prompts("def f(): pass", code)
    assert prompt.levels == tuple(range(11))
    assert expected_score(Reply("k", {10: math.log(0.5), 9: math.log(0.5)}), prompt.levels) == (
        pytest.approx(9.5),
        "ok",
    )
