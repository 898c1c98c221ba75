"""The policy desk decides as the pipeline does: both over one made run, under random changes of its policy."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.desk_run import POLICY, SOURCES, make_desk_run

from gristmill.base.files import sha256_folder
from gristmill.datapipe import policy as pipeline
from gristmill.datapipe.policy_file import load_policy
from gristmill.datapipe.select import apply
from gristmill.datapipe.what_if import policy_of, what_if
from gristmill.datapipe.workflow.stage import open_run
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.desk import answers
from gristmill.report.desk import policy as ours
from gristmill.report.live_run import LiveRun
from gristmill.report.reading import rules
from gristmill.report.reading.catalogue import catalogue

Changes = dict[str, dict[str, Any]]
NUMBERS = {
    "words": (0, 500),
    "repetition": (0, 1),
    "mixing": (0, 1),
    "flagged": (0, 1),
    "share": (0, 1),
    "quality": (0, 1),
}
OFF = [rule["name"] for rule in POLICY["rule"]]
ENDS = {"words": ("min", "max"), "quality": ("min",)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LiveRun:
    return LiveRun(make_desk_run(tmp_path_factory.mktemp("desk") / "run"))


@st.composite
def changes(draw: st.DrawFn) -> Changes:
    made: Changes = {}
    for name in draw(st.lists(st.sampled_from(sorted(NUMBERS)), max_size=4, unique=True)):
        low, high = NUMBERS[name]
        # Tenths meet values that were rounded to tenths: there the width of the comparison decides.
        number = st.one_of(st.floats(low, high), st.integers(low * 10, high * 10).map(lambda tenth: tenth / 10))

        def bounds(name: str = name, number: Any = number) -> dict[str, Any]:
            sides = draw(st.lists(st.sampled_from(ENDS.get(name, ("max",))), min_size=1, unique=True))
            values = sorted(draw(number) for _ in sides)
            return dict(zip(sorted(sides, reverse=True), values, strict=True))  # min before max

        made[name] = bounds()
        own = draw(st.lists(st.sampled_from(SOURCES), max_size=2, unique=True))
        if own:
            made[name]["sources"] = {source: bounds() for source in own}
    if draw(st.booleans()):
        made["language"] = {"allowed": draw(st.lists(st.sampled_from(["en", "fr", "de"]), min_size=1, unique=True))}
    for name in draw(st.lists(st.sampled_from(OFF), max_size=2, unique=True)):
        made[name] = {"off": True}
    return made


def moved(run: LiveRun, change: Changes, **at: str) -> dict[str, Any]:
    return answers.desk_moved(run, Asked({"changes": json.dumps(change), **at}))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=changes())
def test_the_desk_shows_what_the_pipeline_would_decide(run: LiveRun, tmp_path: Path, change: Changes) -> None:
    try:
        shown = moved(run, change)
    except AskedWrong as error:
        assert "nothing lies between" in str(error)  # of the other side, as it stands
        return
    words = shlex.split(shown["command"])
    assert words[:3] == ["datapipe", "what-if", str(run.folder)]
    sets, withouts = (
        [after for before, after in itertools.pairwise(words) if before == option] for option in ("--set", "--without")
    )
    policy = policy_of(run.folder, None, sets, withouts)
    file = tmp_path / "exported.toml"
    file.write_text(shown["file"], encoding="utf-8")
    assert load_policy(file).asking() == policy

    answer = what_if(run.folder, policy)
    theirs = {each.name: each for each in (*answer.kept, *answer.dropped, answer.quarantined)}
    mine = {each["name"]: each for each in (*shown["by_source"], *shown["by_rule"])}
    mine |= {"quarantined": shown["aside"], "(all)": shown["kept"]}
    for name, each in theirs.items():
        told = mine[name]
        assert (told["before"]["documents"], told["then"]["documents"]) == (each.documents, each.documents_then), name
        assert (told["before"]["tokens"], told["then"]["tokens"]) == (each.tokens, each.tokens_then), name
    assert shown["looked"] == [vars(each) for each in answer.looked_otherwise]
    index = answers.index_of(run)
    after = ours.changed(index.written, change)
    decided = apply(policy, open_run(run.folder)).reason
    passed = index.passed(after)
    kept, aside = len(policy.rule), len(policy.rule) + 1  # the pipeline says -1 of those, and one less of these
    assert np.array_equal(passed, np.select([decided < 0, decided == kept], [kept, aside], decided))


def test_the_reader_refuses_what_the_pipeline_refuses(run: LiveRun) -> None:
    held, mixing = catalogue(run), catalogue(run).rows.numbers("annotations/language", "mixing")
    checks = {check["name"]: check for check in held.rules}
    for rule in policy_of(run.folder, None, [], []).rule:
        if rule.keep is None:
            reason = apply(pipeline.Policy("one", (rule,)), open_run(run.folder)).reason
            refused = rules.failing(checks[rule.name], held.rows, held.source, held.reason)
            asked = reason < 1  # not set aside
            assert np.array_equal(refused[asked], reason[asked] == 0), rule.name
    absent = held.rows.absent("annotations/language", "mixing")
    refused = rules.failing(checks["mixing"], held.rows, held.source, held.reason)
    assert absent.any() and not refused[absent].any()
    assert refused[np.isnan(mixing) & ~absent].any()  # what is no number lies in no bounds


@settings(max_examples=15)
@given(change=changes(), data=st.data())
def test_a_curve_is_what_moving_the_threshold_there_keeps(run: LiveRun, change: Changes, data: st.DataObject) -> None:
    index = answers.index_of(run)
    try:
        policy = ours.changed(index.written, change)
    except AskedWrong:
        return
    numbers = [at for at in answers.thresholds(policy) if at.rule != "no_tokens"]
    if not numbers:
        return
    at = data.draw(st.sampled_from(numbers))
    asked = {"rule": at.rule, "side": at.side, "source": at.source or ""}
    (curve,) = answers.desk_curves(run, Asked({"changes": json.dumps(change), **asked}))["curves"]
    assert len(curve["values"]) <= 101 and curve["values"] == sorted(curve["values"])
    for point in data.draw(st.lists(st.integers(0, len(curve["values"]) - 1), min_size=3, max_size=6)):
        there = json.loads(json.dumps({**change, at.rule: dict(change.get(at.rule, {}))}))
        place = there[at.rule]
        if at.source is not None:
            place = place.setdefault("sources", {}).setdefault(at.source, {})
        place[at.side] = curve["values"][point]
        try:
            shown = moved(run, there)
        except AskedWrong as error:
            assert "nothing lies between" in str(error)
            continue
        if at.source is None and at.rule in change and change[at.rule].get("sources"):
            continue  # a source's other side may follow the rule's
        assert shown["kept"]["then"]["documents"] == curve["documents"][point]
        assert shown["kept"]["then"]["tokens"] == curve["tokens"][point]


def test_the_run_s_own_policy_changes_nothing_and_nothing_is_written(run: LiveRun) -> None:
    before = sha256_folder(run.folder)
    desk = answers.desk(run, Asked())
    assert desk["otherwise"] == 0 and desk["aside"]["then"]["documents"] == 4
    assert all(each["before"] == each["then"] for each in (*desk["by_source"], *desk["by_rule"]))
    shown = moved(run, {"words": {"min": 30}}, rule="words", side="min")
    change = {"rule": "words", "source": None, "key": "min", "was": "20", "now": "30"}
    assert shown["lost"] > 0 and shown["changes"] == [change]
    assert sha256_folder(run.folder) == before


def test_what_is_only_looked_for_in_some_documents_is_named_as_the_pipeline_has_it() -> None:
    assert (ours.LOOKED_AT, ours.UNKNOWN) == (pipeline.LOOKED_AT, pipeline.UNKNOWN)


def test_the_documents_at_a_boundary_are_the_nearest_on_both_sides(run: LiveRun) -> None:
    index = answers.index_of(run)
    change = {"words": {"min": 60}}
    boundary = moved(run, change, rule="words", side="min")["boundary"]
    passed = index.passed(ours.changed(index.written, change))
    values, total = index.values["heuristics.words"].values, len(index.written.rules)
    others = index.source != index.sources.index("code")  # which has a bound of its own
    kept = sorted(values[(passed == total) & others])[:3]
    dropped = sorted(values[(passed == 0) & others & (values < 60)])[::-1][:3]
    assert [each["value"] for each in boundary["kept"]] == kept
    assert [each["value"] for each in boundary["dropped"]] == dropped
    rows = [each["row"] for side in boundary.values() for each in side]
    texts = answers.desk_documents(run, Asked({"rows": ",".join(map(str, rows))}))["documents"]
    assert [texts[str(row)]["id"] for row in rows] == [f"d{row}" for row in rows]
    for each in boundary["dropped"]:
        would = moved(run, {"words": {"min": each["value"]}})  # what is kept once the bound lets it pass
        assert bool(each["also"]) >= (would["kept"]["then"]["documents"] == 0)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"changes": "{"}, "not JSON"),
        ({"changes": "[" * 5000}, "not JSON"),
        ({"changes": "[]"}, "no table"),
        ({"changes": '{"nobody": {}}'}, "no rule 'nobody'"),
        ({"changes": '{"words": {"mni": 3}}'}, "'mni' is no key"),
        ({"changes": '{"words": {"min": "3"}}'}, "is no number"),
        ({"changes": '{"words": {"min": NaN}}'}, "is no number"),
        ({"changes": '{"words": {"min": true}}'}, "is no number"),
        ({"changes": '{"words": {"min": 500}}'}, "nothing lies between"),
        ({"changes": '{"words": {"allowed": ["a"]}}'}, "allowed is for words"),
        ({"changes": '{"language": {"min": 1}}'}, "allowed is for words"),
        ({"changes": '{"language": {"allowed": []}}'}, "one word at least"),
        ({"changes": '{"exact": {"min": 1}}'}, "keep chooses"),
        ({"changes": '{"no_tokens": {"off": true}}'}, "every selection"),
        ({"rule": "nobody"}, "no threshold"),
        ({"rule": "exact"}, "no threshold"),
        ({"rule": "language"}, "no threshold"),
        ({"rule": "words", "side": "middle"}, "none of min, max"),
        ({"rule": "words", "source": "../.."}, "none named"),
        ({"rule": "repetition", "side": "min"}, "has no min"),
    ],
)
def test_a_wrong_question_is_refused(run: LiveRun, asked: dict[str, str], told: str) -> None:
    with pytest.raises(AskedWrong, match=told.replace(".", r"\.")):
        answers.desk_moved(run, Asked(asked))


@pytest.mark.parametrize("rows", ["1,x", "-1", "400", "1,2,3,4,5,6,7,8,9,10,11,12,13"])
def test_rows_that_are_none_are_refused(run: LiveRun, rows: str) -> None:
    with pytest.raises(AskedWrong, match="rows"):
        answers.desk_documents(run, Asked({"rows": rows}))


def test_names_that_a_command_line_cannot_say_go_by_the_file(tmp_path: Path) -> None:
    rule = ours.Rule("a.b", "x.y", ours.Bounds(min=1.0))
    before = ours.Policy('hostile"\n[[rule]]', (rule,))
    after = ours.changed(before, {"a.b": {"min": 2.5}})
    assert answers.command(after, before, "my run") == "datapipe what-if 'my run' --policy FILE"
    file = tmp_path / "exported.toml"
    file.write_text(answers.policy_file(after, before, "run\n[[rule]]"), encoding="utf-8")
    assert load_policy(file).rule == (pipeline.Rule("a.b", "x.y", min=2.5),) and load_policy(file).name == before.name
