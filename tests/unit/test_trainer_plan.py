"""What a run would take: counted, not guessed, and nothing is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tests.support.training_shards import write_shards

from gristmill.base.errors import UsageError
from gristmill.trainer import cli
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.data import resolve_data
from gristmill.trainer.model.config import ModelSection, resolve
from gristmill.trainer.model.counts import count
from gristmill.trainer.planning import plan
from gristmill.trainer.planning.plan_config import PlanConfig
from gristmill.trainer.planning.table import table
from gristmill.trainer.watch import hardware

SMALL = ModelSection(width=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=4, top_k=2, expert_width=16)
BATCH = BatchConfig(sequence=32, sequences=4, micro=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def config(shards: Path, **changes) -> PlanConfig:
    base = PlanConfig(mixture="both", data=str(shards), tokens=8 * 4 * 32, model=SMALL, batch=BATCH, timed_steps=1)
    return dataclasses.replace(base, **changes)


def test_a_plan_says_what_the_run_would_do_and_writes_nothing(shards, tmp_path):
    asked = config(shards, output=str(tmp_path / "run"), price_per_hour=2.0)
    before = sorted(shards.rglob("*"))
    result = plan.plan(asked)
    assert sorted(shards.rglob("*")) == before and not (tmp_path / "run").exists()
    _dataset, _mixture, order = resolve_data(asked)
    assert {row["source"]: row["tokens"] for row in result["sources"]} == order.token_counts()
    assert {row["source"]: row["epochs"] for row in result["sources"]} == order.epochs()
    counts = count(resolve(SMALL, 400))
    assert result["steps"] == 8 and result["flops"] == counts.flops_per_token(32) * 1024
    assert result["memory"]["gradients"] == 4 * counts.total
    assert result["memory"]["optimizer"] == pytest.approx(8 * counts.total, rel=0.01)
    seconds = result["time"]["seconds"]
    assert seconds == pytest.approx(1024 / result["time"]["tokens_per_second"]) and seconds > 0
    assert result["cost"]["total"] == pytest.approx(seconds / 1800)
    shown = table(result)
    assert "even" in shown and "8 steps" in shown and "1 CPU thread" in shown and "at 2 an hour" in shown


def test_on_a_gpu_time_is_arithmetic_over_an_assumed_share_of_its_peak(shards):
    result = plan.plan(config(shards, gpu="H100", mfu=0.25, precision="bf16"))
    peak = hardware.of_gpu("H100")
    assert peak is not None
    assert result["time"]["seconds"] == pytest.approx(result["flops"] / (peak.flops * 0.25))
    assert "25% is assumed" in result["time"]["how"] and "NVIDIA" in result["time"]["how"]
    assert result["machine"] == {"name": "H100", "memory": 80e9, "gpus": 1, "gpus_per_node": 8}
    assert result["traffic"]["total"] == {"inside": 0, "between": 0} and result["largest_micro"] == 4
    with pytest.raises(UsageError, match="--gpu H1000: its peak is not known here; did you mean 'H100'"):
        plan.plan(config(shards, gpu="H1000"))
    for numbers in ({}, {"precision": "bf16", "expert_precision": "fp32"}):
        with pytest.raises(UsageError, match=r"--gpu H100: its peak is known in bf16.*--precision bf16"):
            plan.plan(config(shards, gpu="H100", **numbers))
    for price in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="price_per_hour"):
            config(shards, price_per_hour=price)


def test_what_makes_a_bad_run_is_warned_of(shards, tmp_path, monkeypatch):
    text = '[mixture]\nname = "often"\non_exhausted = "repeat"\n[mixture.weights]\neven = 2\nodd = 1\n'
    (tmp_path / "often.toml").write_text(text)
    often = config(shards, mixture=str(tmp_path / "often.toml"), tokens=4_000_000, timed_steps=0)
    warnings = plan.plan(often)["warnings"]
    assert [warning.split()[0] for warning in warnings[:2]] == ["even", "odd"] and "max_epochs is 4" in warnings[0]
    starved = plan.plan(config(shards, timed_steps=0))["warnings"]
    assert "tokens for each active parameter" in starved[0]
    monkeypatch.setattr(plan, "_memory_of", lambda _device: 1000)
    small = plan.plan(config(shards))
    assert small["time"]["seconds"] is None and "has 0.00 MB of memory" in small["warnings"][-1] and table(small)


def test_a_later_part_of_the_order_is_counted_by_itself(shards):
    whole, first = config(shards, tokens=2048, timed_steps=0), config(shards, tokens=1024, timed_steps=0)
    later = dataclasses.replace(first, first_sequence=1024 // 32)
    rows = [{row["source"]: row for row in plan.plan(each)["sources"]} for each in (whole, first, later)]
    for name in rows[0]:
        assert rows[0][name]["tokens"] == rows[1][name]["tokens"] + rows[2][name]["tokens"]
        assert rows[2][name]["epochs"] == rows[0][name]["epochs"]


def test_plan_on_the_command_line(shards, capsys):
    arguments = (
        f"--mixture both --data {shards} --tokens 1024 --model.width 16 --batch.sequence 32 --timed-steps 0 --json"
    )
    assert cli.plan(arguments.split()) == 0
    assert json.loads(capsys.readouterr().out)["mixture"] == "both"
    with pytest.raises(UsageError, match="--data is missing"):
        cli.plan(["--mixture", "both"])


def test_a_model_that_has_learnt_already_is_not_starved(shards, tmp_path):
    from gristmill.trainer import loop

    run = TrainConfig(
        mixture="both", data=str(shards), output=str(tmp_path / "run"), tokens=128, model=SMALL, batch=BATCH
    )
    loop.train(dataclasses.replace(run, validate_tokens=0))
    result = plan.plan(config(shards, init_from=str(tmp_path / "run"), model=ModelSection(), timed_steps=0))
    assert result["model"]["parameters"] == count(resolve(SMALL, 400)).total and not result["warnings"]
