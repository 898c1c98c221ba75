"""How well a score decides what to keep, and whom the decision hits: the same documents by source, language, length.

Thresholds stand per source, so scores are compared as ranks within their source: a perfect score then has area 1, and
the mean of the source, which cannot choose within it, 0.5. Shapes: N documents, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gristmill.scorer.heads.metrics import Ranked, Resamples, Statistic, mean, ratio

LENGTHS = ((128, "under 128 tokens"), (512, "128 to 511"), (2048, "512 to 2,047"))
LONGER = "2,048 and more"


def document_tokens(read_N: np.ndarray, texts: Sequence[str | None], most: int) -> np.ndarray:
    """Tokens of whole documents [N], of which at most `most` were read: longer ones by their characters.

    Characters per token are those of the documents that were read whole; 4 where there is none.
    """
    characters_N = np.array([len(text or "") for text in texts], dtype=np.float64)
    whole_N = (read_N > 0) & (read_N < most)
    each = characters_N[whole_N].sum() / read_N[whole_N].sum() if whole_N.any() else 4.0
    return np.where(whole_N | (read_N == 0), read_N, np.maximum(characters_N / each, read_N))


def slices(sources: Sequence[str], languages: Sequence[str], tokens_N: np.ndarray) -> dict[str, np.ndarray]:
    """The names [N] under which each document is counted: its source, its language where any is known, its length."""
    length = np.full(len(sources), LONGER, dtype=object)
    for limit, name in reversed(LENGTHS):
        length[tokens_N < limit] = name
    found = {"source": np.asarray(sources, dtype=object)}
    if any(languages):
        found["language"] = np.asarray([language or "unknown" for language in languages], dtype=object)
    return found | {"length": length}


def decision(
    good_N: np.ndarray,
    score_N: np.ndarray,
    keep_N: np.ndarray,
    tokens_N: np.ndarray,
    by: Mapping[str, np.ndarray],
    resamples: Resamples,
    rows_N: np.ndarray,
) -> dict[str, Any]:
    """Of one score over the documents of the mask rows_N: good_N, what the oracle would keep; keep_N, what the score
    keeps; score_N, its ranks within sources. The keys are in evaluation.py."""
    good_N, score_N, keep_N, tokens_N = good_N[rows_N], score_N[rows_N], keep_N[rows_N], tokens_N[rows_N]
    found: dict[str, Any] = {"n": int(rows_N.sum()), "good": int(good_N.sum())}
    for name, statistic in {
        "auroc": area_under_roc(good_N, score_N),
        "auprc": average_precision(good_N, score_N),
        "precision": ratio(good_N & keep_N, keep_N),
        "recall": ratio(good_N & keep_N, good_N),
        "lift": lambda copies: ratio(good_N & keep_N, keep_N)(copies) / mean(good_N.astype(float))(copies),
        "keep_rate": mean(keep_N.astype(float)),
        "kept_tokens": ratio(keep_N * tokens_N, tokens_N),
    }.items():
        found |= resamples.estimate(name, statistic, rows_N)
    found["by"] = {
        kind: {name: _kept(keep_N, tokens_N, names_N[rows_N] == name) for name in sorted(set(names_N[rows_N]))}
        for kind, names_N in by.items()
    }
    return found


def area_under_roc(good_N: np.ndarray, score_N: np.ndarray) -> Statistic:
    """The chance that a good document scores above another one, ties counted half (Mann and Whitney 1947)."""
    ranked, good_N = Ranked(score_N), good_N.astype(float)

    def statistic(copies_RN: np.ndarray) -> np.ndarray:
        positive_R = copies_RN @ good_N
        negative_R = copies_RN.sum(1) - positive_R
        sum_R = (copies_RN * ranked.ranks(copies_RN)) @ good_N
        return (sum_R - positive_R * (positive_R + 1) / 2) / (positive_R * negative_R)

    return statistic


def average_precision(good_N: np.ndarray, score_N: np.ndarray) -> Statistic:
    """Precision averaged over the good documents, from the best score down; equals scikit-learn's."""
    ranked = Ranked(-score_N)

    def statistic(copies_RN: np.ndarray) -> np.ndarray:
        hits_RK = ranked.per_value(copies_RN * good_N)
        found_RK, all_RK = hits_RK.cumsum(1), ranked.per_value(copies_RN).cumsum(1)
        precision_RK = np.divide(found_RK, all_RK, out=np.zeros_like(found_RK), where=all_RK > 0)
        return (hits_RK * precision_RK).sum(1) / found_RK[:, -1]

    return statistic


def _kept(keep_N: np.ndarray, tokens_N: np.ndarray, own_N: np.ndarray) -> dict[str, Any]:
    total = tokens_N[own_N].sum()
    return {
        "n": int(own_N.sum()),
        "keep_rate": float(keep_N[own_N].mean()),
        "kept_tokens": float(tokens_N[own_N & keep_N].sum() / total) if total else None,
    }
