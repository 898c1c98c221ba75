"""`trainer check`: a run is refused until it was checked as it is, with its data, by the code that will train it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.support.training_runs import SMALL
from tests.support.training_shards import write_shards

from gristmill.base.errors import DataError, UsageError
from gristmill.trainer import check, checked, cli, loop
from gristmill.trainer.check import CheckConfig
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.data import open_training
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelSection, presets, resolve
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim.config import OptimizerConfig


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def config(shards: Path, output: Path, **changes) -> CheckConfig:
    base = CheckConfig(
        mixture="both", data=str(shards), output=str(output), tokens=64 * 32 * 8, model=SMALL, smoke_steps=3,
        batch=BatchConfig(sequence=32, sequences=64, micro=64), validate_tokens=300,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_a_run_is_refused_until_it_was_checked_as_it_is(shards, tmp_path):
    asked = config(shards, tmp_path / "run", price_per_hour=0.36)
    run, data = asked.run, open_training(asked.run)
    with pytest.raises(UsageError, match="was not checked"):
        checked.require(run, data)
    marker = check.check(asked)
    assert sorted(path.name for path in run.folder.iterdir()) == ["checked.json"]  # smoke steps leave nothing here
    assert marker["smoke"]["steps"] == 3
    assert marker["cost"] == pytest.approx(marker["seconds"] * 1e-4, abs=1e-4)
    checked.require(run, data)
    checked.require(dataclasses.replace(run, device="cpu", threads=2, price_per_hour=30.0), data)  # another machine
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate"):
        checked.require(dataclasses.replace(run, optimizer=OptimizerConfig(learning_rate=1.0)), data)
    assert loop.train(dataclasses.replace(run, tokens=2048))["status"] == "done"  # the marker is in nobody's way
    longer = dataclasses.replace(run, tokens=run.tokens * 2)
    with pytest.raises(UsageError, match="tokens = "):
        checked.require(longer, open_training(longer))


def test_training_that_wants_a_check_begins_after_it_alone(shards, tmp_path):
    asked = config(shards, tmp_path / "run", tokens=2048, **{"require_check": True})
    with pytest.raises(UsageError, match="was not checked"):
        loop.train(asked.run)
    assert not (tmp_path / "run" / "run.json").exists()
    check.check(asked)
    assert loop.train(asked.run)["status"] == "done"


def test_other_data_or_other_code_wants_another_check(shards, tmp_path, monkeypatch):
    asked = config(shards, tmp_path / "run")
    check.check(asked)
    (tmp_path / "more").mkdir()
    other = dataclasses.replace(asked.run, data=str(write_shards(tmp_path / "more", noise=0.5)))
    with pytest.raises(UsageError, match="the data or its mixture"):
        checked.require(other, open_training(other))
    monkeypatch.setattr(checked, "code", lambda: "0" * 64)
    with pytest.raises(UsageError, match="the code"):
        checked.require(asked.run, open_training(asked.run))
    (asked.folder / "checked.json").write_text("{")
    with pytest.raises(DataError, match=r"checked\.json"):
        checked.require(asked.run, open_training(asked.run))


def test_a_damaged_shard_fails_the_check_and_leaves_no_marker(tmp_path):
    (tmp_path / "shards").mkdir()
    shards = write_shards(tmp_path / "shards")
    (shard,) = shards.glob("sources/even/tokens/*/*.u16")
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=shard.name):
        check.check(config(shards, tmp_path / "run"))
    assert not (tmp_path / "run" / "checked.json").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": ModelSection(preset="small", options={"softmax.normalize": True})}, "normalize"),
        ({"model": ModelSection(preset="small", router="sigmoid", options={"sigmoid.groups": 3})}, "groups"),
        ({"optimizer": OptimizerConfig(learning_rate=1e9, warmup=0.0)}, "finite|learning-rate"),
    ],
)
def test_what_the_run_would_fail_of_the_check_fails_of(shards, tmp_path, changes, told):
    with pytest.raises(Exception, match=told):
        check.check(config(shards, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "checked.json").exists()


@pytest.mark.parametrize("preset", presets())
def test_a_narrow_model_has_all_parts_of_the_wide_one(preset):
    wide = resolve(ModelSection(preset), 1000 if preset in ("small", "stable", "tiny") or "debug" in preset else None)
    small = resolve(check.narrow(wide))
    assert (small.experts, small.top_k, small.router, small.options) == (
        wide.experts, wide.top_k, wide.router, wide.options,
    )  # fmt: skip
    assert set(small.attention) == set(wide.attention) and bool(small.moe_layers) == bool(wide.moe_layers)
    assert small.heads % small.kv_heads == 0 and small.dense_layers == wide.dense_layers
    with torch.device("meta"):
        model = Transformer(dataclasses.replace(small, vocab=1000), precision.build("fp32"))
    assert sum(parameter.numel() for parameter in model.parameters()) < 30e6


def test_the_command_writes_the_marker(shards, tmp_path, capsys, monkeypatch):
    flags = ["--mixture", "both", "--data", str(shards), "--output", str(tmp_path / "run"), "--tokens", "20000"]
    flags += ["--model.preset", "tiny", "--batch.sequence", "32", "--smoke-steps", "2"]
    monkeypatch.setattr("sys.argv", ["trainer", "check", *flags])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and "checked.json" in capsys.readouterr().out
    asked = TrainConfig(
        mixture="both", data=str(shards), output=str(tmp_path / "run"), tokens=20000, batch=BatchConfig(sequence=32)
    )
    checked.require(asked, open_training(asked))
