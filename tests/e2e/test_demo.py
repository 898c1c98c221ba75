"""The demo, whole and small: real text, the real vLLM engine, real training, and what it leaves behind."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from tests.support.scripts import ROOT, environment, run

pytestmark = pytest.mark.slow


def test_it_ends_with_ten_lines_and_what_they_say_is_there(clean: tuple[Path, str]) -> None:
    folder, out = clean
    lines = out.strip().splitlines()
    assert len(lines) == 10 and lines[0].startswith("documents") and lines[-1].startswith("look at     report open ")
    assert (folder / "report" / "index.html").stat().st_size > 50_000
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done" and {node["status"] for node in record["nodes"]} == {"done"}
    comparison = json.loads((folder / "comparison" / "comparison.json").read_text())
    verdict = next(row["verdict"] for row in comparison["sets"] if row["name"] == "all")
    told = {"better": "filtering helped", "worse": "filtering hurt", "no difference": "no clear difference"}[verdict]
    assert told in next(line for line in lines if line.startswith("held out    all"))


def test_the_readme_commands_work_on_what_the_demo_left(clean: tuple[Path, str], tmp_path: Path) -> None:
    block = (ROOT / "README.md").read_text().split("## Each command's first use")[1].split("```")[1]
    filters = (ROOT / "docs" / "filters.md").read_text().split("```")[1]
    commands = [line.partition("  #")[0] for line in (*block.splitlines(), *filters.splitlines()) if "runs/" in line]
    commands = [line for line in commands if "hf://" not in line and not line.startswith("report open")]
    assert {line.split()[0] for line in commands} == {"datapipe", "scorer", "shards", "trainer"}
    for command in (*commands, "report export runs/demo"):
        line = command.replace("runs/demo", str(clean[0])).replace("runs/", f"{tmp_path}/")
        done = subprocess.run(shlex.split(line), capture_output=True, text=True, env=environment(), check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout or command.startswith("trainer"), command


def test_a_second_run_is_all_cached(clean: tuple[Path, str]) -> None:
    code, out, error = run("demo.py", "--quick", "--output", clean[0])
    assert code == 0 and len(out.strip().splitlines()) == 10
    nodes = json.loads((clean[0] / "run.json").read_text())["nodes"]
    assert {node["status"] for node in nodes} == {"cached"}, error
