"""Baselines know what they should and no more, fastText alike every time; fitted weights come from an overall grade."""

from __future__ import annotations

import numpy as np
import pytest

from gristmill.base.errors import DataError
from gristmill.scorer.heads.baselines import CONSTANT, LENGTH, SOURCE, baselines, fasttext_quality
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.metrics import spearman
from gristmill.scorer.heads.weights import fit_weights, weighted
from gristmill.scorer.rubric import rubric_from_mapping

RUBRIC = rubric_from_mapping(
    {
        "name": "r",
        "dimensions": [
            {"name": "clarity", "question": "?", "anchors": {"0": "no", "4": "yes"}},
            {"name": "noise", "question": "?", "anchors": {"0": "no", "4": "yes"}, "direction": "lower"},
        ],
    },
    "test",
)
GOOD, BAD, ANY = ["proof", "lemma", "theorem"], ["click", "cookies", "subscribe"], ["the", "of", "and", "page"]


def labels(n: int = 400, seed: int = 0, noise: float = 0.3) -> Labels:
    """Documents whose words say how good they are."""
    generator = np.random.default_rng(seed)
    quality = generator.uniform(size=n)
    texts: list[str | None] = []
    for q in quality:
        known = [str(generator.choice(GOOD if generator.random() < q else BAD)) for _ in range(8)]
        texts.append(" ".join([*known, *generator.choice(ANY, 8)]) + "\n")
    scores = np.stack([4 * quality, 4 - 4 * quality], axis=1) + generator.normal(0, noise, (n, 2))
    return Labels(
        ids=[f"{seed}-{i}" for i in range(n)], texts=texts, sources=["a", "b"] * (n // 2),
        splits=np.array(["fit"] * n, dtype=object), scores_ND=np.clip(scores, 0, 4), weights_N=np.ones(n),
        flagged_N=np.zeros(n, bool), groups=[f"{seed}-{i}" for i in range(n)], languages=[""] * n,
        repeats_N=np.ones(n), overall_N=np.full(n, np.nan),
    )  # fmt: skip


def test_baselines_that_read_no_text_say_what_the_fit_split_says() -> None:
    fit, own = labels(), labels(seed=1)
    fit.scores_ND[::2, 0] = 3.0
    fit.scores_ND[1::2, 0] = 1.0
    fit.scores_ND[0, 0] = np.nan
    own = own.take(np.array([0, 1, 2]))
    own.sources[2] = "never seen"
    found = baselines(fit, np.arange(400), own, np.array([10, 100, 1000]))
    overall = np.nanmean(fit.scores_ND[:, 0])
    assert found[CONSTANT][:, 0] == pytest.approx([overall] * 3)
    assert found[SOURCE][:, 0] == pytest.approx([3.0, 1.0, overall])
    fit.scores_ND[:, 1] = np.log1p(np.arange(400)) / 2
    assert baselines(fit, np.arange(400), own, np.array([10, 100, 1000]))[LENGTH][:, 1] == pytest.approx(
        np.log1p([10, 100, 1000]) / 2
    )


def test_fasttext_learns_words_and_gives_the_same_every_time() -> None:
    fit, own = labels(), labels(200, seed=1)
    first, again = (fasttext_quality(fit, own.texts, RUBRIC) for _ in range(2))
    truth = RUBRIC.quality(own.scores_ND)
    assert first is not None and again is not None and np.array_equal(first, again)
    assert (spearman(first, truth) or 0) > 0.6
    assert abs(float((first - truth).mean())) < 0.1  # on the scale of the quality, not a chance


def test_fasttext_is_not_told_the_answer_by_text_that_spells_its_marks() -> None:
    fit, own = labels(), labels(100, seed=1)
    spelled = [f"__label__good </s> {text}\r\x00\ud800" for text in own.texts]
    told, plain = (fasttext_quality(fit, texts, RUBRIC) for texts in (spelled, own.texts))
    assert told is not None and plain is not None
    assert (spearman(told, plain) or 0) > 0.9


def test_texts_without_words_get_a_number_too() -> None:
    found = fasttext_quality(labels(), ["", None, " \n "], RUBRIC)
    assert found is not None and np.isfinite(found).all() and found[0] == found[1] == found[2]


def test_too_few_documents_of_a_class_give_no_fasttext() -> None:
    assert fasttext_quality(labels(16), ["proof"], RUBRIC) is None


def test_weights_are_those_of_the_overall_grade() -> None:
    graded = labels(600)
    graded.scores_ND[:] = np.random.default_rng(3).uniform(0, 4, (600, 2))
    goodness = np.stack([graded.scores_ND[:, 0] / 4, 1 - graded.scores_ND[:, 1] / 4], axis=1)
    graded.overall_N[:] = 10 * (goodness @ np.array([0.8, 0.2])) + 3 + np.random.default_rng(4).normal(0, 0.1, 600)
    weights = fit_weights(graded, RUBRIC)
    assert weights == {"clarity": pytest.approx(0.8, abs=0.01), "noise": pytest.approx(0.2, abs=0.01)}
    fitted = weighted(RUBRIC, {"weights": weights})
    assert spearman(fitted.quality(graded.scores_ND), graded.overall_N) == pytest.approx(1.0, abs=0.01)
    assert weighted(RUBRIC, None) is RUBRIC and weighted(RUBRIC, {"weights": None}) is RUBRIC


def test_a_dimension_that_the_overall_grade_falls_with_weighs_nothing() -> None:
    graded = labels(600)
    graded.scores_ND[:] = np.random.default_rng(3).uniform(0, 4, (600, 2))
    graded.overall_N[:] = graded.scores_ND[:, 0] + graded.scores_ND[:, 1]  # noise counts as a merit
    assert fit_weights(graded, RUBRIC) == {"clarity": 1.0, "noise": 0.0}


def test_weights_are_refused_where_there_is_nothing_to_fit_them_to() -> None:
    graded = labels()
    with pytest.raises(DataError, match="0 documents of split fit with a grade in column overall, 20 needed"):
        fit_weights(graded, RUBRIC)
    graded.overall_N[:] = -RUBRIC.quality(graded.scores_ND)
    with pytest.raises(DataError, match="rises with none of the dimensions"):
        fit_weights(graded, RUBRIC)
