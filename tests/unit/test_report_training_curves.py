"""Curves as a page asks for them: their numbers are the log's, extremes stay, wrong parameters are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.support.training_logs import routed, step_event, write_log

from gristmill.report import questions
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.live_run import LiveRun
from gristmill.report.training.bands import bands, student
from gristmill.report.training.curves import curves
from gristmill.report.training.router import experts, routers
from gristmill.report.training.thinning import extremes, smooth, span_of


def asked(**values: object) -> Asked:
    return Asked({name.rstrip("_"): str(value) for name, value in values.items()})


def test_one_spike_in_a_hundred_thousand_steps_is_drawn_with_four_hundred_points():
    values = np.random.default_rng(0).normal(3, 0.01, 100_000)
    values[54_321], values[99_000] = 30.0, -4.0
    kept = extremes(values, 400)
    assert len(kept) <= 400 and {0, 54_321, 99_000, 99_999} <= set(kept.tolist()) and (np.diff(kept) > 0).all()


@pytest.mark.parametrize("count", [0, 1, 2, 5, 399, 400, 401, 402, 997])
@pytest.mark.parametrize("points", [4, 5, 20, 400])
def test_every_stretch_keeps_its_least_and_greatest(count, points):
    values = np.random.default_rng(count).normal(size=count)
    kept = extremes(values, points)
    assert len(kept) == count if count <= points else len(kept) <= points
    if count:
        assert {0, count - 1, int(values.argmin()), int(values.argmax())} <= set(kept.tolist())


def test_numbers_and_places_are_those_of_the_log(tmp_path):
    events = [step_event(step, 9 - step / 10, grad_norm=step / 7, tokens_per_second=100.0) for step in range(1, 61)]
    events[30:30] = [{"type": "validation", "step": 30, "bits_per_byte": 2.5, "by_source": {"a": {"bits_per_byte": 1}}}]
    folder = write_log(tmp_path / "a", events)
    (run,) = curves({"a": folder}, asked())["runs"]
    steps = [event for event in events if event["type"] == "step"]
    assert run["series"]["loss"] == {"x": [e["tokens"] for e in steps], "y": [e["loss"] for e in steps]}
    assert run["series"]["grad_norm"]["y"] == [event["grad_norm"] for event in steps]
    assert run["series"]["cost"] == {"x": [], "y": []} and run["steps"] == run["inside"] == 60
    loss = np.array([event["loss"] for event in steps])
    assert run["series"]["smooth"]["y"] == pytest.approx(smooth(loss, span_of(60)).tolist())
    assert run["held_out"]["all"] == {"x": [30 * 128], "y": [2.5]} and run["held_out"]["unit"] == "bits_per_byte"
    assert run["held_out"]["sources"] == {"a": {"x": [30 * 128], "y": [1]}}
    (by_hours,) = curves({"a": folder}, asked(axis="hours"))["runs"]
    assert by_hours["series"]["loss"]["x"] == pytest.approx([(event["time"] - 1.7e9 - 1) / 3600 for event in steps])


def test_a_window_is_thinned_anew(tmp_path):
    folder = write_log(tmp_path / "a", [step_event(step, float(step % 97)) for step in range(1, 5001)])
    (whole,) = curves({"a": folder}, asked(axis="steps", points=50))["runs"]
    (part,) = curves({"a": folder}, asked(axis="steps", points=50, from_=100, to=130.5))["runs"]
    assert len(whole["series"]["loss"]["x"]) <= 50 and whole["reach"] == part["reach"] == [1, 5000]
    assert part["series"]["loss"]["x"] == list(range(100, 131)) and part["inside"] == 31
    assert part["series"]["loss"]["y"] == [float(step % 97) for step in range(100, 131)]


def test_a_loss_that_is_not_finite_is_a_gap_and_its_alarm_a_mark(tmp_path):
    events = [step_event(1), step_event(2, None), {"type": "alarm", "step": 2, "alarm": "not_finite", "told": "x"}]
    events += [step_event(3) | {"time": 1.7e9 + 4000}, {"type": "roll_back", "step": 3, "to": 1}, step_event(4)]
    events += [step_event(2), {"type": "checkpoint", "step": 2}]
    (run,) = curves({"a": write_log(tmp_path / "a", events[:-2])}, asked())["runs"]
    assert run["series"]["loss"]["x"] == [128, 3 * 128, 4 * 128]
    told = [(mark["kind"], mark["step"], mark["x"]) for mark in run["marks"]]
    assert told == [("alarm", 2, 256), ("roll_back", 3, 384), ("pause", 3, 384)]
    (run,) = curves({"a": write_log(tmp_path / "b", events)}, asked())["runs"]
    assert [mark["kind"] for mark in run["marks"]] == ["resumed", "checkpoint"]  # cut where the run was
    events += [{"type": "resume", "step": 2, "device": "cpu", "processes": n, "time": n} for n in (2, 1)]
    events.append(step_event(3))
    (run,) = curves({"a": write_log(tmp_path / "c", events)}, asked())["runs"]
    said = [mark["text"] for mark in run["marks"] if mark["kind"] == "resumed"]
    assert sorted(said[1:]) == ["the run went on by 1 process on cpu", "the run went on by 2 processes on cpu"]


def test_routers_are_told_with_their_own_layers_and_numbers(tmp_path):
    """What a peer's dashboard got wrong: names of layers, normalised entropy, counts of experts, where loads lie."""
    events = [step_event(step, router=routed(step, 3, 6)) for step in range(1, 41)]
    folder = write_log(tmp_path / "a", events, {"moe_layers": [2, 4, 6]})
    (run,) = curves({"a": folder}, asked(group="routers"))["runs"]
    assert run["series"]["entropy"]["y"] == pytest.approx([0.8] * 40)  # as written: of at most 1
    assert run["series"]["entropy_low"]["y"] == pytest.approx([0.7] * 40)
    assert run["series"]["busiest"]["y"] == pytest.approx([max(event["router"]["busiest"]) for event in events])
    (at,) = routers({"a": folder}, asked(step=17))["runs"]
    assert at["step"] == 17 and at["layers"] == [2, 4, 6] and at["experts"] == [6, 6, 6]
    assert np.allclose(at["load"], events[16]["router"]["load"], atol=1e-4)
    assert at["most"] == pytest.approx(max(events[16]["router"]["busiest"]), abs=1e-3)
    assert (at["first_step"], at["last_step"]) == (1, 40)
    over = experts({"a": folder}, asked(layer=4, columns=10))
    assert over["layers"] == [2, 4, 6] and over["experts"] == 6 and over["of_steps"] == 40
    assert over["steps"][0] == 1 and over["steps"][-1] == 40 and len(over["steps"]) == 10
    want = [np.array(events[step - 1]["router"]["load"][1]) * 6 for step in over["steps"]]
    assert np.allclose(over["multiple"], want, atol=2e-3)


def test_arms_are_means_over_seeds_with_students_interval(tmp_path):
    draw = np.random.default_rng(1)
    bits = draw.normal(2, 0.1, (3, 4))
    trainings = {}
    for seed in range(3):
        events = [step_event(step, 3.0 + seed) for step in range(1, 41)]
        events += [{"type": "validation", "step": 10 * (at + 1), "bits_per_byte": bits[seed, at]} for at in range(4)]
        trainings[f"x/filtered-seed{seed}"] = write_log(tmp_path / f"f{seed}", events, {"data": {"content_id": "ab"}})
    trainings["x/raw"] = write_log(tmp_path / "raw", [step_event(step) for step in range(1, 9)])
    filtered, raw = bands(trainings, asked())["arms"]
    assert (filtered["name"], filtered["seeds"], filtered["validates_on"]) == ("x/filtered", 3, "ab")
    held = filtered["held_out"]
    assert held["x"] == [1280, 2560, 3840, 5120] and np.allclose(held["mean"], bits.mean(axis=0))
    reach = 4.303 * bits.std(axis=0, ddof=1) / 3**0.5
    assert np.allclose(held["low"], bits.mean(axis=0) - reach) and np.allclose(held["high"], bits.mean(axis=0) + reach)
    assert np.allclose(filtered["loss"]["mean"], 4.0)
    assert raw["seeds"] == 1 and raw["loss"]["low"] is None and raw["held_out"]["x"] == []
    assert student(1) == 12.706 and student(20) == pytest.approx(2.086, abs=0.01)


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        ("training_curves", {"axis": "miles"}), ("training_curves", {"group": "all"}),
        ("training_curves", {"points": "1e9"}), ("training_curves", {"from": "5", "to": "5"}),
        ("training_curves", {"from": "nan"}), ("training_curves", {"runs": "../a"}),
        ("training_routers", {"step": "-1"}), ("training_experts", {"training": "../../etc"}),
        ("training_experts", {"layer": "3"}), ("training_mixture", {"runs": "a\nb"}),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(tmp_path, question, wrong):
    write_log(tmp_path / "training/a", [step_event(1, router=routed(1))], {"moe_layers": [0, 1]})
    with pytest.raises(AskedWrong):
        questions.answer(question, LiveRun(tmp_path), Asked(wrong))


def test_what_a_page_holds_stays_small_however_long_the_run(tmp_path):
    events = [step_event(step, router=routed(step, 4, 16), norms={"a": 1.0}) for step in range(1, 4001)]
    write_log(tmp_path / "training/a", events, {"moe_layers": [0, 1, 2, 3]})
    held = [one for one in questions.at_first(LiveRun(tmp_path)) if one["question"].startswith("training")]
    assert len(json.dumps(held, default=float)) < 300_000
    assert {one["question"] for one in held if "missing" in one["answer"]} == {
        "training_mixture"
    }  # no plan was written
