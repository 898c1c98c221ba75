"""A real run to look at: the small demo, every node of it, made once; and the server of its pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.browser import browser, serving  # noqa: F401

from gristmill.report.page import build

GIVEN = os.environ.get("GRISTMILL_LOOK_AT")
"""A run that is there already, as runs/demo: nothing has to be made."""


@pytest.fixture(scope="session")
def run_folder(request: pytest.FixtureRequest) -> Path:
    """Every part of a run as the pipeline wrote it: who changes something, copies it first."""
    return Path(GIVEN).absolute() if GIVEN else request.getfixturevalue("small_demo").clean


@pytest.fixture(scope="session")
def exported(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the same page as a file."""
    return build(run_folder, tmp_path_factory.mktemp("page") / "page.html").as_uri()


@pytest.fixture(scope="session")
def address(run_folder: Path) -> Iterator[str]:
    """Of the page of `run_folder`, served."""
    with serving(run_folder) as found:
        yield found
