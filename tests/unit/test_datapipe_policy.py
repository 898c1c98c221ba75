"""The policy decides, and only the policy: order, bounds per source, calibrated thresholds, which duplicate stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gristmill.base.errors import GristmillError, UsageError
from gristmill.datapipe.policy import Bounds, Edit, Policy, Rule, decide
from gristmill.datapipe.policy_file import load_policy

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


def test_rules_without_an_annotation_are_all_others_wherever_they_stand() -> None:
    best, first = Rule("best", "near", keep="best"), Rule("first", "near", keep="first")
    share, length = Rule("share", "lines.share", max=0.5), Rule("words", "heuristics.words", min=5)
    policy = Policy("test", (best, length, share, first), (Edit("lines.cut"),), {"lines": {"min_words": 9}})
    assert policy.without("lines", "scores") == Policy("test", (length, first))
    assert policy.looked_at("lines").rule == (length, first)


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
        ('[rule]\nname = "a"', "write a table [[rule]]"),
        ('[[edit]]\ncolumn = "c4_cut"', "should read annotation.column"),
        ("rule = 5", "write a table [[rule]]"),
        ('measure = "x"', "write tables, as [measure.heuristics]"),
        ('[[rule]]\nname = "a"\ncolumn = "x.y"\nmin = nan', "no threshold"),
        ('[[rule]]\nname = "a"\ncolumn = "x.y"\nmin = true', "no threshold"),
        ('[[rule]]\nname = "a"\ncolumn = "x.y"\nmin = "50"', "neither a number nor @NAME"),
        ('[[rule]]\nname = "a"\ncolumn = "x.y"\nmin = 5\nmax = 1', "nothing lies between"),
        ('[[rule]]\nname = "a"\ncolumn = "x.y"\nmin = 5\nallowed = ["z"]', "allowed is for words"),
        ('[[rule]]\nname = "a"\ncolumn = "x"\nkeep = "first"\nsources.web = {}', "a rule of their own"),
        ('[[rule]]\nname = "a"\ncolumn = "near.cluster"\nkeep = "first"', 'write column = "near"'),
    ],
)
def test_a_wrong_policy_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"policy\.toml") as caught:
        load_policy(path)
    assert message in str(caught.value)


def test_a_policy_stands_on_others_and_replaces_their_rules_in_place(tmp_path: Path) -> None:
    def rule(name: str, least: int) -> str:
        return f'[[rule]]\nname = "{name}"\ncolumn = "heuristics.words"\nmin = {least}\n'

    edit = '[[edit]]\ncolumn = "heuristics.c4_cut"\n'
    (tmp_path / "a.toml").write_text(rule("one", 1) + rule("two", 2) + edit)
    (tmp_path / "b.toml").write_text(rule("three", 3) + edit + "[measure.heuristics.c4]\nterminal = false\n")
    (tmp_path / "c.toml").write_text('base = ["a.toml", "b.toml"]\n' + rule("four", 4) + rule("one", 9))
    policy = load_policy(tmp_path / "c.toml")
    assert policy.name == "c" and [(rule.name, rule.min) for rule in policy.rule] == [
        ("one", 9), ("two", 2), ("three", 3), ("four", 4),
    ]  # fmt: skip
    assert len(policy.edit) == 1 and policy.measure == {"heuristics": {"c4": {"terminal": False}}}
    (tmp_path / "a.toml").write_text('base = ["c.toml"]')
    with pytest.raises(UsageError, match="its own base"):
        load_policy(tmp_path / "c.toml")
    (tmp_path / "a.toml").write_text('base = "c.toml"')
    with pytest.raises(UsageError, match="a list of files"):
        load_policy(tmp_path / "a.toml")


def test_what_was_measured_in_32_bits_is_compared_in_32_bits() -> None:
    columns = {("x", "share"): pa.chunked_array([[0.2, 0.2000001, 0.1, 0.3, None]], pa.float32())}
    columns |= {("x", "flag"): pa.chunked_array([[True, False, None, False, True]])}

    def kept(*rules: Rule) -> list[bool]:
        return (decide(Policy("t", rules), SOURCES, lambda *key: columns[key], lambda *_: None).reason < 0).tolist()

    assert kept(Rule("r", "x.share", max=0.2)) == [True, False, True, False, False]
    assert kept(Rule("r", "x.flag", max=0, missing="keep")) == [False, True, True, True, False]


def test_a_layer_changes_only_the_settings_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        "[measure.heuristics]\nfamilies = ['c4']\n[measure.heuristics.c4]\nterminal = false"
    )
    (tmp_path / "b.toml").write_text('base = ["a.toml"]\n[measure.heuristics.c4]\nmin_words = 5')
    measure = load_policy(tmp_path / "b.toml").measure["heuristics"]
    assert measure == {"families": ["c4"], "c4": {"terminal": False, "min_words": 5}}
    with pytest.raises(UsageError, match="cannot be read"):
        load_policy(tmp_path)


def test_a_rule_set_aside_asks_nothing_even_where_there_is_no_value() -> None:
    columns = {("x", "share"): pa.chunked_array([[None, 0.1, 0.9, None, 0.9]], pa.float32())}
    rule = Rule("r", "x.share", max=0.5, sources={"code": Bounds()})
    reason = decide(Policy("t", (rule,)), SOURCES, lambda *key: columns[key], lambda *_: None).reason
    assert (reason < 0).tolist() == [False, True, False, True, True]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("r", "language.label", min=1.0), "bound it by allowed"),
        (Rule("r", "heuristics.words", allowed=("en",)), "bound it by min and max"),
    ],
)
def test_bounds_of_another_kind_than_the_column_are_refused(rule: Rule, message: str) -> None:
    with pytest.raises(GristmillError, match=message):
        reasons(rule)
