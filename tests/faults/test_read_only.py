"""An output that may not be written is one line on stderr and exit code 1, before or in the middle of a run."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support import small_filter
from tests.support.outputs import differences

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


def as_everybody() -> None:
    """Before a program is started as root: let permissions hold for it too."""
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@pytest.fixture
def forbid() -> Iterator[Callable[[Path], None]]:
    """Make a folder one that nobody may write to."""
    changed: list[Path] = []

    def change(folder: Path) -> None:
        changed.append(folder)
        folder.chmod(0o555)

    yield change
    for folder in changed:
        folder.chmod(0o755)


def assert_refused(code: int, error: str, path: Path, why: str) -> None:
    assert code == 1, error
    last = error.strip().splitlines()[-1]
    assert last.startswith("filter_olmo3.py: ") and str(path) in last and why in last
    assert "Traceback" not in error, error


def test_a_folder_that_may_not_be_made(corpus: Path, tmp_path: Path, forbid: Callable[[Path], None]) -> None:
    (tmp_path / "theirs").mkdir()
    forbid(tmp_path / "theirs")
    code, error = small_filter.run(corpus, tmp_path / "theirs" / "run", preexec_fn=as_everybody)
    assert_refused(code, error, tmp_path / "theirs", "Permission denied")
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(("inside", "why"), [("", "File exists"), ("run", "Not a directory")])
def test_a_file_in_its_place(corpus: Path, tmp_path: Path, inside: str, why: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    code, error = small_filter.run(corpus, tmp_path / "file" / inside)
    assert_refused(code, error, tmp_path / "file", why)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_run_that_may_not_be_written_any_more(
    corpus: Path, filtered: Path, tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    """Of a finished run one partition is to be done again, where nothing may be written; then with leave."""
    folder = Path(shutil.copytree(filtered, tmp_path / "run"))
    next((folder / "annotations" / "heuristics").glob("part-*.parquet")).unlink()
    for part in ("", "ledger/heuristics", "annotations/heuristics"):
        forbid(folder / part)
        code, error = small_filter.run(corpus, folder, preexec_fn=as_everybody)
        assert_refused(code, error, folder, "Permission denied")
        (folder / part).chmod(0o755)
    code, error = small_filter.run(corpus, folder)
    assert code == 0, error
    assert differences(folder, filtered) == []
