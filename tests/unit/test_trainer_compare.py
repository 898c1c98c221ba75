"""Comparison of two evaluated runs: planted differences are found, and no others."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from gristmill.base.errors import DataError
from gristmill.base.files import read_json, write_json
from gristmill.trainer.comparison import compare


def planted(folder: Path, nll: np.ndarray, size: np.ndarray, tokens: int = 1000, sources: int = 2) -> Path:
    folder.mkdir()
    names = [f"s{i % sources}" for i in range(len(nll))]
    table = {"source": names, "id": [str(i) for i in range(len(nll))], "tokens": size // 4, "bytes": size, "nll": nll}
    parquet.write_table(pa.table(table), folder / "evaluation.parquet")
    part = {"optimizer": {}, "batch": {}, "precision": "fp32", "seed": 0}
    write_json(folder / "run.json", {"tokens": tokens, "step": 8, "model": {}, "config": part})
    write_json(folder / "evaluation.json", {"step": 8, "tokens_trained": tokens})
    return folder


def test_compare_finds_planted_differences_and_no_others(tmp_path):
    generator = np.random.default_rng(0)
    size = generator.integers(200, 2000, 400)
    hard = size * generator.normal(0.9, 0.3, 400)  # documents differ far more than the runs do
    a = planted(tmp_path / "a", hard, size)
    gain = size * generator.normal(0.01, 0.02, 400)
    better = planted(tmp_path / "better", hard - gain, size)
    same = planted(tmp_path / "same", hard + size * generator.normal(0.0, 0.02, 400), size, tokens=2000)
    result = compare.compare(better, a)
    assert [row["verdict"] for row in result["sets"]] == ["better"] * 3
    assert result["sets"][0]["difference"] == pytest.approx(-gain.sum() / size.sum() / math.log(2))
    low, high = result["sets"][0]["ci95"]
    assert low < result["sets"][0]["difference"] < high < 0 and result["budget_tokens"] == 1000
    assert [row["verdict"] for row in compare.compare(a, better)["sets"]] == ["worse"] * 3
    level = compare.compare(same, a)
    assert [row["verdict"] for row in level["sets"]] == ["no difference"] * 3
    assert level["budget_tokens"] is None and "budgets differ" in level["note"]
    assert "better is better" in compare.table(result)


def test_compare_gives_no_verdict_on_few_documents_and_refuses_different_ones(tmp_path):
    size = np.full(10, 1000)
    a = planted(tmp_path / "a", np.full(10, 900.0), size, sources=1)
    b = planted(tmp_path / "b", np.full(10, 500.0), size, sources=1)
    result = compare.compare(b, a)
    assert [row["verdict"] for row in result["sets"]] == ["no difference"] and "too few" in result["note"]
    c = planted(tmp_path / "c", np.full(9, 500.0), size[:9], sources=1)
    with pytest.raises(DataError, match="different documents"):
        compare.compare(a, c)


def test_budgets_are_those_of_the_checkpoints_that_were_evaluated(tmp_path):
    size = np.full(30, 1000)
    a, b = (planted(tmp_path / name, np.full(30, 900.0), size, sources=1) for name in "ab")
    assert "stands at" not in compare.compare(a, b)["note"]
    write_json(b / "evaluation.json", {"step": 4, "tokens_trained": 500})
    result = compare.compare(a, b)
    assert result["budget_tokens"] is None and "differ (1,000 and 500 tokens)" in result["note"]
    assert "b was evaluated at step 4, and stands at 8." in result["note"] and "a was" not in result["note"]
    write_json(a / "evaluation.json", {"step": 4, "tokens_trained": 500})
    assert compare.compare(a, b)["budget_tokens"] == 500


@pytest.mark.parametrize(("name", "content"), [
    ("run.json", b"[]"), ("run.json", b'{"config": {}}'), ("evaluation.json", b"[]"), ("evaluation.json", b"{}"),
    ("evaluation.parquet", b"PAR1"), ("evaluation.parquet", b""),
])  # fmt: skip
def test_a_damaged_file_is_told_by_name(tmp_path, name, content):
    size = np.full(30, 1000)
    a, b = (planted(tmp_path / name, np.full(30, 900.0), size, sources=1) for name in "ab")
    (b / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"b/{name}: .*(trainer eval|from a copy)"):
        compare.compare(a, b)


def test_whatever_else_decides_the_weights_and_differs_is_told(tmp_path):
    size = np.full(30, 1000)
    a, b = (planted(tmp_path / name, np.full(30, 900.0), size, sources=1) for name in "ab")
    assert "differ in" not in compare.compare(a, b)["note"]
    runs = [read_json(folder / "run.json") for folder in (a, b)]
    runs[0]["config"] |= {"expert_precision": "fp8", "unique_tokens": {}, "output": "x", "alarms": {"spike": 1}}
    runs[1]["config"] |= {"expert_precision": "", "unique_tokens": {"web": 9}, "output": "y", "alarms": {"spike": 2}}
    runs[0]["config"]["packing"] = "concat"  # which the other, an older run, does not name
    runs[0]["model"] = {"width": 8}
    for folder, run in zip((a, b), runs):
        write_json(folder / "run.json", run)
    assert "The runs differ in model, alarms, expert_precision, unique_tokens too." in compare.compare(a, b)["note"]
