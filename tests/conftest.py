"""What tests of several kinds share: tests/support as a package, and one undisturbed run of the small demo."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run folder, what it printed) of a small demo that nothing disturbed."""
    from tests.support.scripts import run

    folder = tmp_path_factory.mktemp("clean") / "demo"
    code, out, error = run("demo.py", "--quick", "--output", folder)
    assert code == 0, error[-4000:]
    return folder, out
