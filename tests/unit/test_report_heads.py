"""What the report tells of scores, thresholds and audits, against the scorer's own functions and plain counting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from tests.support.measured_heads import measure, write_audit, write_heads, write_scores

from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.heads.questions import binomial_upper, histogram, probe_and_judge
from gristmill.report.live_run import LiveRun
from gristmill.report.questions import answer
from gristmill.report.run_folder import collect
from gristmill.scorer.heads.calibration import binomial_upper as scorers_bound
from gristmill.scorer.scoring.decide import live_false_drops

ROUTES = {"general": ("papers", "web"), "code": ("code",)}
SOURCES = ("papers", "web", "code", "forum")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "run"
    write_heads(folder, ROUTES)
    write_scores(folder, ROUTES)
    write_audit(folder)
    return folder


@pytest.fixture(scope="module")
def table(run: Path) -> dict[str, Any]:
    """Every column of the run, NaN for null, and the thresholds of each row's source."""
    found: dict[str, Any] = {}
    for folder in ("documents", "annotations/scores", "annotations/tokens"):
        whole = pa.concat_tables(pq.read_table(path) for path in sorted((run / folder).glob("*.parquet")))
        for name in whole.column_names:
            values = whole[name].to_pylist()
            text = isinstance(values[0], str)
            found[name] = np.array(values if text else [np.nan if one is None else one for one in values])
    groups = json.loads((run / "thresholds/calibration.json").read_text())["groups"]
    for key in ("tau_drop", "tau_keep"):
        # A source that calibration never saw has no exits, and the tau_keep of all.
        other = groups["(all)"]["tau_keep"] if key == "tau_keep" else np.nan
        found[key] = np.array([groups[one][key] if one in groups else other for one in found["source"]], np.float32)
    return found


def asked(run: Path, name: str, **parameters: str) -> dict[str, Any]:
    return answer(name, LiveRun(run), Asked(parameters))


def test_every_score_is_counted_by_source_and_bin(run: Path, table: dict[str, Any]) -> None:
    data = collect(run).scores
    assert [head["head"] for head in data["heads"]] == ["quality", "probe", "judge", "clear"]
    for head in data["heads"]:
        values, edges = table[head["head"]], np.linspace(head["low"], head["high"], 41)
        for group in head["groups"]:
            own = np.isfinite(values) & ((table["source"] == group["source"]) | (group["source"] is None))
            clipped = np.clip(values[own], head["low"], head["high"])
            assert np.abs(np.histogram(clipped, edges)[0] - group["documents"]).sum() <= 2  # float32 at an edge
            assert sum(group["tokens"]) == table["count"][own].sum()
        assert head["scored"] + head["unscored"] == 3000 and head["sources"] == 4
    assert data["judged"] == np.isfinite(table["judge"]).sum() and data["exits"] == np.nansum(table["exit"])


def test_one_source_is_told_finely_and_how_many_reach_its_thresholds(run: Path, table: dict[str, Any]) -> None:
    for score, key in (("probe", "tau_drop"), ("quality", "tau_keep")):
        found = asked(run, "score_histogram", score=score, source="web")
        own = (table["source"] == "web") & np.isfinite(table[score])
        above = own & (table[score] >= table[key])
        assert (found["scored"], found["of"]) == (own.sum(), (table["source"] == "web").sum())
        assert sum(found["documents"]) == own.sum() and sum(found["tokens"]) == table["count"][own].sum()
        told = found["reaching"][key]
        assert (told["documents"], told["tokens"]) == (above.sum(), table["count"][above].sum())
        assert found["quantiles"] == pytest.approx(np.quantile(table[score][own], [0.1, 0.5, 0.9]))
    assert asked(run, "score_histogram", score="probe", source="forum")["reaching"] == {}


@pytest.mark.parametrize("source", ["", *SOURCES])
def test_probe_and_judge_by_the_thresholds_of_each_source(run: Path, table: dict[str, Any], source: str) -> None:
    found = asked(run, "probe_judge", source=source)
    own = (table["source"] == source) | (source == "")
    judged = own & np.isfinite(table["judge"]) & np.isfinite(table["probe"])
    quadrants: dict[str, int] = dict.fromkeys(("above_kept", "above_not", "below_kept", "below_not"), 0)
    for row in np.flatnonzero(judged):
        low = table["probe"][row] < table["tau_drop"][row]
        quadrants[
            f"{'below' if low else 'above'}_{'kept' if table['judge'][row] >= table['tau_keep'][row] else 'not'}"
        ] += 1
    assert found["quadrants"] == quadrants and found["judged"] == judged.sum() == sum(n for *_, n in found["cells"])
    scored = own & np.isfinite(table["probe"])
    assert found["unjudged"] == found["unjudged_below"] == (scored & ~judged).sum() == found["exits"] - found["audited"]
    assert found["spearman"] == pytest.approx(spearmanr(table["probe"][judged], table["judge"][judged])[0])
    if source == "forum":
        assert found["exits"] == 0 and found["tau_drop"] is None and found["false_drops"] is None


def test_what_exits_cost_here_is_what_the_scorer_says(run: Path, table: dict[str, Any]) -> None:
    scores = pa.table(
        {
            "source": table["source"].tolist(),
            **{name: pa.array(table[name], from_pandas=True) for name in ("judge", "probe", "quality")},
            **{name: [bool(one) if np.isfinite(one) else None for one in table[name]] for name in ("exit", "shadow")},
            "heads": ["h"] * 3000,
        }
    )
    groups = json.loads((run / "thresholds/calibration.json").read_text())["groups"]
    own = live_false_drops(scores, {"h": {"groups": groups}})
    found = asked(run, "probe_judge")
    assert own and (found["exits"], found["audited"]) == (own["exits"], own["audited"])
    drops = found["false_drops"]
    assert drops["wrong"] == own["wrong"] and drops["rate"] == pytest.approx(own["false_drop"])
    assert drops["upper"] == pytest.approx(own["upper"])


def test_the_bound_is_the_exact_one() -> None:
    for errors, n in ((0, 1), (0, 59), (1, 60), (7, 40), (300, 2000), (5, 5)):
        for confidence in (0.9, 0.95, 0.999):
            assert binomial_upper(errors, n, confidence) == pytest.approx(
                scorers_bound(errors, n, confidence), rel=1e-9
            )


def test_what_is_promised_of_a_threshold_is_its_own_heads_promise(run: Path, tmp_path: Path) -> None:
    promises = collect(run).scores["promises"]
    assert set(promises) == {"papers", "web", "code", "(all)"}
    for name, own, seed in (("general", ("papers", "web"), 0), ("code", ("code",), 1)):
        calibration = measure(name, own, seed)[1]
        for source in own:
            group, told = calibration["groups"][source], promises[source]
            assert told["heads"] == name and told["mode"] == calibration["mode"]
            assert told["own"] == (group["drop_parent"] is None) and told["target"] == group["target"]
            assert (told["good"], told["lost"], told["upper"]) == tuple(
                group["oracle"][k] for k in ("n", "errors", "upper")
            )
    other = tmp_path / "run"
    shutil.copytree(run, other)
    calibration = json.loads((run / "thresholds/calibration.json").read_text())
    calibration["groups"]["web"]["tau_keep"] += 0.01  # by hand: nobody promises anything of it
    (other / "thresholds/calibration.json").write_text(json.dumps(calibration))
    assert "web" not in collect(other).scores["promises"]


def test_the_card_and_the_audit_hold_what_the_scorer_wrote(run: Path) -> None:
    data = collect(run)
    card = data.heads["bundles"][0]["card"]
    assert card["taps"] == {"probe": 12, "judge": 20, "pre_norm": True} and card["taught"]["fit"] == 400
    assert [one["name"] for one in card["rubric"]["dimensions"]] == ["clear", "deep", "factual"]
    written = json.loads((run / "audit/audit.json").read_text())["rubrics"]["general"]
    told = data.oracle["audit"]["audits"][0]["rubrics"][0]
    for part in ("agreement", "retest", "order", "injections"):
        assert told[part] == written[part]
    assert told["a"]["spread"] == written["a"]["spread"] and len(told["injections"]["attacks"]) > 20


def test_a_run_without_scores_or_judge_says_so(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    for path in (other / "annotations/scores").glob("*.parquet"):
        pq.write_table(pq.read_table(path, columns=["quality", "probe"]), path)
    assert collect(other).scores["judged"] == 0
    found = asked(other, "probe_judge")
    assert found["judged"] == found["exits"] == 0 and found["unjudged"] == found["scored"] > 2000
    shutil.rmtree(other / "annotations")
    assert asked(other, "score_histogram") == {"missing": "annotations/scores/", "made_by": "the scores stage"}
    shutil.rmtree(other / "audit")
    assert collect(other).oracle["audit"] == {"missing": "audit/audit.json", "made_by": "scorer audit-oracle"}


def test_parameters_that_are_wrong_are_refused(run: Path) -> None:
    for name, wrong in (
        (histogram, {"score": "../x"}),
        (histogram, {"source": "nowhere"}),
        (probe_and_judge, {"source": "(all)"}),
    ):
        with pytest.raises(AskedWrong):
            name(LiveRun(run), Asked(wrong))
