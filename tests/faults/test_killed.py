"""The demo, killed with SIGKILL in the middle of three stages, ends in the same bytes as one that nothing disturbed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.support.scripts import run, start

from gristmill.base.files import sha256_folder

pytestmark = pytest.mark.slow


def test_killed_at_three_stages_it_ends_in_the_same_bytes(clean: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    for stage in ("sketch", "grades", "train_filtered"):
        process = start("demo.py", "--quick", "--output", folder)
        _wait_until_running(process, folder / "run.json", stage)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, _, error = run("demo.py", "--quick", "--output", folder)
    assert code == 0, error[-4000:]
    for output in ("documents", "annotations", "labels", "heads", "selection", "shards", "published", "comparison"):
        assert sha256_folder(folder / output) == sha256_folder(clean[0] / output), output


def _wait_until_running(process: subprocess.Popen[str], record: Path, stage: str) -> None:
    """Until `stage` is at work and has been for a moment, so that the kill hits the middle of it."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the demo ended before stage {stage}: {process.communicate()[1][-2000:]}"
        if record.exists():
            nodes = json.loads(record.read_text())["nodes"]
            if any(node["name"] == stage and node["status"] == "running" for node in nodes):
                time.sleep(0.5 if stage == "sketch" else 8)
                return
        time.sleep(0.1)
    raise AssertionError(f"stage {stage} never ran")
