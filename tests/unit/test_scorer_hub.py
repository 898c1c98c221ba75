"""Heads as a model repository: pushed in one commit, pulled whole or not at all, named by address as by folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.support.heads import texts, write_heads
from tests.support.hub_server import Hub

from gristmill.base.files import sha256_folder
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.heads import bundle
from gristmill.scorer.heads.files import FILES
from gristmill.scorer.tables import read_parquet

NAME, ADDRESS, TOKEN = "org/heads", "hf://org/heads", "hf_test_secret"
Scorer = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=4)


@pytest.fixture
def heads(backbone: Path, tmp_path: Path) -> Path:
    return write_heads(tmp_path / "heads", backbone, thresholds={"(all)": {"tau_drop": 0.45, "tau_keep": 0.5}})


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(TOKEN) as server:
        yield server


@pytest.fixture
def scorer(hub: Hub, tmp_path: Path) -> Scorer:
    """Runs the command as a user of `hub` would; looks for the token in all that it says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", "from gristmill.scorer.cli import main; main()", *map(str, arguments)],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run


def committed(hub: Hub) -> set[str]:
    return set(hub.repositories[NAME].commits[-1].files) - {".gitattributes"}


def test_pushed_in_one_commit_and_pulled_to_the_byte(hub: Hub, scorer: Scorer, heads: Path, tmp_path: Path) -> None:
    (heads / ".notes").write_text("not for others")
    done = scorer("push", heads, ADDRESS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{ADDRESS}@{hub.repositories[NAME].commits[-1].sha}\n"
    assert len(hub.repositories[NAME].commits) == 2 and committed(hub) == {*FILES, "manifest.json"}
    assert not any(request.token for request in hub.seen("/store/"))  # the token stays on the Hub's own host
    done = scorer("pull", done.stdout.strip(), tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert sha256_folder(tmp_path / "back") == sha256_folder(heads)
    assert [path.name for path in (tmp_path / "back").iterdir() if path.name.startswith(".")] == []


def test_heads_that_lost_their_thresholds_lose_them_on_the_hub(
    hub: Hub, scorer: Scorer, heads: Path, backbone: Path, tmp_path: Path
) -> None:
    assert scorer("push", heads, ADDRESS).returncode == 0
    old = hub.repositories[NAME].commits[-1].sha
    bare = write_heads(tmp_path / "bare", backbone, seed=2)
    assert scorer("push", bare, ADDRESS).returncode == 0
    assert "calibration.json" not in committed(hub)
    assert scorer("pull", ADDRESS, tmp_path / "back").returncode == 0
    assert sha256_folder(tmp_path / "back") == sha256_folder(bare)
    assert scorer("pull", f"{ADDRESS}@{old}", tmp_path / "back").returncode == 0  # over the other ones
    assert sha256_folder(tmp_path / "back") == sha256_folder(heads)


def test_an_address_stands_wherever_a_folder_may(
    hub: Hub, scorer: Scorer, heads: Path, backbone: Path, tmp_path: Path
) -> None:
    assert scorer("push", heads, ADDRESS, "--private").returncode == 0
    assert hub.repositories[NAME].private
    (tmp_path / "docs.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts(5)))
    output = tmp_path / "scores.parquet"
    common = ("--backbone", backbone, "--input", tmp_path / "docs.jsonl", "--output", output)
    done = scorer("score", "--heads", ADDRESS, *common)
    assert done.returncode == 0, done.stderr
    assert read_parquet(output)["quality"].null_count == 0
    done = scorer("inspect", f"{ADDRESS}@{hub.repositories[NAME].commits[-1].sha}")
    assert done.returncode == 0 and "# Quality heads" in done.stdout
    assert scorer("selftest", ADDRESS, "--backbone", backbone).returncode == 0


def test_nothing_but_a_heads_folder_is_fetched(hub: Hub, scorer: Scorer, heads: Path, tmp_path: Path) -> None:
    assert scorer("push", heads, ADDRESS).returncode == 0
    hub.put(NAME, {"pytorch_model.bin": b"\x80\x04 pickle", "setup.py": b"import os"})
    assert scorer("pull", ADDRESS, tmp_path / "back").returncode == 0
    assert not hub.seen(r"pytorch_model|setup\.py") and sha256_folder(tmp_path / "back") == sha256_folder(heads)
    before = sha256_folder(heads)
    hub.put(NAME, {"metrics.json": b"{}"})
    done = scorer("pull", ADDRESS, heads)
    assert done.returncode == 3 and "metrics.json: altered" in done.stderr
    assert sha256_folder(heads) == before, "what was there stays"
    hub.put("org/model", {"config.json": b"{}"})
    done = scorer("pull", "hf://org/model", tmp_path / "model")
    assert done.returncode == 3 and "no heads folder" in done.stderr
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years of work")
    assert scorer("pull", ADDRESS, tmp_path / "work").returncode == 2


def test_what_goes_wrong_is_told_in_a_line(hub: Hub, scorer: Scorer, heads: Path, tmp_path: Path) -> None:
    for arguments, code, said in (
        (("pull", "hf://org/none", tmp_path / "back"), 2, "no such model"),
        (("push", heads, "org/heads"), 2, "hf://ORG/NAME"),
        (("push", heads, f"{ADDRESS}@v1"), 2, "name no revision"),
        (("push", tmp_path, ADDRESS), 3, "manifest.json: no such file"),
    ):
        done = scorer(*arguments)
        assert done.returncode == code and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert scorer("push", heads, ADDRESS).returncode == 0
    done = scorer("pull", f"{ADDRESS}@v9", tmp_path / "back")
    assert done.returncode == 2 and "no such revision" in done.stderr
    hub.fail("POST .*/commit/", status=403)
    (heads / ".x").write_text("")
    bundle.save_calibration(loaded := bundle.load(heads), {**(loaded.calibration or {}), "note": 1}, heads)
    done = scorer("push", heads, ADDRESS)
    assert done.returncode == 1 and "HF_TOKEN" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
