"""So many requests and tokens a minute and no more, evenly paced over all threads that share the limit."""

from __future__ import annotations

import threading
import time


class RateLimit:
    """Each request takes the time that its limits give it, and the next begins after that; 0 is without limit.

    Paced, not in bursts: a server counts in windows of its own, and no window of a minute ever holds more.
    """

    def __init__(self, requests_per_minute: int = 0, tokens_per_minute: int = 0) -> None:
        self._requests, self._tokens = requests_per_minute, tokens_per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: int) -> None:
        """Until a request of about so many tokens may be sent."""
        minutes = max(
            1 / self._requests if self._requests else 0.0, tokens / self._tokens if self._tokens else 0.0
        )  # fmt: skip
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + 60 * minutes
        time.sleep(max(0.0, start - time.monotonic()))
