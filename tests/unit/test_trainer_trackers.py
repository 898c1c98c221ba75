"""Where numbers go: events.jsonl whatever happens, and to trackers for as long as these work."""

from __future__ import annotations

import json
import logging
import sys
import types
from pathlib import Path

import pytest

from gristmill.base.errors import DataError, UsageError
from gristmill.trainer import loop
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.trackers.flatten import Told, flatten
from gristmill.trainer.trackers.jsonl import read_events
from gristmill.trainer.trackers.open import About, facts, open_trackers
from gristmill.trainer.watch.config import TrackersConfig

ROUTER = {
    "load": [[0.5, 0.5], [0.9, 0.1]], "entropy": [0.9, 0.3], "dead": [0, 1], "bias_range": [], "dropped": [0.0, 0.25],
    "logits": {"low": -8.0, "high": 8.0, "share": [[0.5, 0.5], [1.0, 0.0]]},
}  # fmt: skip
STEP = {
    "tokens": 128, "loss": 3.5, "time": 1.7e9, "cost": None, "norms": {"experts": 0.5}, "updates": None,
    "tokens_by_source": {"web": 96, "code": 32}, "router": ROUTER,
}  # fmt: skip
RECORD = {
    "moe_layers": [1, 3],
    "parameters": 1000,
    "config": {"data": "s3://key:hf_SECRET@host/x", "precision": "bf16", "batch": {"sequence": 32}, "tokens": 4096},
    "data": {"mixture": "both"},
}


def test_names_are_what_their_pages_group_by():
    told = flatten("step", STEP, [1, 3])
    assert told.numbers == {
        "train/tokens": 128, "train/loss": 3.5, "norms/experts": 0.5, "router/entropy/layer1": 0.9,
        "router/entropy/layer3": 0.3, "router/dead/layer1": 0, "router/dead/layer3": 1, "router/dropped/layer1": 0.0,
        "router/dropped/layer3": 0.25,
    }  # fmt: skip
    assert told.histograms["router/logits/layer3"].share == [1.0, 0.0]


def test_validation_is_told_by_source():
    by_source = {"web": {"loss": 2.0, "bytes": None}}
    told = flatten("validation", {"loss": 2.5, "bits_per_byte": None, "by_source": by_source}, [])
    assert told.numbers == {"validation/loss": 2.5, "validation/web/loss": 2.0}


def test_numbers_that_are_none_are_left_out_of_trackers_and_null_in_the_log(tmp_path):
    assert flatten("step", {"loss": float("nan"), "grad_norm": float("inf")}, []).numbers == {}
    log = open_trackers(TrackersConfig(), tmp_path, RECORD, -1)
    log.write("step", 1, loss=float("nan"), norms={"experts": float("inf")}, row=[1.0, float("-inf")])
    log.close()
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event == {"type": "step", "step": 1, "loss": None, "norms": {"experts": None}, "row": [1.0, None]}


@pytest.mark.parametrize("line", [b"{", b"\xc3", b"[]", b"{}", b'{"type": "step", "step": null}'])
def test_a_line_that_is_no_event_is_named(tmp_path, line):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"type": "step", "step": 1}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"{path}: line 2 is no event; delete that line"):
        open_trackers(TrackersConfig(), tmp_path, RECORD, 1)
    path.write_bytes(b'{"type": "step", "step": 1}\n' + line)
    assert [event["step"] for event in read_events(path)] == [1]


class Fake:
    """A tracker's adapter that remembers, and fails where it is told to."""

    made: list[Fake]
    fails: str

    def __init__(self, about: About) -> None:
        self.about, self.steps, self.closed = about, [], False
        Fake.made.append(self)
        if Fake.fails == "open":
            raise OSError("no network")

    def write(self, step: int, told: Told) -> None:
        if Fake.fails == "write" and step == 2:
            raise RuntimeError("over quota\nand a long story")
        self.steps.append(step)

    def close(self) -> None:
        if Fake.fails == "close":
            raise RuntimeError("gone")
        self.closed = True


@pytest.fixture
def fake(monkeypatch) -> type[Fake]:
    module = types.ModuleType("fake")
    module.Adapter = Fake  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "gristmill.trainer.trackers.wandb", module)
    Fake.made, Fake.fails = [], ""
    return Fake


@pytest.mark.parametrize("fails", ["", "open", "write", "close"])
def test_a_tracker_that_fails_is_left_out_once_and_said_so_once(tmp_path, fake, caplog, fails):
    fake.fails = fails
    with caplog.at_level(logging.WARNING, "gristmill.trainer"):
        trackers = open_trackers(TrackersConfig(use=("wandb",)), tmp_path, RECORD, -1)
        for step in (1, 2, 3, 4):
            trackers.write("step", step, **STEP)
        trackers.sync()
        trackers.close()
    assert [event["step"] for event in read_events(tmp_path / "events.jsonl")] == [1, 2, 3, 4]
    (adapter,) = fake.made
    assert adapter.steps == {"open": [], "write": [1]}.get(fails, [1, 2, 3, 4])
    assert adapter.closed == (fails == "")
    assert len(caplog.messages) == (1 if fails else 0)
    assert all("wandb" in message and "\n" not in message for message in caplog.messages)


def test_a_run_that_goes_on_keeps_its_id(tmp_path, fake):
    config = TrackersConfig(use=("wandb",), name="mine")
    for last in (-1, 7):
        open_trackers(config, tmp_path, RECORD, last).close()
    first, second = (adapter.about for adapter in fake.made)
    assert first.id == second.id and (first.next_step, second.next_step) == (0, 8) and first.name == "mine"
    other = tmp_path / "other"
    other.mkdir()
    open_trackers(config, other, RECORD, -1).close()
    assert fake.made[-1].about.id != first.id


@pytest.mark.parametrize("content", ["[]", "{", '{"id": 5}'])
def test_a_damaged_id_leaves_trackers_out_and_training_goes_on(tmp_path, fake, caplog, content):
    (tmp_path / "trackers.json").write_text(content)
    trackers = open_trackers(TrackersConfig(use=("wandb",)), tmp_path, RECORD, -1)
    trackers.write("step", 1, **STEP)
    trackers.close()
    assert [event["step"] for event in read_events(tmp_path / "events.jsonl")] == [1] and not fake.made
    assert len(caplog.messages) == 1 and "trackers.json" in caplog.text and "delete it" in caplog.text


def test_a_package_that_is_not_installed_is_named_before_anything_is_read_or_written(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "gristmill.trainer.trackers.wandb", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = TrainConfig("both", "no/shards", str(tmp_path / "run"), trackers=TrackersConfig(use=("wandb",)))
    with pytest.raises(UsageError, match="pip install wandb"):
        loop.train(config)
    assert list(tmp_path.iterdir()) == []


def test_trackers_are_not_told_addresses():
    assert facts(RECORD) == {
        "config.precision": "bf16", "config.batch.sequence": 32, "config.tokens": 4096, "parameters": 1000,
    }  # fmt: skip


def write_run(folder: Path, use: str, steps: range, last_step: int) -> None:
    trackers = open_trackers(TrackersConfig(use=(use,), project="tests"), folder, RECORD, last_step)  # pyright: ignore
    for step in steps:
        trackers.write("step", step, **STEP | {"loss": 4.0 - step})
    trackers.write("samples", steps[-1], samples=[{"prompt": "The ", "text": "<script>end"}])
    trackers.write("validation", steps[-1], loss=2.5, by_source={"web": {"loss": 2.0}})
    trackers.close()


def test_tensorboard_shows_each_step_once_after_a_run_went_on(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_run(tmp_path, "tensorboard", range(1, 6), -1)
    write_run(tmp_path, "tensorboard", range(4, 8), 3)
    assert not caplog.messages
    page = EventAccumulator(str(tmp_path / "tensorboard"))
    page.Reload()
    assert [(one.step, one.value) for one in page.Scalars("train/loss")] == [(n, 4.0 - n) for n in range(1, 8)]
    assert page.Scalars("validation/web/loss")[-1].value == 2.0
    assert "router/logits/layer3" in page.Tags()["histograms"]


def test_wandb_offline_needs_no_account_and_knows_no_secret(tmp_path, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    monkeypatch.setattr(sys, "argv", ["trainer", "run", "--data", "s3://key:hf_SECRET@host/x"])
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    write_run(tmp_path, "wandb", range(1, 4), -1)
    wandb.teardown()  # else its own process may still be writing
    assert not caplog.messages
    folder = next((tmp_path / "wandb").glob("offline-run-*"))
    assert json.loads((tmp_path / "trackers.json").read_text())["id"] in folder.name
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".wandb" and b"train/loss" in path.read_bytes() for path in files)
    for path in files:
        assert b"SECRET" not in path.read_bytes(), path


def test_trackio_goes_on_with_the_same_run_and_leaves_the_output_to_us(tmp_path, monkeypatch, caplog, capsys):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path)
    write_run(tmp_path, "trackio", range(1, 4), -1)
    write_run(tmp_path, "trackio", range(4, 6), 3)
    assert not caplog.messages and capsys.readouterr().out == ""
    storage = sqlite_storage.SQLiteStorage
    (run,) = storage.get_runs("tests")
    assert [row["step"] for row in storage.get_logs("tests", run) if "train/loss" in row] == [1, 2, 3, 4, 5]
