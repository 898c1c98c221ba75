"""One of the processes that `--launcher local` starts: trains by the configuration in the file that is named.

What is heavy is imported once signals are seen to.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

LOST = 75
"""Exit code where the cause is elsewhere: another process is gone."""


def main(given: Path) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from gristmill.base import cli

    return cli.guarded("trainer", lambda: _train(given))


def _train(given: Path) -> int:
    import logging

    from gristmill.base.config import from_mapping
    from gristmill.base.files import read_object
    from gristmill.trainer import loop
    from gristmill.trainer.config import TrainConfig
    from gristmill.trainer.parallel.world import LostTouchError

    logging.basicConfig(level=logging.INFO, format="trainer: %(message)s", stream=sys.stderr)
    try:
        loop.train(from_mapping(TrainConfig, read_object(given), str(given)))
    except LostTouchError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return LOST
    except KeyboardInterrupt:
        return 130  # the command says so
    return 0


def _leave(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    """The pipe from the process that started this one is closed when that ends, however it does."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
