"""Grades with their evidence: what was shown of each document, what the oracle said, the score or why there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.progress import Progress
from gristmill.scorer.oracle.engine import Engine, Grade, Reply, read_grades
from gristmill.scorer.oracle.prompt import Form, Prompt, prompts, template_sha
from gristmill.scorer.oracle.windows import Shown, Windows, show
from gristmill.scorer.rubric import Rubric

BATCH = 512
"""Prompts at once for engines that do not say what they like."""
SLACK = 8  # tokens that a text may grow by where it meets the rest of the prompt


def grade_documents(
    engine: Engine, rubric: Rubric, texts: Sequence[str | None], max_document_tokens: int, windows: Windows = "begin",
    *, form: Form = "level", reason: int = 0, order_seeds: Sequence[int] | None = None, repeat: int = 0,
    temperature: float = 0.0, ids: Sequence[str] | None = None,
) -> pa.Table:  # fmt: skip
    """Grade every document on every dimension; rows in input order.

    windows, form, reason: see oracle.windows and oracle.prompt. order_seeds: in json form, a seed for each document
    that decides the order in which its dimensions are asked; without them the rubric's. repeat: tells the gradings of
    one document apart, and seeds the sampling where temperature is above 0. ids: with them, documents of equal text are
    asked about one by one even where answers are stored, so that no grade depends on who came first.

    Columns: one float32 per dimension (null where it failed), quality float32 in [0, 1] (null unless all dimensions are
    there), mass float32 (the smallest share of probability that was on the levels of a dimension; null where the engine
    cannot know), status ("ok" or the first failure), reply (JSON, dimension -> raw reply; in json form "json" -> it),
    rubric, rubric_sha, prompt_sha, engine, text (exactly what was shown), tokens int32 (of the text shown), truncated
    bool, window (which part was shown), stripped bool (see oracle.windows.Shown), prompt_tokens int32, reply_tokens
    int32, seconds float32 (of all its requests).

    Raises:
        UsageError: document and questions together do not fit into the engine's context.
        GristmillError: from the engine, or where every request of the first batch failed.
    """
    for name, given in (("order_seeds", order_seeds), ("ids", ids)):
        if given is not None and len(given) != len(texts):
            raise UsageError(f"{len(given)} {name} for {len(texts)} documents")
    _check_context(engine, rubric, max_document_tokens, form, reason)

    def prepare(rows: range) -> list[_Document]:
        documents: list[_Document] = []
        for row in rows:
            shown = show(texts[row] or "", rubric, engine.tokenizer, max_document_tokens, windows)
            order = _order(order_seeds[row], len(rubric.dimensions)) if order_seeds is not None else None
            own = ids[row] if ids is not None else ""
            asked = prompts(shown.text, rubric, form, reason, order, repeat, temperature, own)
            documents.append(_Document(shown, asked if shown.text.strip() else []))
        return documents

    per_document = 1 if form == "json" else len(rubric.dimensions)
    size = max(1, (getattr(engine, "batch", 0) or BATCH) // per_document)
    with Progress("grade", total=len(texts), unit="documents") as progress:
        graded: list[_Graded] = []
        for documents in _ahead(prepare, len(texts), size):
            asked = [prompt for document in documents for prompt in document.prompts]
            replies = engine.grade(asked) if asked else []
            if asked and not graded and all(reply.status != "ok" for reply in replies):
                raise GristmillError(f"{engine.name}: all {len(asked)} requests failed; the last: {replies[-1].status}")
            rest = iter(replies)
            graded += [_graded(document, [next(rest) for _ in document.prompts], rubric) for document in documents]
            progress.update(len(graded), documents=len(graded))
    return _table(graded, rubric, engine.name, template_sha(rubric, engine.style, form, reason))


def grade_by_type(
    engine: Engine, rubrics: Mapping[str, Rubric], types: Sequence[str], texts: Sequence[str | None],
    max_document_tokens: int, windows: Windows = "begin", *, ids: Sequence[str] | None = None, **asking: Any,
) -> pa.Table:  # fmt: skip
    """grade_documents() with the rubric of each document's content type; "" is the rubric of all types not named.

    One table with the dimensions of all rubrics, null where a rubric does not ask for one; rubric_sha says which of
    the rubrics, and so which scale, a row is of. asking: form, reason, repeat, temperature.

    Raises:
        UsageError: a type without a rubric.
    """
    of_row = [_rubric_of(rubrics, kind) for kind in types]
    tables, rows = list[pa.Table](), list[int]()
    for rubric in {rubric.sha: rubric for rubric in rubrics.values()}.values():  # unused ones too, for their columns
        own = [row for row, chosen in enumerate(of_row) if chosen.sha == rubric.sha]
        some, named = [texts[row] for row in own], [ids[row] for row in own] if ids is not None else None
        tables.append(grade_documents(engine, rubric, some, max_document_tokens, windows, ids=named, **asking))
        rows += own
    table = pa.concat_tables(tables, promote_options="default")
    dimensions = dict.fromkeys(name for rubric in rubrics.values() for name in rubric.names)
    others = [name for name in table.column_names if name not in dimensions]
    return table.select([*dimensions, *others]).take(pa.array(np.argsort(rows, kind="stable"), pa.int64()))


def _rubric_of(rubrics: Mapping[str, Rubric], kind: str) -> Rubric:
    found = rubrics.get(kind) or rubrics.get("")
    if found is None:
        raise UsageError(f"no rubric for content type {kind!r}; there is one for {', '.join(map(repr, rubrics))}")
    return found


@dataclass(frozen=True)
class _Document:
    shown: Shown
    prompts: list[Prompt]


@dataclass(frozen=True)
class _Graded:
    shown: Shown
    grades: Mapping[str, Grade]
    status: str
    reply: str
    prompt_tokens: int
    reply_tokens: int
    seconds: float


def _graded(document: _Document, replies: Sequence[Reply], rubric: Rubric) -> _Graded:
    grades: dict[str, Grade] = {}
    if document.prompts and document.prompts[0].form == "json":
        grades, keys = read_grades(document.prompts[0], replies[0]), ["json"]
    else:
        keys = rubric.names
        for name, prompt, reply in zip(keys, document.prompts, replies):
            grades[name] = read_grades(prompt, reply)[""]
    failed = (f"{name}: {grade.status}" for name, grade in grades.items() if grade.score is None)
    return _Graded(
        document.shown, grades, next(failed, "ok" if grades else "empty"),
        json.dumps(dict(zip(keys, (reply.text for reply in replies))), ensure_ascii=False),
        sum(reply.prompt_tokens for reply in replies), sum(reply.reply_tokens for reply in replies),
        sum(reply.seconds for reply in replies),
    )  # fmt: skip


def _check_context(engine: Engine, rubric: Rubric, max_document_tokens: int, form: Form, reason: int) -> None:
    context = getattr(engine, "context", 0)
    around = max(prompt.most_tokens(engine.tokenizer) for prompt in prompts("", rubric, form, reason)) + SLACK
    if context and around + max_document_tokens > context:
        raise UsageError(
            f"max_document_tokens is {max_document_tokens}: with {around} tokens of questions and answer around it it "
            f"does not fit into the oracle's context of {context}; at most {max(0, context - around)} do"
        )


def _order(seed: int, dimensions: int) -> list[int]:
    return np.random.default_rng([seed, 0x0D]).permutation(dimensions).tolist()


def _ahead(prepare: Callable[[range], list[_Document]], rows: int, size: int) -> Iterator[list[_Document]]:
    """Batch after batch, each prepared while the engine works on the one before."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for start in range(0, rows, size):
            coming, ready = pool.submit(prepare, range(start, min(start + size, rows))), coming
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _table(rows: Sequence[_Graded], rubric: Rubric, engine: str, prompt_sha: str) -> pa.Table:
    names = rubric.names
    scores = [[row.grades[name].score if row.grades else None for name in names] for row in rows]
    scores_ND = np.array(scores, np.float64).reshape(len(rows), len(names))  # None becomes NaN
    masses = [[grade.mass for grade in row.grades.values() if grade.mass is not None] for row in rows]
    columns: dict[str, pa.Array] = {name: _nullable(scores_ND[:, index]) for index, name in enumerate(names)}
    columns["quality"] = _nullable(rubric.quality(scores_ND))
    columns["mass"] = pa.array([min(own, default=None) for own in masses], pa.float32())
    columns["status"] = pa.array([row.status for row in rows], pa.string())
    columns["reply"] = pa.array([row.reply for row in rows], pa.string())
    common = {"rubric": rubric.name, "rubric_sha": rubric.sha, "prompt_sha": prompt_sha, "engine": engine}
    for name, value in common.items():
        columns[name] = pa.array([value] * len(rows), pa.string())
    columns["text"] = pa.array([row.shown.text for row in rows], pa.string())
    columns["tokens"] = pa.array([row.shown.tokens for row in rows], pa.int32())
    columns["truncated"] = pa.array([row.shown.truncated for row in rows], pa.bool_())
    columns["window"] = pa.array([row.shown.window for row in rows], pa.string())
    columns["stripped"] = pa.array([row.shown.stripped for row in rows], pa.bool_())
    for name, kind in (("prompt_tokens", pa.int32()), ("reply_tokens", pa.int32()), ("seconds", pa.float32())):
        columns[name] = pa.array([getattr(row, name) for row in rows], kind)
    return pa.table(columns)


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.float32), pa.float32(), mask=np.isnan(values))
