"""Stopped by hand or by a scheduler, a pipeline ends soon, says so in one line, and goes on where it was."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tests.support.scripts import run, start


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")])
def test_a_signal_ends_the_run_and_the_next_goes_on(
    tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    corpus, folder = tmp_path / "web.jsonl", tmp_path / "run"
    with corpus.open("w") as file:
        for copy in range(20):
            for name, text in topics.items():
                file.write(json.dumps({"id": f"{name}-{copy}", "text": f"{text} {copy}"}) + "\n")
    process = start("filter_olmo3.py", "--input", corpus, "--output", folder)
    deadline = time.monotonic() + 120
    while not list((folder / "ledger").glob("*/part-*.json")):  # a partition of a stage is done
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error[-2000:]
    assert said in error.strip().splitlines()[-1] and "Traceback" not in error
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    ended, _, error = run("filter_olmo3.py", "--input", corpus, "--output", folder, "--workers", 0)
    assert ended == 0, error
    nodes = {node["name"]: node for node in json.loads((folder / "run.json").read_text())["nodes"]}
    assert nodes["documents"]["status"] == "cached"
    assert any(node["partitions_cached"] for name, node in nodes.items() if name != "documents")
