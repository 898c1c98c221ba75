"""Rubrics refuse what would make a score ambiguous; samples and splits depend on nothing but their arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gristmill.base.errors import UsageError
from gristmill.scorer.rubric import load_rubric, rubric_from_mapping, symbols
from gristmill.scorer.sampling import share, split_of, stratified_sample

RUBRICS = Path(__file__).parents[2] / "pipelines" / "rubrics"
CLARITY = {"name": "clarity", "question": "Clear?", "anchors": {"0": "no", "4": "yes"}}
PADDING = {"name": "padding", "question": "Padded?", "anchors": {"0": "no", "4": "yes"}, "direction": "lower"}


@pytest.mark.parametrize(
    ("name", "names", "top"),
    [
        ("general", ["helpfulness", "correctness", "coherence", "complexity", "verbosity"], 4),
        ("code", ["readability", "modularity", "clarity", "reusability"], 10),
        ("math", ["correctness", "reasoning", "usefulness", "depth"], 4),
    ],
)
def test_shipped_rubrics_load_and_keep_their_hash(name: str, names: list[str], top: int) -> None:
    rubric = load_rubric(RUBRICS / f"{name}.toml")
    assert (rubric.name, list(rubric.names)) == (name, names)
    assert rubric.sha == load_rubric(RUBRICS / f"{name}.toml").sha
    for dimension in rubric.dimensions:
        assert dimension.levels == tuple(range(top + 1)) and len(dimension.anchors) >= 3
        assert all(len(symbol) == 1 for symbol in dimension.symbols)
        assert list(dimension.symbols.values()) == list(dimension.levels)


def test_code_weighs_as_stated_and_reaches_both_ends() -> None:
    rubric = load_rubric(RUBRICS / "code.toml")
    assert [dimension.weight for dimension in rubric.dimensions] == [0.30, 0.25, 0.25, 0.20]
    assert rubric.quality(np.array([[0.0] * 4, [10.0] * 4, [10.0, 0.0, 0.0, 0.0]])).tolist() == pytest.approx(
        [0, 1, 0.3]
    )


def test_symbols_are_digits_until_a_level_has_two() -> None:
    assert list(symbols(range(2, 10))) == list("23456789")
    assert symbols(range(11)) == dict(zip("abcdefghijk", range(11)))
    assert list(symbols(range(8, 12)).values()) == [8, 9, 10, 11]


def test_quality_applies_direction_and_weight_and_leaves_gaps_empty() -> None:
    rubric = rubric_from_mapping({"name": "r", "dimensions": [CLARITY | {"weight": 3.0}, PADDING]}, "test")
    quality = rubric.quality(np.array([[4.0, 0.0], [4.0, 4.0], [0.0, 0.0], [np.nan, 0.0], [9.0, 0.0]]))
    assert quality[:3].tolist() == [1.0, 0.75, 0.25]
    assert np.isnan(quality[3]), "a missing dimension must not be skipped silently"
    assert quality[4] == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max": 26, "anchors": {"0": "no", "26": "yes"}}, "2 to 26 whole levels"),
        ({"min": 4}, "2 to 26 whole levels"),
        ({"name": "mass"}, "pick a name"),
        ({"anchors": {"0": "no", "7": "yes"}}, "off the scale"),
        ({"anchors": {"0": "no"}}, "say in anchors"),
        ({"weight": 0}, "above 0"),
        ({"name": "quality"}, "pick a name"),
        ({"directon": "lower"}, "did you mean 'direction'"),
    ],
)
def test_bad_rubrics_are_refused(change: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        rubric_from_mapping({"name": "r", "dimensions": [CLARITY | change]}, "test.toml")


def test_sample_gives_rare_sources_their_share_and_weights_undo_it() -> None:
    sources = ["web"] * 900 + ["math"] * 100
    lengths = list(range(1000))
    drawn = stratified_sample(sources, lengths, 120, seed=3)
    taken = np.asarray(sources)[drawn.indices]
    assert len(drawn.indices) == 120 and len(set(drawn.indices.tolist())) == 120
    assert (taken == "math").sum() == 60
    assert drawn.weights.sum() == pytest.approx(1000)
    assert drawn.weights[taken == "web"].sum() == pytest.approx(900)
    again = stratified_sample(sources, lengths, 120, seed=3)
    assert np.array_equal(drawn.indices, again.indices)
    assert not np.array_equal(drawn.indices, stratified_sample(sources, lengths, 120, seed=4).indices)


def test_sample_larger_than_the_corpus_takes_everything_once() -> None:
    drawn = stratified_sample(["a", "b", "a"], [1, 2, 3], 50, seed=0)
    assert drawn.indices.tolist() == [0, 1, 2] and drawn.weights.tolist() == [1.0, 1.0, 1.0]
    assert share(10, [2, 100, 3]) == [2, 5, 3]


def test_split_depends_on_the_id_alone_and_has_the_stated_shares() -> None:
    splits = [split_of(f"doc-{i}") for i in range(4000)]
    assert splits == [split_of(f"doc-{i}") for i in range(4000)]
    for name, fraction in zip(("fit", "select", "certify", "audit"), (0.5, 0.15, 0.25, 0.1)):
        assert splits.count(name) / 4000 == pytest.approx(fraction, abs=0.03)
