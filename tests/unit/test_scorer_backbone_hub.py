"""A backbone by its address on the Hub: its own files are downloaded once, and the commit is part of its identity."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.hub_server import Hub, hub

from gristmill.scorer.backbone.staged import identify
from gristmill.scorer.backbone.tiny import write_tiny

__all__ = ["hub"]  # a fixture
NAME = "mill/tiny"
CODE = """
import json, sys
from gristmill.base.errors import UsageError
from gristmill.scorer.backbone.hub import local_folder
from gristmill.scorer.backbone.staged import StagedBackbone
try:
    folder = local_folder(sys.argv[1])
    identity = StagedBackbone.load(folder, (1, 2), "float32").identity
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    print(json.dumps({**identity.__dict__, "files": files}))
except UsageError as error:
    print(json.dumps({"error": str(error)}))
"""
Fetch = Callable[..., dict[str, Any]]


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Fetch:
    """What a user of `hub` is told about a backbone."""
    environment = hub.environment(tmp_path / "hf") | {"OMP_NUM_THREADS": "1"}

    def run(address: str, **more: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", CODE, address], env=environment | more, capture_output=True, text=True, check=False,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert hub.token not in done.stdout + done.stderr
        return json.loads(done.stdout)

    return run


def put(hub: Hub, folder: Path, **more: bytes) -> str:
    return hub.put(NAME, {path.name: path.read_bytes() for path in folder.iterdir()} | more)


def test_a_backbone_is_downloaded_once_and_named_for_its_commit(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", layers=2)
    strange = {"original/model.safetensors": b"another format \0", "model.bin": b"a pickle \0", "code.py": b"print(1)"}
    first = put(hub, folder, **strange)
    second = put(hub, write_tiny(tmp_path / "new", seed=1, layers=2))
    found = fetch(f"hf://{NAME}@{first}")
    assert (found["name"], found["revision"]) == (NAME, first)
    assert found["fingerprint"] == identify(folder).fingerprint
    assert found["files"] == sorted(path.name for path in folder.iterdir()), "nothing but what it is made of"
    newest = fetch(f"hf:/{NAME}")  # as a Path spells it
    assert newest["revision"] == second and newest["fingerprint"] != found["fingerprint"]
    seen = len(hub.requests)
    assert fetch(f"hf://{NAME}@{first}", HF_HUB_OFFLINE="1") == found
    assert len(hub.requests) == seen


def test_what_is_not_there_is_told_in_a_line(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    put(hub, write_tiny(tmp_path / "tiny", layers=2))
    for address in ("hf://mill/nothing", f"hf://{NAME}@{'0' * 40}"):
        told = fetch(address)["error"]
        assert told.startswith(f"{address.split('@')[0]}: cannot be downloaded (") and "\n" not in told
