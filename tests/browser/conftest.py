"""A real run to look at: the small demo, every node of it, made once; and the server of its pages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.browser import browser, serving  # noqa: F401
from tests.support.oracle_server import Oracle
from tests.support.scripts import ROOT, environment

from gristmill.report.page import build

GIVEN = os.environ.get("GRISTMILL_LOOK_AT")
"""A run that is there already, as runs/demo: nothing has to be made."""


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part of a run as the pipeline wrote it: who changes something, copies it first."""
    if GIVEN:
        return Path(GIVEN).absolute()
    folder = tmp_path_factory.mktemp("small")
    from tests.support.small_demo import write_inputs

    write_inputs(folder / "inputs")
    with Oracle() as oracle:
        script = ROOT / "tests" / "support" / "small_demo.py"
        given = ["--inputs", folder / "inputs", "--output", folder / "run", "--oracle", oracle.url, "--workers", 0]
        search = os.pathsep.join(filter(None, [str(ROOT / "pipelines"), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, str(script), *map(str, given)]
        done = subprocess.run(command, env=environment(PYTHONPATH=search), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"


@pytest.fixture(scope="session")
def exported(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the same page as a file."""
    return build(run_folder, tmp_path_factory.mktemp("page") / "page.html").as_uri()


@pytest.fixture(scope="session")
def address(run_folder: Path) -> Iterator[str]:
    """Of the page of `run_folder`, served."""
    with serving(run_folder) as found:
        yield found
