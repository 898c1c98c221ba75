"""Metrics equal textbook and scikit-learn values, intervals cover, and groups are resampled whole."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import average_precision_score, brier_score_loss, cohen_kappa_score, roc_auc_score

from gristmill.scorer.heads.decisions import area_under_roc, average_precision, decision, document_tokens, slices
from gristmill.scorer.heads.metrics import (
    Ranked,
    Resamples,
    agreement,
    kappa,
    mean,
    partial_rank_correlation,
    rank_correlation,
    ranks_within,
    spearman,
    within_source,
)
from gristmill.scorer.heads.reliability import isotonic, level_chances, predicted_quality
from gristmill.scorer.rubric import Dimension


def pair(n: int = 300, seed: int = 0, noise: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Grades 0 to 4, and predictions of them with ties."""
    generator = np.random.default_rng(seed)
    base = generator.normal(size=n)
    truth = np.clip(np.rint(base + 2), 0, 4)
    return truth, np.round(base + 2 + generator.normal(0, noise, n), 1)


def copies(n: int, seed: int = 1) -> np.ndarray:
    """Three resamples as copies, and the sample."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), 3)
    return np.vstack([np.ones((1, n)), drawn]).astype(float)


def repeated(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.repeat(values, counts.astype(int))


def test_statistics_of_copies_equal_those_of_the_copied_documents() -> None:
    truth, predicted = pair()
    good = truth >= 3
    references = {
        "spearman": (rank_correlation(truth, predicted), lambda t, p: spearmanr(t, p)[0]),
        "kappa": (
            kappa(truth, predicted, 0, 4),
            lambda t, p: cohen_kappa_score(t, np.clip(np.rint(p), 0, 4), weights="quadratic"),
        ),
        "auroc": (area_under_roc(good, predicted), lambda t, p: roc_auc_score(t >= 3, p)),
        "auprc": (average_precision(good, predicted), lambda t, p: average_precision_score(t >= 3, p)),
        "mae": (mean(np.abs(truth - predicted)), lambda t, p: np.abs(t - p).mean()),
    }
    drawn = copies(len(truth))
    for name, (statistic, reference) in references.items():
        for value, counts in zip(statistic(drawn), drawn):
            assert value == pytest.approx(reference(repeated(truth, counts), repeated(predicted, counts))), name
    ranks = Ranked(predicted).ranks(drawn)
    assert np.allclose(repeated(ranks[2], drawn[2]), rankdata(repeated(predicted, drawn[2])))


def test_partial_correlation_takes_out_what_length_shares_with_the_grade() -> None:
    generator = np.random.default_rng(0)
    grade = generator.normal(size=4000)
    length = grade + generator.normal(size=4000)
    fair = grade + generator.normal(size=4000)
    biased = fair + 0.7 * length
    one = np.ones((1, 4000))
    assert rank_correlation(fair, length)(one)[0] > 0.3
    assert abs(partial_rank_correlation(fair, length, grade)(one)[0]) < 0.06
    assert partial_rank_correlation(biased, length, grade)(one)[0] > 0.3


def test_intervals_cover_the_truth_in_about_95_of_100_samples() -> None:
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(1, 1, 60)
        low, high = Resamples(range(60), seed).estimate("mean", mean(values))["mean_ci95"]
        covered += low <= 1 <= high
    assert 176 <= covered <= 198


def test_documents_of_one_host_are_resampled_together() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 50)  # 1000 documents that are really 20
    groups = [f"host {i // 50}" for i in range(1000)]
    alone, together = (Resamples(g).estimate("mean", mean(values))["mean_ci95"] for g in (range(1000), groups))
    assert together[1] - together[0] > 4 * (alone[1] - alone[0])
    assert Resamples(groups).groups == 20


def test_the_same_seed_gives_the_same_intervals() -> None:
    truth, predicted = pair()
    first, second, other = (
        agreement(truth, predicted, ["a"] * 300, Resamples(range(300), seed), (0, 4)) for seed in (0, 0, 1)
    )
    assert first == second and first["spearman_ci95"] != other["spearman_ci95"]
    assert first["spearman"] == other["spearman"]


def test_what_is_not_defined_is_none_and_not_a_number() -> None:
    truth, predicted = pair(30)
    constant = agreement(truth, np.ones(30), ["a"] * 30, Resamples(range(30)), (0, 4))
    assert constant["spearman"] is None and constant["pearson"] is None and constant["mae"] > 0
    nothing = agreement(np.full(30, np.nan), predicted, ["a"] * 30, Resamples(range(30)))
    assert nothing == {"n": 0}
    few = agreement(truth[:5], predicted[:5], ["a"] * 5, Resamples(range(5)))
    assert few["spearman"] is not None and few["spearman_ci95"] is None
    assert spearman(truth[:2], predicted[:2]) is None
    assert agreement(truth[:2], predicted[:2], ["a"] * 2, Resamples(range(2)))["spearman"] is None


def test_missing_grades_are_left_out_and_counted() -> None:
    truth, predicted = pair()
    truth[:100] = np.nan
    found = agreement(truth, predicted, ["a"] * 300, Resamples(range(300)), (0, 4))
    assert found["n"] == 200
    assert found["spearman"] == pytest.approx(spearmanr(truth[100:], predicted[100:])[0])


def test_compressed_predictions_show_in_recall_and_tails() -> None:
    truth, _ = pair(1000)
    found = agreement(truth, 2 + (truth - 2) * 0.4, ["a"] * 1000, Resamples(range(1000)), (0, 4))
    assert found["spearman"] == pytest.approx(1.0)
    assert found["recall"]["4"]["recall"] == 0 and found["recall"]["2"]["recall"] == 1
    assert found["tails"]["greatest"]["predicted"] == 0 < found["tails"]["greatest"]["oracle"]


def test_a_classifier_of_sources_shows_within_sources_and_as_flat() -> None:
    generator = np.random.default_rng(8)
    sources = ["good"] * 200 + ["bad"] * 200 + ["few"] * 5
    level = np.repeat([0.8, 0.3, 0.5], [200, 200, 5])
    truth = level + generator.normal(0, 0.1, 405)
    domain = level + generator.normal(0, 0.01, 405)
    found = within_source(truth, domain, sources)
    assert spearman(truth, domain) > 0.7 and abs(found["mean"]) < 0.2  # pyright: ignore[reportOptionalOperand]
    assert found["flat"] == ["bad", "good"] and set(found["by_source"]) == {"good", "bad"}
    assert within_source(truth, truth, sources)["worst"] == pytest.approx(1.0)


def test_agreement_within_sources_and_recall_have_intervals() -> None:
    truth, predicted = pair(400)
    found = agreement(
        truth, predicted + np.repeat([0, 5], 200), ["a"] * 200 + ["b"] * 200, Resamples(range(400)), (0, 4)
    )
    within = found["within_source"]
    by_hand = sum(spearman(truth[part], predicted[part]) or 0.0 for part in (slice(200), slice(200, 400))) / 2
    assert within["mean"] == pytest.approx(by_hand) and within["mean"] > found["spearman"]
    low, high = within["mean_ci95"]
    assert low < within["mean"] < high < 1
    level = found["recall"]["2"]
    assert level["recall_ci95"][0] < level["recall"] < level["recall_ci95"][1]


def test_ranks_within_sources_ignore_the_level_of_the_source() -> None:
    values = np.array([10.0, 30.0, 20.0, 1.0, 2.0])
    ranks = ranks_within(values, ["a", "a", "a", "b", "b"])
    assert ranks.tolist() == pytest.approx([1 / 6, 5 / 6, 1 / 2, 1 / 4, 3 / 4])


def test_decisions_count_documents_and_tokens_by_slice() -> None:
    good = np.array([True, True, False, False] * 25)
    keep = np.array([True, False, True, False] * 25)
    tokens = np.array([1000.0, 100.0, 100.0, 100.0] * 25)
    by = slices(["a"] * 100, ["", "en"] * 50, tokens)
    found = decision(good, keep * 1.0, keep, tokens, by, Resamples(range(100)), np.ones(100, bool))
    assert (found["precision"], found["recall"], found["lift"], found["keep_rate"]) == (0.5, 0.5, 1.0, 0.5)
    assert found["kept_tokens"] == pytest.approx(1100 / 1300)
    assert found["by"]["language"]["en"] == {"n": 50, "keep_rate": 0.0, "kept_tokens": 0.0}
    assert set(found["by"]["length"]) == {"under 128 tokens", "512 to 2,047"}
    assert "language" not in slices(["a"] * 100, [""] * 100, tokens)


def test_tokens_of_documents_that_were_not_read_whole_come_from_their_characters() -> None:
    texts = ["x" * 300, "x" * 600, "x" * 30_000, "", None]
    read = np.array([100.0, 200.0, 512.0, 0.0, 0.0])
    assert document_tokens(read, texts, 512).tolist() == [100, 200, 10_000, 0, 0]


def test_calibration_error_is_that_of_its_bins_and_sees_overconfidence() -> None:
    generator = np.random.default_rng(0)
    truth = generator.uniform(size=5000)
    resamples = Resamples(range(5000))
    honest = predicted_quality(truth, np.clip(truth + generator.normal(0, 0.01, 5000), 0, 1), resamples)
    squeezed = predicted_quality(truth, 0.5 + (truth - 0.5) / 2, resamples)
    assert honest["ece"] < 0.01 and squeezed["ece"] == pytest.approx(0.125, abs=0.01)
    assert len(squeezed["bins"]) == 10 and sum(row["n"] for row in squeezed["bins"]) == 5000
    by_hand = sum(row["n"] * abs(row["predicted"] - row["observed"]) for row in squeezed["bins"]) / 5000
    assert squeezed["ece"] == pytest.approx(by_hand)
    low, high = squeezed["bins"][3]["observed_ci95"]
    assert low < squeezed["bins"][3]["observed"] < high
    assert predicted_quality(truth, np.full(5000, 0.5), resamples)["bins"][0]["n"] == 5000


def test_chances_of_levels_are_fitted_on_other_documents_and_scored_by_brier() -> None:
    dimension = Dimension("clarity", "?", {0: "no", 4: "yes"})
    fit_truth, fit_predicted = pair(2000, 1)
    truth, predicted = pair(1000, 2)
    found = level_chances(dimension, fit_truth, fit_predicted, truth, predicted, Resamples(range(1000)))
    assert found is not None and set(found) == {"1", "2", "3", "4"}
    model = IsotonicRegression(out_of_bounds="clip").fit(fit_predicted, fit_truth >= 3)
    assert found["3"]["brier"] == pytest.approx(brier_score_loss(truth >= 3, model.predict(predicted)))
    assert found["3"]["brier"] < found["3"]["base"] and found["3"]["ece"] < 0.06
    assert (
        level_chances(dimension, fit_truth[:20], fit_predicted[:20], truth, predicted, Resamples(range(1000))) is None
    )


def test_isotonic_knots_interpolate_to_the_fitted_map() -> None:
    truth, predicted = pair(500)
    knots = isotonic(predicted, truth)
    model = IsotonicRegression(out_of_bounds="clip").fit(predicted, truth)
    asked = np.linspace(-2, 6, 50)
    assert np.allclose(np.interp(asked, knots["x"], knots["y"]), model.predict(asked))
