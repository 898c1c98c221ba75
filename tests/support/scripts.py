"""The pipeline scripts in processes of their own, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent


def environment(**more: str) -> dict[str, str]:
    """This environment with the console scripts on PATH, and without a cluster that a test did not start."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", **more}


def start(script: str, *arguments: object, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "pipelines" / script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more))


def run(script: str, *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a pipeline script."""
    process = start(script, *arguments)
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error
