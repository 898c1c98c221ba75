"""Alarms: what raises them, what each policy does, and that a run which rolled back takes the same way again."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from tests.support.crashing import crashing_at
from tests.support.training_runs import config, disturbed, events_of, same_weights
from tests.support.training_shards import write_shards

from gristmill.base.config import from_mapping
from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import read_json
from gristmill.trainer import loop
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.watch.alarms import AlarmConfig, Alarms

EVEN, ALONE = [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]  # of 4 experts, 2 per token


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def alarms(**changes: Any) -> Alarms:
    return Alarms(AlarmConfig(**changes), top_k=2)


def calm(watch: Alarms, steps: int = 40) -> Alarms:
    """After losses that fall slowly, and differ a little from step to step."""
    for step in range(1, steps + 1):
        assert watch.judge(step, 5 - step / 100 + 0.05 * (step % 3), 1.0, [EVEN]) == []
    return watch


def test_a_spike_is_told_by_the_losses_before_and_moves_nothing_where_it_is_skipped() -> None:
    watch = calm(alarms(loss_spike="skip"))
    assert watch.accept(4.8, 1.0) and not watch.accept(7.0, 1.0)
    (alert,) = watch.judge(41, 7.0, 1.0, [EVEN])
    assert (alert.alarm, alert.policy, alert.since) == ("loss_spike", "skip", 41) and "7.0" in alert.told
    assert calm(alarms(loss_spike="warn")).accept(7.0, 1.0)
    assert calm(alarms(loss_spike="off")).judge(41, 7.0, 1.0, [EVEN]) == []


def test_nothing_is_a_spike_before_there_are_losses_to_tell_or_when_they_fall_fast() -> None:
    watch = alarms()
    for step in range(1, 60):
        assert watch.judge(step, 10 * math.exp(-step / 8) + 2, 1.0, []) == []
    assert alarms().judge(1, 1e9, 1.0, []) == []


@pytest.mark.parametrize(("nll", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (4.0, math.nan), (4.0, math.inf)])
def test_what_is_not_finite_is_never_accepted(nll: float, norm: float) -> None:
    for policy in ("skip", "roll_back", "stop"):
        watch = alarms(not_finite=policy)
        assert not watch.accept(nll, norm)
        assert watch.judge(1, nll, norm, [])[0].policy == policy


def test_a_collapse_is_told_once_when_it_has_lasted_and_dates_from_its_first_step() -> None:
    watch = alarms(collapse_steps=3, router_collapse="roll_back", dead_experts="off")
    loads = [EVEN, ALONE]
    raised = {step: watch.judge(step, 4.0, 1.0, loads) for step in range(1, 8)}
    assert [step for step, alerts in raised.items() if alerts] == [3]
    (alert,) = raised[3]
    assert (alert.alarm, alert.since) == ("router_collapse", 1) and "layer 1" in alert.told
    assert watch.judge(8, 4.0, 1.0, [EVEN, EVEN]) == []
    assert [bool(watch.judge(step, 4.0, 1.0, loads)) for step in (9, 10, 11)] == [False, False, True]


def test_as_many_experts_as_each_token_has_are_no_collapse() -> None:
    watch = alarms(collapse_steps=1)
    assert watch.judge(1, 4.0, 1.0, [[0.5, 0.5]]) == []


def test_a_dead_expert_is_named() -> None:
    watch = alarms(dead_steps=2, router_collapse="off")
    loads = [EVEN, [0.4, 0.3, 0.3, 0.0]]
    assert watch.judge(1, 4.0, 1.0, loads) == []
    (alert,) = watch.judge(2, 4.0, 1.0, loads)
    assert alert.alarm == "dead_experts" and "layer 1: expert 3" in alert.told


def test_state_goes_on_to_the_bit() -> None:
    settings: Any = {"loss_spike": "skip", "dead_steps": 45, "window": 30}
    whole, other = calm(alarms(**settings)), alarms(**settings)
    other.load_state(read_json_of(whole.state()))
    for step, loss in ((41, 4.9), (42, 9.0), (43, math.nan), (44, 4.7)):
        assert whole.accept(loss, 1.0) == other.accept(loss, 1.0)
        assert str(whole.judge(step, loss, 1.0, [ALONE])) == str(other.judge(step, loss, 1.0, [ALONE]))
    assert whole.state() == other.state()


def read_json_of(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value))


def test_too_many_acts_stop_the_run() -> None:
    watch = alarms(not_finite="skip", most=2, window=20)
    policies = [watch.judge(step, math.nan, 1.0, [])[0].policy for step in (1, 5, 9)]
    assert policies == ["skip", "skip", "stop"]
    watch = alarms(not_finite="skip", most=2, window=20)
    assert [watch.judge(step, math.nan, 1.0, [])[0].policy for step in (1, 15, 30)] == ["skip"] * 3


@pytest.mark.parametrize(
    ("alarm", "policy"), [("dead_experts", "skip"), ("dead_experts", "roll_back"), ("router_collapse", "skip"),
                          ("not_finite", "warn"), ("not_finite", "off"), ("loss_spike", "restart")],
)  # fmt: skip
def test_what_makes_no_sense_for_an_alarm_is_refused_by_name(alarm: str, policy: str) -> None:
    given: dict[str, Any] = {alarm: policy}
    with pytest.raises(UsageError, match=alarm):
        AlarmConfig(**given)
    with pytest.raises(UsageError, match=alarm):
        from_mapping(AlarmConfig, given, "alarms")


def long(shards: Path, output: Path, **policies: Any) -> Any:
    """Thirty steps, a checkpoint after every fifth."""
    about = config(shards, output, tokens=30 * 4 * 32, checkpoint_every=5, validate_tokens=0)
    return dataclasses.replace(about, alarms=AlarmConfig(**policies))


def test_a_step_that_is_skipped_leaves_the_weights_and_the_data_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_step", disturbed({24: 50.0, 27: math.nan}))
    about = long(shards, tmp_path / "run", loss_spike="skip", not_finite="skip")
    assert loop.train(about)["status"] == "done"
    steps = events_of(about.folder, "step")
    assert [event["step"] for event in steps if not event["moved"]] == [24, 27]
    assert [event["step"] for event in events_of(about.folder, "alarm")] == [24, 27]
    assert steps[26]["loss"] is None and len(steps) == 30
    assert checkpoint.position(checkpoint.newest(about.folder)).next_sequence == 30 * 4


@pytest.mark.parametrize("crash", [None, 6, 23, 24, 25, 28])
def test_a_run_rolls_back_and_takes_the_same_way_wherever_it_is_stopped(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int | None, rolled_back: Path
) -> None:
    folder = tmp_path / "run"
    about = long(shards, folder, loss_spike="roll_back")
    if crash is None:
        (event,) = events_of(rolled_back, "roll_back")
        assert (event["step"], event["to"]) == (23, 20)
        assert [event["step"] for event in events_of(rolled_back, "checkpoint")] == [0, 5, 10, 15, 20, 23, 25, 30]
        plain = tmp_path / "plain"
        loop.train(long(shards, plain, loss_spike="roll_back"))
        before = [event["loss"] for event in events_of(plain, "step")]
        after = [event["loss"] for event in events_of(rolled_back, "step")]
        assert before[:22] == after[:22] and before[23:] != after[23:]
        return
    monkeypatch.setattr(loop, "_step", disturbed({23: 50.0}))
    monkeypatch.setattr(loop, "train_step", crashing_at(crash))
    with pytest.raises(OSError):
        loop.train(about)
    loop.resume(folder)
    assert same_weights(folder, rolled_back)
    assert events_of(folder) == events_of(rolled_back)


@pytest.fixture(scope="session")
def rolled_back(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "rolled_back"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", disturbed({23: 50.0}))
        loop.train(long(shards, folder, loss_spike="roll_back"))
    return folder


def test_a_checkpoint_that_a_signal_asked_for_does_not_change_where_a_run_rolls_back_to(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rolled_back: Path
) -> None:
    """Stopped after step 21: there is a checkpoint nearer to step 23 than the undisturbed run had."""
    folder, step = tmp_path / "run", disturbed({23: 50.0})

    def signalled(run: Any, number: int, batch: Any) -> Any:
        if number == 21 and not resumed:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, number, batch)

    resumed = False
    monkeypatch.setattr(loop, "_step", signalled)
    with pytest.raises(SystemExit, match="143"):
        loop.train(long(shards, folder, loss_spike="roll_back"))
    assert checkpoint.newest(folder).name == "step-00000021"
    resumed = True
    loop.resume(folder)
    assert same_weights(folder, rolled_back)
    assert events_of(folder) == events_of(rolled_back)


def collapsing(monkeypatch: pytest.MonkeyPatch, *layers: tuple[int, ...]) -> dict[str, Any]:
    """In these steps, each layer has collapsed; settings by which that is told of after four."""
    judge = Alarms.judge

    def collapsed(watch: Alarms, step: int, nll: float, norm: float, loads: Any) -> Any:
        loads = [ALONE if step in own else load for own, load in zip(layers, loads)]
        return judge(watch, step, nll, norm, loads)

    monkeypatch.setattr(Alarms, "judge", collapsed)
    return {"collapse_steps": 4, "collapse": 0.001}


def kept(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder)]


@pytest.mark.parametrize("keep", [1, 3])
def test_what_began_before_the_newest_checkpoint_goes_back_behind_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    """A layer collapses at step 9, which is told at step 12; there are checkpoints after the steps 5 and 10. Steps in a
    row are counted anew from there: the other layer's, before step 5 and after step 12, are not."""
    settings = collapsing(monkeypatch, (4, 5, 13, 14), (9, 10, 11, 12))
    about = long(shards, tmp_path / "run", router_collapse="roll_back", **settings)
    loop.train(dataclasses.replace(about, keep_checkpoints=keep))
    (event,) = events_of(about.folder, "roll_back")
    assert (event["step"], event["to"]) == (12, 5)


def test_where_no_checkpoint_is_from_before_that_is_told(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = collapsing(monkeypatch, (), (9, 10, 11, 12))
    about = long(shards, tmp_path / "run", router_collapse="stop", **settings)
    with pytest.raises(GristmillError, match=r"step 12: layer 1 .* there is no checkpoint from before"):
        loop.train(dataclasses.replace(about, keep_checkpoints=1))


def test_of_two_alarms_in_a_step_the_one_that_began_first_is_followed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = collapsing(monkeypatch, (), (9, 10, 11, 12))
    monkeypatch.setattr(loop, "_step", disturbed({12: math.nan}))
    about = long(shards, tmp_path / "run", router_collapse="roll_back", not_finite="roll_back", **settings)
    loop.train(about)
    assert [event["alarm"] for event in events_of(about.folder, "alarm")] == ["not_finite", "router_collapse"]
    assert [event["to"] for event in events_of(about.folder, "roll_back")] == [5]


def test_a_run_that_is_killed_as_it_rolls_back_takes_the_same_way(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the checkpoint of step 12 stands, before the one of step 10, of the way it left, is gone."""
    settings = collapsing(monkeypatch, (), (9, 10, 11, 12))
    whole = long(shards, tmp_path / "whole", router_collapse="roll_back", **settings)
    loop.train(whole)
    about = dataclasses.replace(whole, output=str(tmp_path / "run"))
    rotate = checkpoint.rotate

    def killed(folder: Path, *given: Any) -> None:
        if checkpoint.step_of(checkpoint.newest(folder)) == 12:
            raise OSError("killed")
        rotate(folder, *given)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "rotate", killed)
        with pytest.raises(OSError, match="killed"):
            loop.train(about)
    assert kept(about.folder) == [5, 10, 12]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", crashing_at(1))
        with pytest.raises(OSError, match="gone"):
            loop.train(about)
    assert kept(about.folder) == [5, 12]
    loop.train(about)
    assert same_weights(about.folder, whole.folder) and events_of(about.folder) == events_of(whole.folder)
    assert kept(about.folder) == kept(whole.folder)


def test_a_run_does_not_roll_back_for_ever(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_step", disturbed(dict.fromkeys(range(7, 31), math.nan)))
    about = long(shards, tmp_path / "run", not_finite="roll_back", most=2)
    with pytest.raises(GristmillError, match=r"step 9: loss nan.*3 of the last 100 steps were given up"):
        loop.train(about)
    assert [event["to"] for event in events_of(about.folder, "roll_back")] == [5, 7]


def test_before_the_first_checkpoint_a_run_goes_back_to_its_beginning(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_step", disturbed({2: math.nan}))
    about = long(shards, tmp_path / "run", not_finite="roll_back")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", crashing_at(2))
        with pytest.raises(OSError):
            loop.train(about)
    loop.train(about)
    (event,) = events_of(about.folder, "roll_back")
    assert (event["step"], event["to"]) == (2, 0)
    assert [event["step"] for event in events_of(about.folder, "checkpoint")][:3] == [0, 2, 5]


def test_a_run_that_an_alarm_stopped_goes_on_with_another_policy(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_step", disturbed({7: math.nan}))
    about = long(shards, tmp_path / "run", not_finite="stop")
    for _ in range(2):
        with pytest.raises(GristmillError, match=r"step 7: loss nan.*step-00000005.*--alarms\.not-finite"):
            loop.train(about)
    assert read_json(about.folder / "run.json")["status"] == "failed"
    assert loop.train(long(shards, about.folder, not_finite="skip"))["status"] == "done"
