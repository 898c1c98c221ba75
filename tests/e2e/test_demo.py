"""The demo, whole and small: real text, the real vLLM engine, real training; and killed amid three stages."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from scripts import ROOT, environment, run, start

from gristmill.base.files import sha256_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run folder, what it printed) of a demo that nothing disturbed."""
    folder = tmp_path_factory.mktemp("clean") / "demo"
    code, out, error = run("demo.py", "--quick", "--output", folder)
    assert code == 0, error[-4000:]
    return folder, out


def test_it_ends_with_ten_lines_and_what_they_say_is_there(clean: tuple[Path, str]) -> None:
    folder, out = clean
    lines = out.strip().splitlines()
    assert len(lines) == 10 and lines[0].startswith("documents") and lines[-1].startswith("look at")
    assert (folder / "report" / "index.html").stat().st_size > 50_000
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done" and {node["status"] for node in record["nodes"]} == {"done"}
    comparison = json.loads((folder / "comparison" / "comparison.json").read_text())
    verdict = next(row["verdict"] for row in comparison["sets"] if row["name"] == "all")
    told = {"better": "filtering helped", "worse": "filtering hurt", "no difference": "no clear difference"}[verdict]
    assert told in next(line for line in lines if line.startswith("held out    all"))


def test_the_readme_commands_work_on_what_the_demo_left(clean: tuple[Path, str], tmp_path: Path) -> None:
    block = (ROOT / "README.md").read_text().split("## Each command's first use")[1].split("```")[1]
    commands = [line.partition("  #")[0] for line in block.splitlines() if "runs/" in line]
    commands = [line for line in commands if "hf://" not in line and not line.startswith("report open")]
    assert {line.split()[0] for line in commands} == {"datapipe", "scorer", "shards", "trainer"}
    for command in (*commands, "report build runs/demo"):
        line = command.replace("runs/demo", str(clean[0])).replace("runs/first", str(tmp_path / "first"))
        done = subprocess.run(shlex.split(line), capture_output=True, text=True, env=environment(), check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout or command.startswith("trainer"), command


def test_a_second_run_is_all_cached(clean: tuple[Path, str]) -> None:
    code, out, error = run("demo.py", "--quick", "--output", clean[0])
    assert code == 0 and len(out.strip().splitlines()) == 10
    nodes = json.loads((clean[0] / "run.json").read_text())["nodes"]
    assert {node["status"] for node in nodes} == {"cached"}, error


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
