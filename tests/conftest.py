"""What tests of several kinds share: tests/support as a package, an undisturbed run of the quick demo, and how long
tests of faults go on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("gristmill", deadline=None)  # how long an example takes is the machine's affair
hypothesis.settings.load_profile("gristmill")
sys.path.append(str(Path(__file__).parents[1]))
if TYPE_CHECKING:
    from tests.support.kills import Kill

KILLS = pytest.StashKey["list[Kill]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="tests of faults in full: 60 kills instead of 5")
    fresh = int(np.random.SeedSequence().generate_state(1)[0])
    parser.addoption("--faults-seed", type=int, default=fresh, help="of the moments and victims; default: a fresh one")


def pytest_report_header(config: pytest.Config) -> str:
    return f"--faults-seed {config.getoption('faults_seed')}"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[KILLS] = []


@pytest.fixture
def faults_seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("faults_seed") or 0)


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
