"""What tests of several kinds share: tests/support as a package, undisturbed runs of the quick demo and of one that is
smaller still, and how long tests of faults and of properties go on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest

# A change is judged by the same examples each time, and how long one takes is the machine's affair. New ones: --search.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.load_profile("same")
sys.path.append(str(Path(__file__).parents[1]))
if TYPE_CHECKING:
    from tests.support.kills import Demo, Kill

KILLS = pytest.StashKey["list[Kill]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="tests of faults in full: 60 kills instead of 5")
    parser.addoption("--faults-seed", type=int, help="of moments and victims; default: 0, with --faults a fresh one")
    parser.addoption("--search", action="store_true", help="tests of properties draw examples that nobody has seen yet")


def pytest_report_header(config: pytest.Config) -> str:
    return f"--faults-seed {config.option.faults_seed}"


def pytest_configure(config: pytest.Config) -> None:
    # What a shell begins with & ignores Ctrl-C, and so would all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[KILLS] = []
    if config.option.faults_seed is None:
        fresh = int(np.random.SeedSequence().generate_state(1)[0])
        config.option.faults_seed = fresh if config.option.faults else 0
    if config.option.search:
        hypothesis.settings.load_profile("search")


@pytest.fixture
def faults_seed(request: pytest.FixtureRequest) -> int:
    return request.config.option.faults_seed


@pytest.fixture
def all_kills(request: pytest.FixtureRequest) -> list[Kill]:
    """The kills of all rounds that ended in the same bytes, for the table at the end."""
    return request.config.stash[KILLS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    kills = terminalreporter.config.stash[KILLS]
    if kills:
        from tests.support.kills import table

        terminalreporter.section("kills")
        terminalreporter.write_line(table(kills))


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run folder, what it printed) of a small demo that nothing disturbed."""
    from tests.support.scripts import run

    folder = tmp_path_factory.mktemp("clean") / "demo"
    code, out, error = run("demo.py", "--quick", "--output", folder)
    assert code == 0, error[-4000:]
    return folder, out


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Every part of a run as the pipeline writes it, made in one process that nothing disturbed; what its oracle would
    be asked again is answered. Who changes something, copies it first."""
    from tests.support.kills import Demo
    from tests.support.oracle_server import Oracle
    from tests.support.small_demo import write_inputs

    folder = tmp_path_factory.mktemp("small")
    write_inputs(folder / "inputs")
    with Oracle(seconds=0.02) as oracle:
        demo = Demo(folder / "inputs", oracle.url, folder / "run", 0.0)
        demo.run(demo.clean, workers=0)
        yield demo
