"""What a step's event says of memory is this process's own."""

from __future__ import annotations

import subprocess
import sys

PARENT = """
import subprocess, sys
held = bytearray(b"x") * 1_500_000_000
code = "import torch; from gristmill.trainer.watch.meter import peak_memory; print(peak_memory(torch.device('cpu')))"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
"""


def test_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True)
    assert 50e6 < int(done.stdout) < 1e9
