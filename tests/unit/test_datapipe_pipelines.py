"""datapipe run and plan: a pipeline's script in this process's place, with its options and its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
print(sys.argv[1:])
sys.exit(7)
"""


def datapipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("datapipe")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_gets_its_options_and_its_exit_code_is_ours(tmp_path: Path) -> None:
    script = tmp_path / "pipeline.py"
    script.write_text(SCRIPT)
    done = datapipe("run", str(script), "--input", "a b", "--from", "language")
    assert (done.returncode, done.stdout) == (7, "['--input', 'a b', '--from', 'language']\n")
    assert datapipe("plan", str(script), "--workers", "0").stdout == "['--workers', '0', '--plan']\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a pipeline's script"),
        (["--output", "run"], "name a pipeline's script"),
        (["nowhere.py"], "nowhere.py: no such script"),
    ],
)
def test_without_a_script_it_says_how(arguments: list[str], said: str) -> None:
    done = datapipe("plan", *arguments)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_help_tells_what_it_does() -> None:
    done = datapipe("plan", "--help")
    assert done.returncode == 0 and "Examples:" in done.stdout
