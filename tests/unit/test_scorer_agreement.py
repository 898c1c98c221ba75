"""Agreement and reliability equal published worked examples, peers and slow references; undefined is never a number."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, linregress, spearmanr
from sklearn.metrics import cohen_kappa_score

from gristmill.base.errors import DataError
from gristmill.scorer.audit.agreement import (
    agreement,
    estimate,
    krippendorff_alpha,
    length_bias,
    mean,
    quadratic_kappa,
    source_effects,
)
from gristmill.scorer.audit.reliability import (
    intraclass_correlation,
    mean_of_repeats,
    reliability,
    repeats_matrix,
    spearman_brown,
)
from gristmill.scorer.heads.metrics import kappa as kappa_of_levels
from gristmill.scorer.rubric import rubric_from_mapping

GAP = math.nan
# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, GAP, GAP, GAP],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, GAP, 3],
        [GAP, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, GAP],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, GAP],
    ]
).T
# Shrout and Fleiss, Intraclass Correlations (1979), table 2: six targets, four judges.
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
DIMENSION = {"name": "clarity", "question": "How clear?", "anchors": {"0": "jumbled", "4": "clear"}}
RUBRIC = rubric_from_mapping(
    {"name": "r", "dimensions": [DIMENSION, DIMENSION | {"name": "padding", "direction": "lower"}]}, "test"
)


def test_alpha_equals_the_worked_example() -> None:
    assert krippendorff_alpha(OBSERVERS[None])[0] == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha(OBSERVERS[None], "ordinal")[0] == pytest.approx(0.815, abs=5e-4)


def slow_alpha(ratings: np.ndarray, ordinal: bool) -> float:
    """By its definition: pairs within units, pairs over all pairable values, the metric from counts of categories."""
    units = [[v for v in row if not math.isnan(v)] for row in ratings]
    units = [unit for unit in units if len(unit) > 1]
    pool = [v for unit in units for v in unit]

    def distance(c: float, k: float) -> float:
        if not ordinal:
            return (c - k) ** 2
        low, high = sorted((c, k))
        between = sum(low <= v <= high for v in pool)
        return (between - (pool.count(low) + pool.count(high)) / 2) ** 2 if low < high else 0.0

    observed = sum(distance(a, b) / (len(unit) - 1) for unit in units for a in unit for b in unit) / len(pool)
    expected = sum(distance(a, b) for a in pool for b in pool) / (len(pool) * (len(pool) - 1))
    return 1 - observed / expected


@settings(max_examples=80)
@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 3, 4, GAP]), min_size=3, max_size=3), min_size=3, max_size=9))
def test_alpha_equals_its_definition(rows: list[list[float]]) -> None:
    ratings = np.array(rows, float)
    pool = {v for row in rows for v in row if sum(not math.isnan(x) for x in row) > 1 and not math.isnan(v)}
    for ordinal in (False, True):
        with np.errstate(invalid="ignore", divide="ignore"):
            found = krippendorff_alpha(ratings[None], "ordinal" if ordinal else "interval")[0]
        if len(pool) < 2:
            assert not math.isfinite(found), "without variation agreement is not defined"
        else:
            assert found == pytest.approx(slow_alpha(ratings, ordinal))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=40))
def test_kappa_equals_scikit_learn_and_ours_of_the_metrics(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(column, float) for column in zip(*pairs))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = float(quadratic_kappa(x[None], y[None])[0])
        ours = float(kappa_of_levels(x, y, 0, 4)(np.ones((1, len(x))))[0])
    if not math.isfinite(ours):
        assert not math.isfinite(found)
        return
    assert found == pytest.approx(ours)
    # Told of all levels: left to itself it takes a scale without the unused ones.
    assert found == pytest.approx(cohen_kappa_score(x, y, weights="quadratic", labels=range(5)))


def test_agreement_of_two_gradings_with_gaps() -> None:
    generator = np.random.default_rng(0)
    a = generator.uniform(0, 4, 300)
    b = np.clip(a + 0.5 + generator.normal(0, 0.4, 300), 0, 4)
    a[5], b[9] = GAP, GAP
    known = np.isfinite(a) & np.isfinite(b)
    found = agreement(a, b, 0, 4)
    assert found["n"] == 298
    assert found["shift"]["value"] == pytest.approx((b - a)[known].mean())
    assert found["spearman"]["value"] == pytest.approx(spearmanr(a[known], b[known])[0])
    assert found["exact"]["value"] == pytest.approx((np.rint(a) == np.rint(b))[known].mean())
    for name in ("qwk", "alpha", "alpha_ordinal", "spearman", "shift", "exact", "within_one"):
        low, high = found[name]["ci95"]
        assert low < found[name]["value"] < high, name
    assert found["alpha"]["value"] < found["spearman"]["value"], "alpha must see the shift, rank correlation cannot"


def test_intervals_are_those_of_scipy_and_reproducible() -> None:
    values = np.random.default_rng(1).exponential(size=80)
    low, high = mean(values)["ci95"]
    other = bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(2))
    assert (low, high) == pytest.approx(tuple(other.confidence_interval), abs=0.03)
    assert mean(values) == mean(values) != mean(values, seed=1)


def test_a_large_sample_is_resampled_in_blocks_to_the_same_effect() -> None:
    values = np.random.default_rng(3).normal(size=4000)
    low, high = mean(values)["ci95"]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 4000**0.5, rel=0.1)


def test_too_few_or_constant_documents_give_no_invented_numbers() -> None:
    assert estimate(lambda rows: rows.mean(1), 0) == {"value": None, "ci95": None}
    assert mean(np.arange(5.0)) == {"value": 2.0, "ci95": None}
    same = agreement(np.full(30, 2.0), np.full(30, 2.0), 0, 4)
    assert same["qwk"]["value"] is same["alpha"]["value"] is same["spearman"]["value"] is None
    assert same["exact"]["value"] == 1.0 and same["shift"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert agreement(np.full(3, GAP), np.full(3, GAP), 0, 4)["n"] == 0


def test_length_bias_is_the_slope_per_doubling_and_sees_through_sources() -> None:
    generator = np.random.default_rng(4)
    sources = ["short"] * 150 + ["long"] * 150
    lengths = np.concatenate([generator.integers(50, 200, 150), generator.integers(2000, 9000, 150)])
    scores = np.where(np.array(sources) == "long", 3.0, 1.0) + generator.normal(0, 0.2, 300)
    found = length_bias(scores, lengths, sources)
    assert found["slope"]["value"] == pytest.approx(linregress(np.log2(1 + lengths), scores)[0])
    assert found["slope"]["value"] > 0.2
    low, high = found["within_sources"]["ci95"]
    assert low < 0 < high, "within a source the length says nothing here"
    likes_long = length_bias(0.5 * np.log2(1 + lengths) + generator.normal(0, 0.1, 300), lengths, sources)
    assert likes_long["within_sources"]["value"] == pytest.approx(0.5, abs=0.05)
    assert length_bias(scores, np.full(300, 7), sources)["slope"]["value"] is None


def test_source_effects_are_differences_from_the_mean() -> None:
    generator = np.random.default_rng(5)
    sources = ["a"] * 100 + ["b"] * 100 + ["rare"] * 2
    scores = np.array([3.0] * 100 + [1.0] * 100 + [2.0] * 2) + generator.normal(0, 0.1, 202)
    scores[0] = GAP
    found = source_effects(scores, sources)
    assert set(found["effects"]) == {"a", "b"} and found["effects"]["a"]["n"] == 99
    assert found["effects"]["a"]["value"] == pytest.approx(1.0, abs=0.05)
    assert found["effects"]["b"]["ci95"][1] < -0.8
    assert found["explained"]["value"] > 0.95
    noise = source_effects(generator.normal(size=202), sources)
    assert noise["explained"]["value"] < 0.1


def test_reliability_equals_the_worked_example() -> None:
    assert intraclass_correlation(JUDGES[None])[0] == pytest.approx(0.17, abs=5e-3)
    assert spearman_brown(intraclass_correlation(JUDGES[None])[0], 4) == pytest.approx(0.44, abs=5e-3)


def test_reliability_of_noisy_grades_and_what_more_grades_buy() -> None:
    generator = np.random.default_rng(6)
    truth = generator.normal(0, 1, 2000)
    grades = truth[:, None] + generator.normal(0, 0.5, (2000, 3))
    grades[::4, 2] = GAP
    grades[1, 1:] = GAP
    found = reliability(grades)
    assert found["n"] == 1999
    assert found["r"]["value"] == pytest.approx(0.8, abs=0.02)
    assert found["r_k"]["3"] == pytest.approx(3 * 0.8 / 2.6, abs=0.02)
    assert found["ceiling"] == pytest.approx(0.8**0.5, abs=0.02) and found["spread"] == pytest.approx(0.5, abs=0.02)
    means = np.nanmean(grades[::2], axis=1)  # the mean of three or of two
    assert np.corrcoef(means, truth[::2])[0, 1] ** 2 == pytest.approx(found["r_k"]["3"], abs=0.05)


def test_an_oracle_that_never_varies_over_documents_has_no_reliability() -> None:
    thirds = np.full((30, 3), 1 / 3)  # whose mean is not quite a third
    assert reliability(thirds)["r"]["value"] is None
    assert agreement(thirds[:, 0], thirds[:, 1], 0, 4)["alpha"]["value"] is None
    assert reliability(np.zeros((0, 3)))["ceiling"] is None
    constant_pairs = reliability(np.repeat(np.arange(20.0)[:, None], 3, axis=1))
    assert constant_pairs["r"]["value"] == 1.0 and constant_pairs["spread"] == 0.0


def test_repeats_become_one_row_with_their_mean() -> None:
    labels = pa.table(
        {
            "id": ["x", "y", "x", "z", "x", "z"],
            "text": ["X", "Y", "X", "Z", "X", "Z"],
            "clarity": pa.array([1.0, 2.0, 3.0, None, None, None], pa.float32()),
            "padding": pa.array([0.0, 4.0, 0.0, 1.0, 3.0, 1.0], pa.float32()),
            "quality": pa.array([0.5, 0.25, None, None, None, None], pa.float32()),
            "status": ["clarity: off scale", "ok", "ok", "clarity: off scale", "ok", "clarity: off scale"],
        }
    )
    rows = mean_of_repeats(labels, [RUBRIC]).to_pylist()
    assert [row["id"] for row in rows] == ["x", "y", "z"] and [row["repeats"] for row in rows] == [3, 1, 2]
    assert rows[0]["clarity"] == 2.0 and rows[0]["padding"] == 1.0
    assert rows[0]["quality"] == pytest.approx((2 / 4 + (1 - 1 / 4)) / 2) and rows[0]["status"] == "ok"
    assert rows[2]["clarity"] is None and rows[2]["quality"] is None and rows[2]["status"] == "clarity: off scale"
    matrix = repeats_matrix(labels, "clarity")
    assert matrix[0].tolist()[:2] == [1.0, 3.0] and np.isnan(matrix[0, 2]) and np.isnan(matrix[1]).all()
    with pytest.raises(DataError, match="no column 'padding'"):
        mean_of_repeats(labels.drop_columns(["padding"]), [RUBRIC])


def test_repeats_of_several_rubrics_keep_to_their_own_dimensions() -> None:
    other = rubric_from_mapping({"name": "s", "dimensions": [DIMENSION | {"name": "depth"}]}, "test")
    labels = pa.table(
        {
            "id": ["x", "y", "x", "y"],
            "clarity": pa.array([1.0, None, 3.0, None], pa.float32()),
            "padding": pa.array([0.0, None, 0.0, None], pa.float32()),
            "depth": pa.array([None, 4.0, None, 2.0], pa.float32()),
            "rubric_sha": [RUBRIC.sha, other.sha] * 2,
        }
    )
    rows = mean_of_repeats(labels, [RUBRIC, other]).to_pylist()
    assert [row["quality"] for row in rows] == [0.75, 0.75] and [row["status"] for row in rows] == ["ok", "ok"]
    assert rows[0]["depth"] is None and rows[1]["depth"] == 3.0 and rows[1]["clarity"] is None
