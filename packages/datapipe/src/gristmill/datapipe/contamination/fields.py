"""Question, answer and passage of one row of an evaluation set, whatever its fields are called.

Benchmarks name the same three things in a few dozen ways; the names that are known here are tried in their order, after
those that the user gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gristmill.base.errors import GristmillError

QUESTION = ("question", "prompt", "problem", "query", "instruction", "ctx", "goal", "sentence", "input", "text")
ANSWER = (
    "canonical_solution", "solution", "answer", "answers", "correct_answer", "best_answer", "reference_answer",
    "target", "targets", "output", "completion", "response", "expected", "gold", "label",
)  # fmt: skip
CHOICES = ("choices", "endings", "options", "mc1_targets")
LABEL = (
    "answer", "answerkey", "answer_key", "label", "gold", "answer_index", "answer_idx", "expected_index", "correct",
    "target",
)  # fmt: skip
PASSAGE = ("passage", "context", "article", "story", "support", "premise", "document", "background")
ID = ("id", "task_id", "question_id", "problem_id", "qid", "uid", "doc_id", "idx", "index", "name")


@dataclass(frozen=True)
class FieldNames:
    """Fields to try before the names that are known: of one row the first that holds something counts."""

    question: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    passage: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """What one row of a set asks; answer and passage may be empty."""

    set: str
    id: str
    question: str
    answer: str
    passage: str


def item_of(row: Mapping[str, Any], number: int, name: str, names: FieldNames) -> Item:
    """The item in a row; its id, where no field names one, is the line's number.

    Of several choices the one that the label names is the answer; without a label, all of them are.

    Raises:
        GristmillError: no field that could be the question, or it holds no text.
    """
    fields = {key.lower(): value for key, value in row.items()}
    question = _named(fields, names.question, QUESTION)
    if question is None:
        told = ", ".join(sorted(row)) or "none"
        raise GristmillError(f"no field holds a question (fields: {told}); name it (option `question`)")
    if isinstance(question[1], (bool, int, float)):
        raise GristmillError(f"field {question[0]!r} should hold text, not {question[1]!r}")
    identifier = next((str(fields[key]) for key in ID if _is_scalar(fields.get(key))), f"line {number}")
    passage = _named(fields, names.passage, PASSAGE)
    parts = (identifier, _text(question[1]), _answer(fields, names.answer), _text(passage[1]) if passage else "")
    return Item(name, *(part.encode("utf-8", "replace").decode() for part in parts))  # JSON may hold lone surrogates


def _named(fields: Mapping[str, Any], *lists: Sequence[str]) -> tuple[str, Any] | None:
    """The first field of these names that is there, one that holds something before one that does not."""
    there = [key for names in lists for name in names if (key := name.lower()) in fields]
    there.sort(key=lambda key: fields[key] in (None, "", [], {}))
    return (there[0], fields[there[0]]) if there and fields[there[0]] is not None else None


def _answer(fields: Mapping[str, Any], given: Sequence[str]) -> str:
    chosen = _named(fields, given)
    if chosen is not None:
        return next(_strings(chosen[1]), "")
    labels = [fields[key] for key in LABEL if _is_scalar(fields.get(key))]
    for name in CHOICES:
        choice = _choice(fields.get(name), labels)
        if choice is not None:
            return choice
    found = _named(fields, ANSWER)
    return next(_strings(found[1]), "") if found else ""


def _choice(choices: Any, labels: Iterable[Any]) -> str | None:
    """The choice that a label names: by its name, its text, its position from 0, or its letter; or all choices.

    A number is no choice's text, but a position. None where no choice has text.
    """
    if isinstance(choices, dict) and isinstance(choices.get("labels"), list):  # TruthfulQA: choices, labels of 0 and 1
        labels = [*(index for index, right in enumerate(choices["labels"]) if right == 1), *labels]
    listed = choices
    if isinstance(choices, dict):  # ARC: text, label; MedQA: the names are the keys
        listed = next((choices[key] for key in ("text", "choices") if key in choices), list(choices.values()))
    texts = list(_strings(listed))
    if not any(map(str.strip, texts)):
        return None
    keys = choices.get("label", choices) if isinstance(choices, dict) else ()
    names = [str(key) for key in keys] if isinstance(keys, (list, dict)) else []
    for given in labels:
        label = str(given)
        places = [names.index(label)] if label in names else []
        places += [texts.index(label)] if isinstance(given, str) and texts.count(label) == 1 else []
        places += [int(label)] if label.isdecimal() and len(label) < 4 else []
        places += [ord(label.upper()) - ord("A")] if len(label) == 1 and label.isascii() and label.isalpha() else []
        places += [texts.index(label)] if label in texts else []
        for place in places:
            if place < len(texts):
                return texts[place]
    return " ".join(texts)


def _text(value: Any) -> str:
    return " ".join(_strings(value))


def _strings(value: Any) -> Iterator[str]:
    """All text in a value; of an object what it calls text, value or content (SQuAD, TriviaQA, chats), if it does."""
    if isinstance(value, dict):
        named = [value[key] for key in ("text", "value", "content") if key in value]
        value = named[:1] or list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif value is not None:
        yield value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""
