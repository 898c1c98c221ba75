"""A heads folder is whole and its own, or it is refused by the name of what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_heads import calibration, texts, write_heads

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json, sha256_file, sha256_folder, write_json
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.heads import bundle
from gristmill.scorer.heads.files import FILES
from gristmill.scorer.scoring.scorer import Scorer

TAU = {"(all)": {"tau_drop": 0.45, "tau_keep": 0.5}, "web": {}}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=4)


@pytest.fixture
def heads(backbone: Path, tmp_path: Path) -> Path:
    return write_heads(tmp_path / "heads", backbone, thresholds=TAU)


def put(folder: Path, name: str, value: Any) -> None:
    """Another content, of which the manifest knows."""
    write_json(folder / name, value)
    manifest = read_json(folder / "manifest.json")
    manifest["files"][name] = {
        "bytes": (folder / name).stat().st_size,
        "sha256": sha256_file(folder / name),
    }
    write_json(folder / "manifest.json", manifest)


def test_what_is_loaded_is_what_was_saved(heads: Path, backbone: Path, tmp_path: Path) -> None:
    loaded = bundle.load(heads)
    bundle.save(loaded, tmp_path / "again")
    assert sha256_folder(tmp_path / "again") == sha256_folder(heads)
    assert {path.name for path in heads.iterdir()} == {*FILES, "manifest.json"}
    values = read_json(heads / "scorer.json")
    assert values["taps"] == {"probe": 2, "judge": 4, "pre_norm": True}
    assert values["windows"] == {"tokens": 64, "most": 3} and values["judge"] == "encoder"
    assert values["backbone"]["fingerprint"] and set(values["versions"]) == {"torch", "transformers", "tokenizers"}


@pytest.mark.parametrize("kind", ["encoder", "attention"])
@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_heads_of_every_kind_come_back(kind: str, pooling: str, backbone: Path, tmp_path: Path) -> None:
    folder = write_heads(tmp_path / "heads", backbone, judge_kind=kind, pooling=pooling)
    loaded = bundle.load(folder)
    assert loaded.judge is not None and loaded.config.judge_kind == kind and loaded.config.pooling == pooling
    assert Scorer.load(folder, backbone).score(texts(3))["judge"].null_count == 0


@pytest.mark.parametrize("name", [*FILES])
def test_every_altered_or_missing_file_is_named(name: str, heads: Path) -> None:
    whole = (heads / name).read_bytes()
    (heads / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"{name}: altered"):
        bundle.load(heads)
    (heads / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: missing"):
        bundle.load(heads)
    (heads / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: no such file"):
        bundle.load(heads)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "heads.pt", "extra.safetensors", "scorer.pkl"])
def test_files_that_are_no_bundles_are_refused(name: str, heads: Path) -> None:
    (heads / name).write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match=rf"{name} is no file of a heads folder"):
        bundle.load(heads)
    (heads / name).unlink()
    (heads / ".gitattributes").write_text("")
    bundle.load(heads)


def test_a_calibration_that_nobody_listed_is_refused(backbone: Path, heads: Path, tmp_path: Path) -> None:
    bare = write_heads(tmp_path / "bare", backbone)
    assert bundle.load(bare).calibration is None
    shutil.copy(heads / "calibration.json", bare)
    with pytest.raises(DataError, match=r"calibration\.json: not listed"):
        bundle.load(bare)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("scorer.json", {"format": "gristmill.scorer/9"}, "format 'gristmill.scorer/9', this version reads"),
        ("scorer.json", {"rubric_sha": "0"}, "the rubric is not the one"),
        ("calibration.json", {"format": "other"}, "run `scorer calibrate` again"),
        ("calibration.json", {"mode": "certified", "n_good": 3}, "says certified by 3 labels, which takes 29"),
    ],
)
def test_what_no_command_writes_is_refused(name: str, change: dict, said: str, heads: Path) -> None:
    put(heads, name, read_json(heads / name) | change)
    with pytest.raises(DataError, match=said):
        bundle.load(heads)


@pytest.mark.parametrize(
    ("group", "change", "said"),
    [
        ("web", {"tau_drop": 0.9, "tau_keep": 0.2}, "'web' has tau_drop above tau_keep"),
        ("(all)", {"n": 3}, "made from 3 unlabelled documents, 20 needed"),
    ],
)
def test_thresholds_that_no_calibration_gives_are_refused(group: str, change: dict, said: str, heads: Path) -> None:
    found = read_json(heads / "calibration.json")
    found["groups"][group] |= change
    with pytest.raises(DataError, match=said):
        bundle.save_calibration(bundle.load(heads), found, heads)
    put(heads, "calibration.json", found)
    with pytest.raises(DataError, match=said):
        bundle.load(heads)


def test_scores_that_come_out_differently_are_refused(heads: Path, backbone: Path) -> None:
    loaded = bundle.load(heads)
    with torch.no_grad():
        loaded.probe.get_parameter("output.bias").add_(0.01)
    bundle.save(loaded, heads)
    with pytest.raises(DataError, match=r"self-test of the probe is off by 0\.01.*states by 0"):
        Scorer.load(heads, backbone)


def test_other_dtypes_pass_the_self_test(heads: Path, backbone: Path) -> None:
    from gristmill.scorer.config import ScoringConfig

    assert Scorer.load(heads, backbone, ScoringConfig(dtype="bfloat16")).score(["mill"])["quality"].null_count == 0


def test_what_stands_in_the_way_is_not_overwritten(heads: Path, tmp_path: Path) -> None:
    loaded = bundle.load(heads)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds thesis\.tex"):
        bundle.save(loaded, tmp_path / "work")


def test_a_crash_leaves_the_old_heads(heads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sha256_folder(heads)
    monkeypatch.setattr(bundle, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bundle.save_calibration(bundle.load(heads), calibration(TAU), heads)
    assert sha256_folder(heads) == before
    assert [path.name for path in heads.parent.iterdir()] == ["heads"]
    assert json.loads((heads / "calibration.json").read_text())["groups"]["(all)"]["tau_drop"] == 0.45
