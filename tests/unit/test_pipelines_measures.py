"""What a policy reads decides which stages run; one that reads what nobody measures is refused at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gristmill.base.errors import UsageError
from gristmill.datapipe.policy_file import read_policy

PIPELINES = Path(__file__).parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))
measures: Any = pytest.importorskip("measures")


def stages(*columns: str, **more: Any) -> list[str]:
    rules = [{"name": column, "column": column, "min": 0} for column in columns]
    policy = read_policy({"name": "test", "rule": rules, **more}, "test")
    return [stage.name for stage in measures.measuring_stages(policy, measures.ModelConfigs())]


def test_stages_follow_what_the_policy_reads() -> None:
    assert stages("heuristics.words") == ["language", "heuristics"]
    assert stages("code.comments", edit=[{"column": "pii.email"}]) == ["language", "heuristics", "pii", "code"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("heuristics.wrods", "did you mean 'words'"),
        ("heuristics.c4_bad_words", "there is no heuristics.c4_bad_words"),
        ("heuristic.words", "did you mean 'heuristics'"),
        ("language.label", "bound it by allowed"),
        ("pii.email", "no number that could be bounded"),
        ("perplexity.log_perplexity", "--perplexity.model"),
    ],
)
def test_a_rule_on_what_is_not_there_is_refused(column: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        stages(column)
    assert message in str(caught.value)


@pytest.mark.parametrize("column", ["heuristics.words", "pii.secret_kinds"])
def test_an_edit_needs_spans(column: str) -> None:
    with pytest.raises(UsageError, match="holds no spans"):
        stages("heuristics.words", edit=[{"column": column}])


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ({"heuristic": {}}, "nothing to set up there; did you mean 'heuristics'"),
        ({"heuristics": {"c4": {"terminl": True}}}, "did you mean 'terminal'"),
        ({"heuristics": {"families": ["gophre"]}}, "did you mean 'gopher'"),
    ],
)
def test_wrong_ways_to_measure_are_refused(measure: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        stages("heuristics.words", measure=measure)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("near", {"threshold": 1.5}, "threshold: 1.5 is not from 0 to 1"),
        ("near", {"bands": 200, "rows": 1}, "bands, rows: 200 x 1"),
        ("near", {"threshold": "high"}, "threshold: Input should be"),
        ("substrings", {"anchor": 60}, "anchor: "),
        ("lines", {"min_words": 0}, "min_words: "),
    ],
)
def test_settings_out_of_range_are_told_with_their_place(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        stages("heuristics.words", measure={name: values})
    told = str(caught.value)
    assert told.startswith(f"policy 'test': measure.{name}: {message}") and told.count("policy") == 1


def test_a_measure_that_the_policy_sets_up_is_read() -> None:
    assert "heuristics" in stages("heuristics.c4_bad_words", measure={"heuristics": {"families": ["bad_words"]}})
