"""Early stopping: when a run ends, what is kept of it, and that it ends there wherever it is stopped in between."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from tests.support.crashing import crashing_at
from tests.support.training_runs import config, events_of, same_weights
from tests.support.training_shards import write_shards

from gristmill.base.errors import UsageError
from gristmill.base.files import read_json
from gristmill.trainer import loop
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.watch.alarms import AlarmConfig, Alarms
from gristmill.trainer.watch.patience import Patience, PatienceConfig

LOSSES = {2: 5.0, 4: 4.0, 6: 4.5, 8: 4.2, 10: 4.1, 12: 3.0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses of a run that learns, and then learns no more."""
    real = loop.evaluate.summarise

    def summarise(documents: Any, nll: Any) -> dict[str, Any]:
        return real(documents, nll) | {"loss": LOSSES[step[0]]}

    step, plain = [0], loop._validate

    def validate(run: Any, events: Any) -> bool:
        step[0] = run.position.step
        return plain(run, events)

    monkeypatch.setattr(loop.evaluate, "summarise", summarise)
    monkeypatch.setattr(loop, "_validate", validate)


def patient(shards: Path, output: Path) -> TrainConfig:
    about = config(shards, output, tokens=12 * 4 * 32, validate_every=2, checkpoint_every=5, keep_checkpoints=1)
    return dataclasses.replace(about, patience=PatienceConfig(validations=3))


def test_a_loss_must_be_better_by_so_much() -> None:
    patience = Patience(PatienceConfig(validations=2, better_by=0.1))
    assert patience.judge(1, 4.0) and not patience.judge(2, 3.95) and patience.reason is None
    other = Patience(patience.config)
    other.load_state(patience.state())
    assert not other.judge(3, 3.9) and other.reason is not None and "4.0000 at step 1" in other.reason
    assert patience.judge(3, 3.8) and patience.reason is None


def test_a_loss_that_is_no_number_is_waited_through() -> None:
    patience = Patience(PatienceConfig(validations=3))
    assert not patience.judge(1, math.nan) and not patience.judge(2, -math.inf) and patience.waited == 2
    assert patience.state()["best"] is None and patience.judge(3, 4.0) and not patience.judge(4, math.nan)


def test_without_patience_nothing_is_noted() -> None:
    patience = Patience(PatienceConfig())
    assert not any(patience.judge(step, loss) for step, loss in LOSSES.items()) and patience.reason is None


def test_a_run_ends_when_it_learns_no_more_and_its_best_checkpoint_stays(
    shards: Path, tmp_path: Path, scripted: None
) -> None:
    record = loop.train(patient(shards, tmp_path / "run"))
    folder = tmp_path / "run"
    assert (record["status"], record["step"], record["steps"]) == ("done", 10, 12)
    assert record["reason"] == "no better held-out loss in 3 validations; the best was 4.0000 at step 4"
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder)] == [4, 10]
    assert checkpoint.step_of(checkpoint.find(folder, "best")) == 4
    assert [event["step"] for event in events_of(folder, "samples")] == [10]
    assert checkpoint.find(folder, "10") == checkpoint.find(folder, "latest") == checkpoint.newest(folder)
    with pytest.raises(UsageError, match=r"no checkpoint '7'.*4, 10"):
        checkpoint.find(folder, "7")
    assert loop.train(patient(shards, folder)) == read_json(folder / "run.json") == record


@pytest.mark.parametrize("crash", [4, 6, 10])
def test_it_ends_there_wherever_it_was_stopped(
    shards: Path, tmp_path: Path, scripted: None, monkeypatch: pytest.MonkeyPatch, crash: int
) -> None:
    loop.train(patient(shards, tmp_path / "whole"))
    monkeypatch.setattr(loop, "train_step", crashing_at(crash))
    with pytest.raises(OSError):
        loop.train(patient(shards, tmp_path / "again"))
    record = loop.resume(tmp_path / "again")
    assert (record["status"], record["step"]) == ("done", 10)
    assert same_weights(tmp_path / "whole", tmp_path / "again")
    assert events_of(tmp_path / "whole") == events_of(tmp_path / "again")
    assert checkpoint.step_of(checkpoint.find(tmp_path / "again", "best")) == 4


def test_a_run_that_was_killed_after_its_last_checkpoint_is_done(
    shards: Path, tmp_path: Path, scripted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint stands, run.json does not say so yet."""
    about = patient(shards, tmp_path / "run")
    whole = loop.train(about)
    from gristmill.base.files import write_json

    write_json(about.folder / "run.json", whole | {"status": "running", "reason": None})
    monkeypatch.setattr(loop, "train_step", crashing_at(1))
    again = loop.resume(about.folder)
    assert (again["status"], again["reason"]) == ("done", whole["reason"])


@pytest.mark.parametrize("every", [4, 10])
def test_roll_backs_find_older_checkpoints_and_the_best_of_that_time(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """The loss of step 5 is the best, but by then a layer has collapsed; and better ones push out no other."""
    losses = {2: 5.0, 4: 6.0, 5: 4.0} if every == 4 else {step: 10.0 - step for step in range(20)}
    wrong, back_to = (range(5, 8), 4) if every == 4 else (range(12, 20), 11)
    judge, patient_judge = Alarms.judge, Patience.judge

    def collapsed(watch: Alarms, step: int, nll: float, norm: float, loads: Any) -> Any:
        return judge(watch, step, nll, norm, [[0.5, 0.5, 0.0, 0.0]] * 2 if step in wrong else loads)

    monkeypatch.setattr(Alarms, "judge", collapsed)
    monkeypatch.setattr(Patience, "judge", lambda own, step, _: patient_judge(own, step, losses.get(step, 9.0)))
    about = dataclasses.replace(
        patient(shards, tmp_path / "run"), tokens=(wrong[-1] + 1) * 4 * 32, validate_every=1, checkpoint_every=every,
        patience=PatienceConfig(50), keep_checkpoints=2,
        alarms=AlarmConfig(router_collapse="roll_back", collapse_steps=len(wrong), collapse=0.001),
    )  # fmt: skip
    loop.train(about)
    (event,) = events_of(about.folder, "roll_back")
    assert event["step"] == wrong[-1] and (event["to"] == 4 if every == 4 else event["to"] <= back_to)
    if every == 4:
        assert checkpoint.step_of(checkpoint.find(about.folder, "best")) == 2


def test_patience_needs_documents_to_judge_by(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.start, "held_out", lambda *_: [])
    with pytest.raises(UsageError, match=r"patience\.validations: .* no document in its valid splits"):
        loop.train(patient(shards, tmp_path / "run"))


def test_patience_needs_validations(shards: Path, tmp_path: Path) -> None:
    for missing in ("validate_every", "validate_tokens"):
        with pytest.raises(UsageError, match="validate"):
            dataclasses.replace(patient(shards, tmp_path), **{missing: 0})
