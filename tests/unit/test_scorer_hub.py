"""Heads as a model repository: pushed in one commit, pulled whole or not at all, named by address as by folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tests.support.hub_server import Hub, hub
from tests.support.tiny_heads import texts, write_heads

from gristmill.base.files import sha256_folder
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.heads.files import FILES
from gristmill.scorer.tables import read_parquet

__all__ = ["hub"]  # a fixture
NAME, ADDRESS = "org/heads", "hf://org/heads"
# Commands one after the other, as a process each would be slow.
COMMANDS = """
import contextlib, io, json, sys
from gristmill.scorer import cli
results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:], said = arguments, [io.StringIO(), io.StringIO()]
    with contextlib.redirect_stdout(said[0]), contextlib.redirect_stderr(said[1]):
        try:
            cli.main()
        except SystemExit as end:
            results.append([end.code or 0, *(stream.getvalue() for stream in said)])
print(json.dumps(results))
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


Scorer = Callable[..., list[Done]]
"""Runs commands, each a tuple of its arguments."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=4)


@pytest.fixture
def heads(backbone: Path, tmp_path: Path) -> Path:
    return write_heads(tmp_path / "heads", backbone, thresholds={"(all)": {"tau_drop": 0.45, "tau_keep": 0.5}})


@pytest.fixture
def scorer(hub: Hub, tmp_path: Path) -> Scorer:
    """As a user of `hub` would run it; looks for the token in all that it says."""
    environment = hub.environment(tmp_path / "hf") | {"OMP_NUM_THREADS": "1"}

    def run(*commands: tuple[object, ...]) -> list[Done]:
        given = json.dumps([[str(one) for one in arguments] for arguments in commands])
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, given], env=environment, capture_output=True, text=True, check=False,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0 and hub.token not in done.stdout + done.stderr, done.stderr
        return [Done(*result) for result in json.loads(done.stdout.splitlines()[-1])]

    return run


def committed(hub: Hub) -> set[str]:
    return set(hub.repositories[NAME].commits[-1].files) - {".gitattributes"}


def test_pushed_in_one_commit_and_pulled_to_the_byte(hub: Hub, scorer: Scorer, heads: Path, tmp_path: Path) -> None:
    (heads / ".notes").write_text("not for others")
    pushed, pulled = scorer(("push", heads, ADDRESS), ("pull", ADDRESS, tmp_path / "back"))
    assert pushed == Done(0, f"{ADDRESS}@{hub.repositories[NAME].commits[-1].sha}\n", "")
    assert pulled == Done(0, f"{tmp_path / 'back'}: heads of {ADDRESS}\n", "")
    assert len(hub.repositories[NAME].commits) == 2 and committed(hub) == {*FILES, "manifest.json"}
    assert not any(request.token for request in hub.seen("/store/"))  # the token stays on the Hub's own host
    assert sha256_folder(tmp_path / "back") == sha256_folder(heads)
    assert [path.name for path in (tmp_path / "back").iterdir() if path.name.startswith(".")] == []


def test_heads_that_lost_their_thresholds_lose_them_on_the_hub(
    hub: Hub, scorer: Scorer, heads: Path, backbone: Path, tmp_path: Path
) -> None:
    bare = write_heads(tmp_path / "bare", backbone, seed=2)
    assert all(done.code == 0 for done in scorer(("push", heads, ADDRESS), ("push", bare, ADDRESS)))
    assert "calibration.json" not in committed(hub)
    old = hub.repositories[NAME].commits[-2].sha
    assert scorer(("pull", ADDRESS, tmp_path / "back"))[0].code == 0
    assert sha256_folder(tmp_path / "back") == sha256_folder(bare)
    assert scorer(("pull", f"{ADDRESS}@{old}", tmp_path / "back"))[0].code == 0  # over the other ones
    assert sha256_folder(tmp_path / "back") == sha256_folder(heads)


def test_an_address_stands_wherever_a_folder_may(
    hub: Hub, scorer: Scorer, heads: Path, backbone: Path, tmp_path: Path
) -> None:
    (tmp_path / "docs.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts(5)))
    output = tmp_path / "scores.parquet"
    pushed, scored, inspected, tested = scorer(
        ("push", heads, ADDRESS, "--private"),
        ("score", "--heads", ADDRESS, "--backbone", backbone, "--input", tmp_path / "docs.jsonl", "--output", output),
        ("inspect", f"{ADDRESS}@main"),
        ("selftest", ADDRESS, "--backbone", backbone),
    )
    assert pushed.code == 0 and hub.repositories[NAME].private
    assert scored.code == 0 and read_parquet(output)["quality"].null_count == 0
    assert inspected.code == 0 and "# Quality heads" in inspected.out
    assert tested.code == 0 and "gives the scores that it gave" in tested.out


def test_nothing_but_a_heads_folder_is_fetched(hub: Hub, scorer: Scorer, heads: Path, tmp_path: Path) -> None:
    before = sha256_folder(heads)
    assert scorer(("push", heads, ADDRESS))[0].code == 0
    hub.put(NAME, {"pytorch_model.bin": b"\x80\x04 pickle", "setup.py": b"import os"})
    hub.put("org/model", {"config.json": b"{}"})
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years of work")
    pulled, model, occupied = scorer(
        ("pull", ADDRESS, tmp_path / "back"),
        ("pull", "hf://org/model", tmp_path / "model"),
        ("pull", ADDRESS, tmp_path / "work"),
    )
    assert pulled.code == 0 and sha256_folder(tmp_path / "back") == before
    assert not hub.seen(r"pytorch_model|setup\.py")
    assert model.code == 3 and "no heads folder" in model.err
    assert occupied.code == 2 and "holds thesis.tex" in occupied.err
    hub.put(NAME, {"metrics.json": b"{}"})
    (altered,) = scorer(("pull", ADDRESS, heads))
    assert altered.code == 3 and "metrics.json: altered" in altered.err
    assert sha256_folder(heads) == before, "what was there stays"


def test_what_goes_wrong_is_told_in_a_line(hub: Hub, scorer: Scorer, heads: Path, tmp_path: Path) -> None:
    hub.fail("POST .*/commit/", status=403)
    expected = (
        (("push", heads, ADDRESS), 1, "check the connection, HF_TOKEN"),
        (("push", heads, ADDRESS), 0, ""),
        (("pull", "hf://org/none", tmp_path / "back"), 2, "no such model"),
        (("pull", f"{ADDRESS}@v9", tmp_path / "back"), 2, "no such revision"),
        (("push", heads, "org/heads"), 2, "hf://ORG/NAME"),
        (("push", heads, f"{ADDRESS}@v1"), 2, "name no revision"),
        (("push", tmp_path, ADDRESS), 3, "manifest.json: no such file"),
    )
    for (arguments, code, said), done in zip(expected, scorer(*(one[0] for one in expected)), strict=True):
        assert done.code == code and said in done.err, (arguments, done)
        assert len(done.err.splitlines()) == (1 if code else 0), done.err
