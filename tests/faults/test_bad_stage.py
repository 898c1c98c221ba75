"""A stage that raises on one row or on all, hangs, or leaks memory: what the run does, and that the next, with the
stage mended, ends in the bytes of one that nothing disturbed."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.support.fragile import VICTIM
from tests.support.outputs import Account, account, differences
from tests.support.scripts import ROOT, environment

from gristmill.base.files import read_json

SCRIPT = ROOT / "tests" / "support" / "fragile.py"
PARTITIONS = 11  # of 42 documents
HANGS = 15  # seconds, after which a piece is taken to hang; the first one imports libraries, maybe on a busy machine


def run(corpus: Path, folder: Path, fault: str = "", workers: int = 2, **more: str) -> tuple[int, str]:
    """(exit code, stderr)."""
    command = [sys.executable, SCRIPT, corpus / "web.jsonl", folder, str(workers), f"{HANGS}s"]
    done = subprocess.run(
        command, env=environment(FRAGILE=fault, **more), capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def sound(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stage does nothing wrong."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    code, error = run(corpus, folder, workers=0)
    assert code == 0, error
    return folder


def memory_for_ray(more: float) -> dict[str, str]:
    """Ray ends workers where the machine has `more` bytes in use than now."""
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + more) / memory.total
    assert threshold < 0.95, "this machine has too little memory left for the test"
    return {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}


def status(folder: Path) -> dict[str, tuple[str, int]]:
    nodes = read_json(folder / "run.json")["nodes"]
    return {node["name"]: (node["status"], node["partitions_done"]) for node in nodes}


def test_on_one_row_that_document_is_set_aside_and_the_run_goes_on(corpus: Path, sound: Path, tmp_path: Path) -> None:
    folder, whole = tmp_path / "run", account(sound, corpus)
    code, error = run(corpus, folder, "one")
    assert code == 0, error
    (listing,) = (folder / "quarantine" / "fragile").glob("*.jsonl")
    assert f'"{VICTIM}"' in listing.read_text() and "a bug in this stage" in listing.read_text()
    found = account(folder, corpus)
    assert found.quarantined == whole.quarantined + 1 and found.ingested == whole.ingested
    assert found.kept + found.dropped + found.quarantined == found.ingested
    assert run(corpus, folder, workers=0)[0] == 0 and status(folder)["fragile"][0] == "cached"  # it stays so ...
    code, error = run(corpus, folder, workers=0, FRAGILE_VERSION="2")  # ... until the stage is another
    assert code == 0, error
    assert differences(folder, sound) == [] and account(folder, corpus) == whole


def test_on_all_rows_the_run_fails_and_names_the_bug(corpus: Path, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, error = run(corpus, folder, "all")
    assert code == 1 and status(folder)["fragile"] == ("failed", 0)
    last = error.strip().splitlines()[-1]
    assert last.startswith("fragile.py: fragile, part-00000-0") and "ValueError: a bug in this stage" in last
    assert f"(and {PARTITIONS - 1} more partitions)" in last
    code, error = run(corpus, folder, workers=0)
    assert code == 0, error
    assert differences(folder, sound) == [] and account(folder, corpus) == account(sound, corpus)


def test_a_partition_that_hangs_is_ended_and_the_others_are_done(corpus: Path, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, error = run(corpus, folder, "hang")
    assert code == 1 and status(folder)["fragile"] == ("failed", PARTITIONS - 1)
    last = error.strip().splitlines()[-1]
    assert (
        f"no result after {HANGS} s" in last
        and f"{SCRIPT}, line" in last
        and "in annotate" in last
        and "Traceback" not in error
    )
    code, error = run(corpus, folder, workers=0)
    assert code == 0, error
    assert differences(folder, sound) == [] and account(folder, corpus) == account(sound, corpus)


def test_a_leak_ends_workers_not_the_run(corpus: Path, sound: Path, tmp_path: Path) -> None:
    """All partitions together leak twice of what Ray may use beyond what is in use now."""
    folder = tmp_path / "run"
    code, error = run(corpus, folder, "leak", 2, **memory_for_ray(2.2e9))
    assert code == 0, error
    assert "its machine ran out of memory (" in error
    assert differences(folder, sound) == [] and account(folder, corpus) == account(sound, corpus)


def test_a_machine_that_others_fill_for_seconds_ends_workers_not_the_run(
    corpus: Path, sound: Path, tmp_path: Path
) -> None:
    """Ray ends the workers, for they are what it may end, though they have little memory and the piece is sound."""
    folder, watched = tmp_path / "run", memory_for_ray(3e9)
    with ThreadPoolExecutor(1) as executor:
        ran = executor.submit(run, corpus, folder, "slow", 2, **watched)
        while not ran.done() and not (folder / "annotations" / "fragile").exists():
            time.sleep(0.05)
        subprocess.run([sys.executable, "-c", "import time; x = b'x' * 4_000_000_000; time.sleep(4)"], check=True)
        code, error = ran.result()
    assert code == 0, error
    assert "its machine ran out of memory (" in error
    assert differences(folder, sound) == [] and account(folder, corpus) == account(sound, corpus)


def test_the_sound_run(corpus: Path, sound: Path) -> None:
    """What the others are compared with holds something of each kind."""
    found = account(sound, corpus)
    assert found == Account(44, found.kept, found.dropped, 2) and min(found.kept, found.dropped) > 0
