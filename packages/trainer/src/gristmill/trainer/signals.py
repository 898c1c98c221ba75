"""SIGTERM and Ctrl-C end a run after the step that is under way; a second one does not wait for that."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("gristmill.trainer")


@contextlib.contextmanager
def stop_after_step(received: list[int] | None = None) -> Iterator[list[int]]:
    """A list that receives the first SIGTERM or SIGINT; a second one does what it always does, and a checkpoint that is
    on its way is still written. Beside the main thread only who gave the list puts something into it."""
    received = [] if received is None else received
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, _frame: Any) -> None:
        received.append(number)
        restore()
        log.info("signal %d: stopping after this step; again to stop without it", number)

    for number in previous:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()
