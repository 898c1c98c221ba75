"""Grades with their evidence: what was shown of each document, what the oracle said, the score or why there is none."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from gristmill.base.progress import Progress
from gristmill.scorer.oracle.engine import Engine, Reply, expected_score
from gristmill.scorer.oracle.prompt import Windows, prompts, show, template_sha
from gristmill.scorer.rubric import Rubric

# Documents per call of the engine: enough to fill its batches, few enough to show progress and to lose little.
CHUNK = 128


def grade_documents(
    engine: Engine, rubric: Rubric, texts: Sequence[str | None], max_document_tokens: int, windows: Windows = "begin"
) -> pa.Table:
    """Grade every document on every dimension; rows in input order.

    Columns: one float32 per dimension (null where it failed), quality float32 in [0, 1] (null unless all dimensions are
    there), status ("ok" or the first failure), reply (JSON, dimension -> raw reply), rubric_sha, prompt_sha, engine,
    text (exactly what was shown), tokens int32 (of the text shown), truncated bool.

    Raises:
        GristmillError: from the engine, when nothing at all can be graded.
    """
    prompt_sha = template_sha(rubric, engine.style)
    shown = [show(text or "", rubric, engine.tokenizer, max_document_tokens, windows) for text in texts]
    scores_ND = np.full((len(texts), len(rubric.dimensions)), np.nan)
    statuses = ["empty" if not item.text.strip() else "ok" for item in shown]
    replies: list[str] = ["{}"] * len(texts)
    rows = [row for row, status in enumerate(statuses) if status == "ok"]
    with Progress("grade", total=len(rows), unit="documents") as progress:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            answered = engine.grade([prompt for row in chunk for prompt in prompts(shown[row].text, rubric)])
            for position, row in enumerate(chunk):
                width = len(rubric.dimensions)
                own = answered[position * width : (position + 1) * width]
                scores_ND[row], statuses[row] = _scores(own, rubric)
                replies[row] = json.dumps(dict(zip(rubric.names, (r.text for r in own))), ensure_ascii=False)
            progress.update(start + len(chunk), documents=start + len(chunk))
    columns: dict[str, pa.Array] = {name: _nullable(scores_ND[:, index]) for index, name in enumerate(rubric.names)}
    columns["quality"] = _nullable(rubric.quality(scores_ND))
    columns["status"] = pa.array(statuses, pa.string())
    columns["reply"] = pa.array(replies, pa.string())
    for name, value in (("rubric_sha", rubric.sha), ("prompt_sha", prompt_sha), ("engine", engine.name)):
        columns[name] = pa.array([value] * len(texts), pa.string())
    columns["text"] = pa.array([item.text for item in shown], pa.string())
    columns["tokens"] = pa.array([item.tokens for item in shown], pa.int32())
    columns["truncated"] = pa.array([item.truncated for item in shown], pa.bool_())
    return pa.table(columns)


def _scores(replies: Sequence[Reply], rubric: Rubric) -> tuple[np.ndarray, str]:
    scores_D = np.full(len(replies), np.nan)
    status = "ok"
    for index, (reply, dimension) in enumerate(zip(replies, rubric.dimensions)):
        score, reason = expected_score(reply, dimension.levels)
        if score is not None:
            scores_D[index] = score
        elif status == "ok":
            status = f"{dimension.name}: {reason}"
    return scores_D, status


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.float32), pa.float32(), mask=np.isnan(values))
