"""One of the processes that `--launcher local` starts: trains by the configuration in the file that is named."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

from gristmill.base import cli
from gristmill.base.config import from_mapping
from gristmill.base.files import read_object
from gristmill.trainer import loop
from gristmill.trainer.config import TrainConfig


def main(given: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="trainer: %(message)s", stream=sys.stderr)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    loop.train(from_mapping(TrainConfig, read_object(given), str(given)))
    return 0


def _end_with_parent() -> None:
    """The pipe from the process that started this one is closed when that ends, however it does."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(cli.guarded("trainer", lambda: main(Path(sys.argv[1]))))
