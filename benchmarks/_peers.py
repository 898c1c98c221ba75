"""Other people's libraries, each in a process of its own that waits between the rounds, so that rounds interleave.

They live in benchmarks/.venv, which `./dev bench` makes from requirements.txt: what they need clashes with what we do.
A peer's script reads one JSON request a line on stdin and answers each with one JSON line on stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from gristmill.base.errors import GristmillError, UsageError

FOLDER = Path(__file__).resolve().parent
PYTHON = FOLDER / ".venv" / "bin" / "python"
# One thread each, whatever a library would like.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


class Peer:
    """A running script of peers/; its stderr goes to `log`, whose end is shown where the peer fails."""

    def __init__(self, script: str, name: str, arguments: list[str | Path], log: Path) -> None:
        if not PYTHON.exists():
            raise UsageError(f"{PYTHON}: no such file: the peers' environment is made by ./dev bench")
        self.name, self.log = name, log
        environment = {**os.environ, **THREADS, "TOKENIZERS_PARALLELISM": "false"}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [PYTHON, FOLDER / "peers" / script, name, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def ask(self, **request: Any) -> Any:
        """Send a request, wait for the answer.

        Raises:
            GristmillError: the peer has died; with the last line that it wrote.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise GristmillError(f"the peer {self.name} failed: {said[-1] if said else 'it said nothing'}")
        return json.loads(answer)

    def close(self) -> None:
        """Let it go: it ends when its stdin does, and is killed if it does not."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
