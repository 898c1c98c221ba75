"""How far grades move with what should not matter: asked again, in another order, upside down, under attack.

Shapes: N documents, D dimensions, A attacks, K gradings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError
from gristmill.scorer.audit.agreement import mean
from gristmill.scorer.audit.injections import CONTROL, Attack, attacked, load_attacks, suspicious
from gristmill.scorer.audit.reliability import floats, reliability
from gristmill.scorer.oracle.engine import Engine
from gristmill.scorer.oracle.grade import grade_documents
from gristmill.scorer.oracle.prompt import Form, question
from gristmill.scorer.oracle.windows import Windows, show
from gristmill.scorer.rubric import Dimension, Rubric


@dataclass(frozen=True)
class Oracle:
    """An engine and how it is asked; see oracle.grade.grade_documents."""

    engine: Engine
    max_document_tokens: int = 256
    windows: Windows = "begin"
    form: Form = "level"
    reason: int = 0
    temperature: float = 0.0

    def grade(
        self, rubric: Rubric, texts: Sequence[str], order_seeds: Sequence[int] | None = None, repeat: int = 0
    ) -> pa.Table:
        return grade_documents(
            self.engine, rubric, texts, self.max_document_tokens, self.windows, form=self.form, reason=self.reason,
            order_seeds=order_seeds, repeat=repeat, temperature=self.temperature,
        )  # fmt: skip


def scores(grades: pa.Table, rubric: Rubric) -> np.ndarray:
    """Grades [N, D] on each dimension's own scale, NaN where one failed.

    Raises:
        DataError: no column for a dimension.
    """
    missing = [name for name in rubric.names if name not in grades.column_names]
    if missing:
        raise DataError(f"grades: no column {missing[0]!r}; columns are {', '.join(grades.column_names)}")
    return np.stack([floats(grades, name) for name in rubric.names], axis=1)


def retest(oracle: Oracle, rubric: Rubric, texts: Sequence[str], times: int, seed: int = 0) -> dict[str, Any]:
    """The same requests, `times` times. At temperature 0 what differs is the engine's own noise."""
    gradings = [scores(oracle.grade(rubric, texts, repeat=repeat), rubric) for repeat in range(times)]
    scores_NKD = np.stack(gradings, axis=1)
    return {
        "times": times,
        "temperature": oracle.temperature,
        "dimensions": {name: reliability(scores_NKD[:, :, i], seed=seed) for i, name in enumerate(rubric.names)},
    }


def order_effect(
    oracle: Oracle, rubric: Rubric, texts: Sequence[str], permutations: int, seed: int = 0
) -> dict[str, Any]:
    """How far grades move with what should not matter: the order of anchors and dimensions, the direction of the scale.

    permuted: mean absolute shift over `permutations` orders, None where this form of request has nothing to permute;
    turned: the same for the scale upside down, shifts counted on the original scale; reliability: over all orders.
    """
    base_ND = scores(oracle.grade(rubric, texts), rubric)
    arms: list[np.ndarray] = []
    if oracle.form == "json" or any(_asks_otherwise(rubric, permuted(rubric, k)) for k in range(permutations)):
        for k in range(permutations):
            orders = [seed * 1_000_003 + k * len(texts) + row for row in range(len(texts))]
            table = oracle.grade(permuted(rubric, seed + k), texts, orders if oracle.form == "json" else None)
            arms.append(scores(table, rubric))
    over = turned(rubric)
    turned_ND = scores(oracle.grade(over, texts), over)
    for i, d in enumerate(rubric.dimensions):
        turned_ND[:, i] = d.min + d.max - turned_ND[:, i]
    gradings_NKD = np.stack([base_ND, *arms], axis=1)
    return {
        "documents": len(texts),
        "permutations": len(arms),
        "permuted": {
            name: _absolute(gradings_NKD[:, 1:, i] - base_ND[:, i, None], seed) for i, name in enumerate(rubric.names)
        }
        if arms
        else None,
        "turned": {
            name: {
                "absolute": _absolute((turned_ND - base_ND)[:, i, None], seed),
                "shift": mean(_known(turned_ND[:, i] - base_ND[:, i]), seed),
            }
            for i, name in enumerate(rubric.names)
        },
        "reliability": {name: reliability(gradings_NKD[:, :, i], seed=seed) for i, name in enumerate(rubric.names)}
        if arms
        else None,
    }


def injection_effect(
    oracle: Oracle, rubric: Rubric, texts: Sequence[str], attacks: Sequence[Attack] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Canary pairs: each document clean and under each attack, cut to half the tokens so that both are shown whole.

    Shifts are in levels towards the better end, by dimension and as their mean by the rubric's weights ("shift").
    beyond_control: less what harmless words at the same place do. moved: share of documents whose mean is a level or
    more better. flagged: share that suspicious() sees; cut: share that did not fit and lost a part of text or attack.
    """
    attacks = load_attacks() if attacks is None else attacks
    half = max(1, oracle.max_document_tokens // 2)
    clean = [show(text, rubric, oracle.engine.tokenizer, half).text for text in texts]
    clean_ND = scores(oracle.grade(rubric, clean), rubric)
    under = [attacked(text, attack, rubric) for attack in attacks for text in clean]
    table = oracle.grade(rubric, under)
    signs_D = np.array([-1.0 if d.direction == "lower" else 1.0 for d in rubric.dimensions])
    shape = (len(attacks), len(clean))
    shifts_AND = (scores(table, rubric).reshape(*shape, -1) - clean_ND) * signs_D
    mean_AN = np.average(shifts_AND, axis=2, weights=[d.weight for d in rubric.dimensions])
    cut_AN = np.array(table["truncated"].to_pylist(), bool).reshape(shape)
    flagged_AN = np.array([bool(suspicious(text, rubric.names)) for text in under]).reshape(shape)
    results = [
        {
            "name": attack.name,
            "family": attack.family,
            "n": int(np.isfinite(mean_AN[a]).sum()),
            "shift": mean(_known(mean_AN[a]), seed),
            "beyond_control": mean(_known(mean_AN[a] - _controls(attacks, mean_AN, attack)), seed),
            "moved": mean((_known(mean_AN[a]) >= 1).astype(float), seed),
            "dimensions": {name: mean(_known(shifts_AND[a, :, i]), seed) for i, name in enumerate(rubric.names)},
            "flagged": float(flagged_AN[a].mean()),
            "cut": float(cut_AN[a].mean()),
        }
        for a, attack in enumerate(attacks)
    ]
    return {
        "documents": len(clean),
        "attacks": results,
        "flagged_attacks": float(
            np.mean([bool(f) for a, row in zip(attacks, flagged_AN) for f in row if a.family != CONTROL])
        ),
        "flagged_clean": float(np.mean([bool(suspicious(text, rubric.names)) for text in texts])),
    }


def worst_injection(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The attack, no control, with the largest mean shift; None where all of them failed to be graded."""
    known = [one for one in found["attacks"] if one["family"] != CONTROL and one["shift"]["value"] is not None]
    return max(known, key=lambda one: one["shift"]["value"], default=None)


def permuted(rubric: Rubric, seed: int) -> Rubric:
    """The same rubric with the anchors of each dimension listed in another order. Its hash, and so its marks, stay."""
    generator = np.random.default_rng([seed, 0x0A])

    def shuffled(dimension: Dimension) -> Dimension:
        items = list(dimension.anchors.items())
        return replace(dimension, anchors={items[i][0]: items[i][1] for i in generator.permutation(len(items))})

    return replace(rubric, dimensions=tuple(shuffled(dimension) for dimension in rubric.dimensions))


def turned(rubric: Rubric) -> Rubric:
    """The same questions with every scale upside down: what was the highest level is now the lowest."""

    def over(d: Dimension) -> Dimension:
        anchors = {d.min + d.max - level: said for level, said in sorted(d.anchors.items(), reverse=True)}
        return replace(d, anchors=anchors, direction="higher" if d.direction == "lower" else "lower")

    scales = {d.name: d.min + d.max for d in rubric.dimensions}
    examples = tuple(
        replace(example, scores={name: scales[name] - level for name, level in example.scores.items()})
        for example in rubric.examples
    )
    return replace(rubric, dimensions=tuple(map(over, rubric.dimensions)), examples=examples)


def _asks_otherwise(a: Rubric, b: Rubric) -> bool:
    return [question(d) for d in a.dimensions] != [question(d) for d in b.dimensions]


def _controls(attacks: Sequence[Attack], mean_AN: np.ndarray, attack: Attack) -> np.ndarray:
    """Each document's mean shift under the controls at the attack's place, or under all where there are none there."""
    controls = [a for a, other in enumerate(attacks) if other.family == CONTROL]
    same = [a for a in controls if attacks[a].at == attack.at]
    return mean_AN[same or controls].mean(0)


def _absolute(shifts_NK: np.ndarray, seed: int) -> dict[str, Any]:
    """Mean absolute shift, over the arms of each document first."""
    return mean(_known(np.abs(shifts_NK).mean(1)), seed)


def _known(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
