"""SIGKILL of driver, worker, actor, raylet and whole node at random moments: the run goes on, or is started again, and
ends in the bytes of an undisturbed run, with every input row accounted for and no finished piece of work done twice.

One round of five kills; twelve, sixty kills, with --faults. --faults-seed repeats one (its draws, not its timing).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.support.kills import Demo, Kill, Round, write_kills
from tests.support.outputs import account, differences
from tests.support.ray_cluster import PIPELINES
from tests.support.scripts import environment

from gristmill.base.files import read_json
from gristmill.datapipe.workflow.gc import HALF_WRITTEN, gc

pytestmark = pytest.mark.slow


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(12 if metafunc.config.getoption("faults") else 1))


def test_killed_at_random_it_ends_in_the_same_bytes(
    number: int, demo: Demo, tmp_path: Path, faults_seed: int, all_kills: list[Kill]
) -> None:
    folder = tmp_path / "run"
    played = Round(number, demo, folder, np.random.default_rng([faults_seed, number]))
    try:
        played.play()
    finally:
        write_kills(tmp_path / "kills.jsonl", played.kills)
        print(f"--faults-seed {faults_seed}, round {number}:", *played.kills, sep="\n")
    assert sorted(kill.kind for kill in played.kills) == ["actor", "driver", "node", "raylet", "worker"]
    assert not played.leftovers()
    assert differences(folder, demo.clean) == []
    counts = account(folder, demo.inputs)
    assert counts == account(demo.clean, demo.inputs)
    assert counts.kept + counts.dropped + counts.quarantined == counts.ingested
    assert min(counts.kept, counts.dropped, counts.quarantined) > 0
    _check_that_nothing_is_left_to_do(demo, folder)
    gc(folder)
    assert not [path for path in folder.rglob(".*") if HALF_WRITTEN.fullmatch(path.name)]
    assert differences(folder, demo.clean) == []
    all_kills += played.kills


def test_what_is_killed_is_the_demo_in_small(demo: Demo, clean: tuple[Path, str]) -> None:
    def nodes(folder: Path, without: str = "") -> list[tuple[str, str, list[str]]]:
        return [
            (node["name"], node["kind"], [name for name in node["requires"] if name != without])
            for node in read_json(folder / "run.json")["nodes"]
            if node["name"] != without
        ]

    assert nodes(demo.clean, without="heads_code") == nodes(clean[0])  # the small one has a second rubric


def _check_that_nothing_is_left_to_do(demo: Demo, folder: Path) -> None:
    variables = environment(PYTHONPATH=PIPELINES)
    again = subprocess.run(demo.command(folder), env=variables, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert {node["status"] for node in read_json(folder / "run.json")["nodes"]} == {"cached"}
