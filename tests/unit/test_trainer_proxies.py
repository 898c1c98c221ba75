"""Proxies of two mixtures: planted differences are found, intervals know of seeds, a re-run does what is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tests.support.crashing import crashing_at
from tests.support.training_shards import write_shards

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json
from gristmill.trainer import cli, loop
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.comparison import paired, proxies
from gristmill.trainer.comparison.proxies_config import ProxiesConfig
from gristmill.trainer.config import BatchConfig
from gristmill.trainer.model.config import ModelSection
from gristmill.trainer.watch.config import SamplesConfig

SMALL = ModelSection(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, experts=4, top_k=2, expert_width=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two datasets, and the second is the first with two documents of noise to each of its own."""
    root = tmp_path_factory.mktemp("data")
    for name, noise in (("clean", 0.0), ("noisy", 2.0)):
        (root / name).mkdir()
        write_shards(root / name, noise=noise)
    return root


def config(data: Path, output: Path, **changes) -> ProxiesConfig:
    base = ProxiesConfig(
        mixtures=f"both@{data / 'clean'},both@{data / 'noisy'}", output=str(output), seeds=3, tokens=24 * 8 * 32,
        held_out=str(data / "clean"), validate_tokens=0, model=SMALL, samples=SamplesConfig(tokens=0),
        batch=BatchConfig(sequence=32, sequences=8, micro=8),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("proxies") / "out"
    return output, proxies.run(config(data, output))


def test_noise_is_found_out_and_so_is_that_dropping_text_at_random_does_not_help(compared):
    output, result = compared
    assert [arm["name"] for arm in result["arms"]] == ["clean", "noisy", "random-drop"]
    for each, name in zip(result["comparisons"], ("noisy", "random-drop")):
        assert (each["a"], each["b"]) == ("clean", name)
        assert [row["name"] for row in each["sets"]] == ["all", "even", "odd"]
        row = each["sets"][0]
        assert row["verdict"] == "better" and row["ci95"][1] < 0 and len(row["by_pair"]) == 3
        assert row["difference"] == pytest.approx(np.mean(row["by_pair"]))
    assert "clean is better than noisy by" in result["verdict"]
    assert "clean is better than random-drop by" in result["verdict"]
    assert read_json(output / "comparison.json") == result
    assert "</svg>" in (output / "comparison.svg").read_text()
    assert result["verdict"] in proxies.table(result)


def test_the_control_has_as_much_text_as_the_first_and_pairs_share_all_but_the_text(compared):
    output, result = compared
    clean, noisy, drop = ({row["source"]: row["unique_tokens"] for row in arm["sources"]} for arm in result["arms"])
    assert drop == pytest.approx(clean, rel=0.01) and all(noisy[name] > 1.5 * clean[name] for name in clean)
    runs = {name: read_json(output / name / "run.json") for name in result["runs"]}
    for seed in range(3):
        of_seed = [runs[f"{arm}-seed{seed}"] for arm in ("clean", "noisy", "random-drop")]
        for run in of_seed:
            assert run["config"]["seed"] == run["config"]["data_seed"] == seed and run["tokens"] == 24 * 8 * 32
            assert run["model"] == of_seed[0]["model"]
    windows = {source["source"]: source["windows"] for source in runs["random-drop-seed0"]["plan"]["sources"]}
    for source in runs["clean-seed0"]["plan"]["sources"]:
        assert windows[source["source"]] == pytest.approx(source["windows"], abs=2)


def test_a_rerun_does_only_what_is_missing_and_comes_to_the_same(data, compared, tmp_path, monkeypatch):
    first, result = compared
    output = tmp_path / "again"
    shutil.copytree(first, output)
    shutil.rmtree(output / "noisy-seed1")
    (output / "clean-seed0" / "evaluation.json").unlink()
    (output / "comparison.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    asked = config(data, output)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="the machine is gone"):
        patch.setattr(loop, "train_step", crashing_at(10))
        proxies.run(asked)
    assert not (output / "comparison.json").exists()
    assert proxies.run(asked) == result
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    again, before = (checkpoint.newest(folder / "noisy-seed1") for folder in (output, first))
    for name, value in load_file(before / "model.safetensors").items():
        assert value.equal(load_file(again / "model.safetensors")[name])
    scored = {path: path.stat().st_mtime_ns for path in output.rglob("evaluation.json")}
    proxies.run(asked)
    assert all(path.stat().st_mtime_ns == then for path, then in scored.items())
    proxies.run(dataclasses.replace(asked, held_out_tokens=300))  # fewer documents: scored again
    assert all(path.stat().st_mtime_ns != then for path, then in scored.items())
    with pytest.raises(UsageError, match=r"holds a run with optimizer.learning_rate"):
        optimizer = dataclasses.replace(asked.optimizer, learning_rate=1e-4)
        proxies.run(dataclasses.replace(asked, optimizer=optimizer))


def test_without_more_text_than_the_first_has_there_is_no_random_drop(data, tmp_path):
    reversed_ = f"both@{data / 'noisy'},both@{data / 'clean'}"
    result = proxies.run(config(data, tmp_path / "out", mixtures=reversed_, seeds=1, tokens=8 * 8 * 32, plot=False))
    assert [arm["name"] for arm in result["arms"]] == ["noisy", "clean"] and "No random drop" in result["note"]
    assert "not of the seed" in result["note"] and not (tmp_path / "out" / "comparison.svg").exists()


def test_data_that_cannot_be_compared_is_refused(data, tmp_path):
    with pytest.raises(UsageError, match="the same text in the same order"):
        clean = data / "clean"
        proxies.run(config(data, tmp_path / "a", mixtures=f"a=both@{clean},b=both@{clean}"))
    assert not (tmp_path / "a").exists()
    first, second = (proxies._planned(config(data, tmp_path), arm) for arm in config(data, tmp_path).arms())
    tokenizer = second.dataset.tokenizer.model_copy(update={"name": "huge", "sha256": "0" * 64})
    with pytest.raises(DataError, match=r"different tokenizers \(tiny, huge\)"):
        proxies._require_comparable(
            [first, second._replace(dataset=dataclasses.replace(second.dataset, tokenizer=tokenizer))]
        )


@pytest.mark.parametrize(
    ("mixtures", "names"),
    [
        ("a@x/f,b@x/g", ["a", "b"]),
        ("m@x/f,m@x/g", ["f", "g"]),
        ("m,n", ["m", "n"]),
        ("one=m@hf://datasets/o/n@v1,two=m@hf://datasets/o/n@v2", ["one", "two"]),
        ("mixtures/a.toml@x/f,mixtures/b.toml@y/f", ["a", "b"]),
    ],
)
def test_arms_are_named_by_what_tells_them_apart(mixtures, names):
    arms = ProxiesConfig(mixtures=mixtures, data="d", output="o").arms()
    assert [arm.name for arm in arms] == names
    if "hf:" in mixtures:
        assert [arm.data for arm in arms] == ["hf://datasets/o/n@v1", "hf://datasets/o/n@v2"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mixtures": "a"}, "give two"),
        ({"mixtures": "a,b,c"}, "give two"),
        ({"mixtures": "m,m"}, "two of one name"),
        ({"mixtures": "random-drop=m,n"}, "cannot be a name here"),
        ({"mixtures": "../x=m,n"}, "cannot be a name here"),
        ({"mixtures": "m,n", "data": ""}, "where is its data"),
        ({"mixtures": "m,n", "output": ""}, "--output is missing"),
        ({"mixtures": "m,n", "mixture": "m"}, "name both in --mixtures"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_settings_that_make_no_comparison_are_refused(changes, why):
    with pytest.raises(UsageError, match=why):
        ProxiesConfig(**{"data": "d", "output": "o"} | changes).arms()


def test_documents_that_may_have_been_trained_on_are_told_of(data, tmp_path):
    planned = [proxies._planned(config(data, tmp_path), arm) for arm in config(data, tmp_path).arms()]
    held_out = planned[0].dataset
    assert proxies._leaks(planned, held_out) == []
    source = held_out.sources["even"]
    order = source.manifest.order.model_copy(update={"salt": "another"})
    manifest = source.manifest.model_copy(update={"order": order})
    other = dataclasses.replace(
        held_out, sources={**held_out.sources, "even": dataclasses.replace(source, manifest=manifest)}
    )
    assert "clean's even, noisy's even" in proxies._leaks(planned, other)[0]


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    """Documents and seeds both vary; without the seeds the interval would miss far more often."""
    generator = np.random.default_rng(seeds)
    size_D = generator.integers(200, 2000, 60)
    held, alone, rounds = 0, 0, 200
    for number in range(rounds):
        of_seed, of_document = generator.normal(0, 0.01, (seeds, 1)), generator.normal(0, 0.03, 60)
        bits_SD = size_D * (of_seed + of_document + generator.normal(0, 0.02, (seeds, 60)))
        low, high = paired.interval(bits_SD, size_D, number)
        held += low <= 0 <= high
        low, high = paired.interval(bits_SD.mean(axis=0, keepdims=True), size_D, number)
        alone += low <= 0 <= high
    assert held / rounds >= 0.93 and alone < held


def test_verdicts_in_words():
    better = {"difference": -0.0312, "ci95": [-0.04, -0.02], "verdict": "better"}
    worse = {"difference": 0.05, "ci95": [0.01, 0.09], "verdict": "worse"}
    level = {"difference": -0.001, "ci95": [-0.01, 0.008], "verdict": "no difference"}
    told = proxies.verdict([{"a": "x", "b": name, "sets": [row]} for name, row in zip("yzw", (better, worse, level))])
    assert told == (
        "x is better than y by 0.0312 bits per byte (95 % 0.0200 to 0.0400); "
        "x is worse than z by 0.0500 bits per byte (95 % 0.0100 to 0.0900); "
        "x is not shown to be better or worse than w (-0.0010 bits per byte, 95 % -0.0100 to +0.0080)"
    )


def test_compare_trains_where_mixtures_are_given(data, compared, capsys):
    output, result = compared
    model = " ".join(
        f"--model.{name.replace('_', '-')} {value}"
        for name, value in dataclasses.asdict(SMALL).items()
        if value is not None and name != "preset"
    )
    arguments = (
        f"--mixtures both@{data / 'clean'},both@{data / 'noisy'} --output {output} --seeds 3 --tokens {24 * 8 * 32} "
        f"--held-out {data / 'clean'} --validate-tokens 0 --batch.sequence 32 {model} --samples.tokens 0 --json"
    )
    assert cli.compare(arguments.split()) == 0
    assert json.loads(capsys.readouterr().out) == result
    with pytest.raises(SystemExit):
        cli.compare(["--mixtures", "--help"])
    assert "random" in capsys.readouterr().out


def test_a_plot_that_cannot_be_drawn_is_named_before_anything_is_trained(data, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"gristmill-trainer\[plot\]"):
        proxies.run(config(data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
