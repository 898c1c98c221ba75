"""The policy decides, and only the policy: order, bounds per source, calibrated thresholds, which duplicate stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gristmill.base.errors import UsageError
from gristmill.datapipe.policy import Bounds, Policy, Rule, decide, load_policy

PIPELINES = Path(__file__).parents[2] / "pipelines"
SOURCES = np.array(["web", "web", "web", "code", "code"])
COLUMNS = {
    ("heuristics", "words"): pa.chunked_array([[5, 50, 60, 5, 70]]),
    ("heuristics", "characters"): pa.chunked_array([[10, 100, 300, 20, 200]]),
    ("language", "label"): pa.chunked_array([["en", "en", "de", "xx", "xx"]]),
    ("exact", "cluster"): pa.chunked_array([[0, 0, 2, 0, 4]]),
    ("scores", "quality"): pa.chunked_array([[0.9, None, 0.2, 0.8, 0.4]], pa.float32()),
}


def reasons(*rules: Rule, tau: float | None = 0.5) -> list[str]:
    policy = Policy("test", rules)
    decision = decide(policy, SOURCES, lambda *key: COLUMNS[key], lambda _name, _source: tau)
    return [rules[at].name if at >= 0 else "" for at in decision.reason]


def test_the_first_rule_that_fails_is_the_reason() -> None:
    words = Rule("words", "heuristics.words", min=10)
    language = Rule("language", "language.label", allowed=("en",), sources={"code": Bounds()})
    assert reasons(words, language) == ["words", "", "language", "words", ""]
    assert reasons(language, words) == ["words", "", "language", "words", ""]


def test_a_source_may_have_its_own_bounds() -> None:
    assert reasons(Rule("words", "heuristics.words", min=10, sources={"code": Bounds(max=10)})) == [
        "words", "", "", "", "words",
    ]  # fmt: skip


def test_the_kept_duplicate_is_chosen_among_those_still_alive() -> None:
    words = Rule("words", "heuristics.words", min=10)
    # Row 0 is its cluster's first member; once a rule has dropped it, row 1 must stay, or the content would be lost.
    assert reasons(Rule("duplicate", "exact", keep="first")) == ["", "duplicate", "", "duplicate", ""]
    assert reasons(words, Rule("duplicate", "exact", keep="first")) == ["words", "", "", "words", ""]
    assert reasons(Rule("duplicate", "exact", keep="longest")) == ["duplicate", "", "", "duplicate", ""]
    assert reasons(Rule("duplicate", "exact", keep="best")) == ["", "duplicate", "", "duplicate", ""]


def test_calibrated_thresholds_and_missing_values() -> None:
    quality = Rule("quality", "scores.quality", min="@tau_keep")
    assert reasons(quality) == ["", "quality", "quality", "", "quality"]
    assert reasons(quality, tau=None) == ["", "quality", "", "", ""]
    assert reasons(Rule("quality", "scores.quality", min=0.1, missing="keep")) == ["", "", "", "", ""]


@pytest.mark.parametrize("path", sorted((PIPELINES / "policies").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_policies_load(path: Path) -> None:
    assert load_policy(path).rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[rule]]\nname = "a"\ncolumn = "x.y"\nmni = 3', "did you mean 'min'"),
        ('[[rule]]\nname = "a"\ncolumn = "x.y"', "needs min, max, allowed or keep"),
        ('[[rule]]\nname = "a"\ncolumn = "words"\nmin = 3', "should read annotation.column"),
        ('[[rule]]\nname = "a"\ncolumn = "x.y"\nmin = 3\n' * 2, "two rules are named 'a'"),
        ('[[rule]]\nname = "a"\ncolumn = "x"\nkeep = "last"', "rule.0.keep"),
    ],
)
def test_a_wrong_policy_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"policy\.toml") as caught:
        load_policy(path)
    assert message in str(caught.value)
