"""A full disk ends the run with one line that names the file, and exit code 1. With room again, the same command goes
on to the bytes of an undisturbed run."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import small_filter
from tests.support.outputs import differences

from gristmill.base.errors import GristmillError


def assert_one_line(error: str, why: str) -> None:
    """Beside lines about progress: `filter_olmo3.py: FILE: cannot be written (WHY)`."""
    assert "Traceback" not in error, error
    last = error.strip().splitlines()[-1]
    assert last.startswith("filter_olmo3.py: ") and why in last and str(os.sep) in last, error


def test_full_again_and_again_it_gets_further_each_time(
    corpus: Path, filtered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Always the same number of files fits; then none, until the run has ended."""
    room, sync = 0, os.fsync

    def until_full(file: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", until_full)
    folder, attempts = tmp_path / "run", 0
    while True:
        room, attempts = 25, attempts + 1
        try:
            small_filter.run_here(corpus, folder)
            break
        except GristmillError as error:
            assert "No space left on device" in str(error) and str(folder) in str(error)
        assert attempts < 30
    assert attempts > 3
    assert differences(folder, filtered) == []


def test_a_file_that_may_grow_no_larger_is_told_by_name(corpus: Path, filtered: Path, tmp_path: Path) -> None:
    def limited() -> None:  # Python ignores the signal that comes with it
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    code, error = small_filter.run(corpus, tmp_path / "run", preexec_fn=limited)
    assert code == 1
    assert_one_line(error, "File too large")
    code, error = small_filter.run(corpus, tmp_path / "run")
    assert code == 0, error
    assert differences(tmp_path / "run", filtered) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; its size is set by `mount -o remount,size=`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here ({mounted.stderr.strip()}); the tests above do without")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_real_disk_that_is_full(corpus: Path, filtered: Path, small_disk: Path) -> None:
    for kilobytes in (200, 500):
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", small_disk], check=True)
        code, error = small_filter.run(corpus, small_disk / "run")
        assert code == 1, kilobytes
        assert_one_line(error, "No space left on device")
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    code, error = small_filter.run(corpus, small_disk / "run")
    assert code == 0, error
    assert differences(small_disk / "run", filtered) == []
