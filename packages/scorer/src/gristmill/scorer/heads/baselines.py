"""Predictors that a head has to beat to be worth its cost: three that read no text, and fastText, which counts words.

All are fitted on the fit split alone. A head that does not beat the source's mean is a classifier of sources.
Shapes: N documents, D dimensions.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gristmill.scorer.config import CalibrationConfig
from gristmill.scorer.heads.calibration import good_documents
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.rubric import Rubric

CONSTANT, SOURCE, LENGTH, FASTTEXT = "constant", "source mean", "log length", "fasttext"
# Character n-grams of 2 to 4 and pairs of words, as the reference bench had them; thread=1 and a seed for equal bytes.
FASTTEXT_SETTINGS = {
    "minn": 2, "maxn": 4, "wordNgrams": 2, "dim": 16, "epoch": 10, "lr": 0.5, "bucket": 200_000, "minCount": 2,
    "thread": 1, "seed": 0, "verbose": 0,
}  # fmt: skip
FASTTEXT_CHARACTERS = 6000  # about what three windows of 512 tokens read
FOLDS = 2
MINIMUM_CLASS = 10  # good documents, and others, below which nothing is learnt
# What fastText gives a special meaning to: its labels, and the end of a line.
_MARKS = re.compile(r"__label__|</s>")


def baselines(fit: Labels, fit_lengths_N: np.ndarray, own: Labels, lengths_N: np.ndarray) -> dict[str, np.ndarray]:
    """Scores [N, D] of `own` by what reads no text: the constant, the mean of the source, a line over log length.

    A source that the fit split lacks has the mean of all; so has a dimension that it lacks everywhere (0 then).
    """
    constant_D = np.array([_mean(column, 0.0) for column in fit.scores_ND.T])
    names = np.asarray(fit.sources, dtype=object)
    by_source = {
        source: np.array([_mean(column[names == source], constant_D[i]) for i, column in enumerate(fit.scores_ND.T)])
        for source in set(fit.sources)
    }
    fit_x_N, x_N = np.log1p(np.asarray(fit_lengths_N, float)), np.log1p(np.asarray(lengths_N, float))
    length_ND = np.empty((len(x_N), len(constant_D)))
    for i, column in enumerate(fit.scores_ND.T):
        known = np.isfinite(column)
        varied = known.sum() > 2 and np.ptp(fit_x_N[known]) > 0
        line = np.polyfit(fit_x_N[known], column[known], 1) if varied else np.array([0.0, constant_D[i]])
        length_ND[:, i] = np.polyval(line, x_N)
    return {
        CONSTANT: np.tile(constant_D, (len(own), 1)),
        SOURCE: np.array([by_source.get(source, constant_D) for source in own.sources]).reshape(len(own), -1),
        LENGTH: length_ND,
    }


def fasttext_quality(fit: Labels, texts: Sequence[str | None], rubric: Rubric) -> np.ndarray | None:
    """Quality [N] of `texts` by a fastText classifier of good against other documents of the fit split.

    Its log odds are put on the scale of the quality by a line, fitted where the classifier had not seen the documents
    (FOLDS folds). None where one of the two classes has fewer than MINIMUM_CLASS documents.
    """
    quality_N = rubric.quality(fit.scores_ND)
    known = np.flatnonzero(np.isfinite(quality_N))
    fit, quality_N = fit.take(known), quality_N[known]
    good_N = good_documents(quality_N, fit.sources, CalibrationConfig())
    if min(good_N.sum(), (~good_N).sum()) < MINIMUM_CLASS:
        return None
    lines = [_line(text) for text in fit.texts]
    folds = np.random.default_rng(0xFA).permutation(len(lines)) % FOLDS
    odds_N = np.empty(len(lines))
    for fold in range(FOLDS):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        odds_N[inside] = _log_odds([lines[i] for i in outside], good_N[outside], [lines[i] for i in inside])
    slope, level = np.polyfit(odds_N, quality_N, 1) if np.ptp(odds_N) > 0 else (0.0, float(quality_N.mean()))
    return np.clip(level + slope * _log_odds(lines, good_N, [_line(text) for text in texts]), 0, 1)


def _log_odds(lines: Sequence[str], good_N: np.ndarray, asked: Sequence[str]) -> np.ndarray:
    import fasttext

    with tempfile.TemporaryDirectory(prefix="gristmill-") as folder:
        path = Path(folder) / "train.txt"
        path.write_text(
            "".join(f"__label__{'good' if good else 'other'} {line}\n" for line, good in zip(lines, good_N)),
            encoding="utf-8",
        )
        model = fasttext.train_supervised(str(path), **FASTTEXT_SETTINGS)
    odds = np.zeros(len(asked))
    for row, line in enumerate(asked):
        labels, chances = model.predict(line, k=2)
        found = {str(label): float(chance) for label, chance in zip(labels, chances)}
        chance = np.clip(found.get("__label__good", 0.5), 1e-6, 1 - 1e-6)
        odds[row] = np.log(chance / (1 - chance))
    return odds


def _line(text: str | None) -> str:
    cut = (text or "")[:FASTTEXT_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    return " ".join(_MARKS.sub(" ", cut).split())


def _mean(values: np.ndarray, otherwise: float) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float(otherwise)
