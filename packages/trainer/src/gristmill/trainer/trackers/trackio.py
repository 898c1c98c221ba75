"""trackio (Hugging Face): a local data base, in TRACKIO_DIR; look at it with `trackio show`.

Where someone is logged in to the Hub, it asks there for their name. Steps that come again when a run goes on stand
there twice, with the same numbers.
"""

from __future__ import annotations

import trackio

from gristmill.trainer.trackers.flatten import Told
from gristmill.trainer.trackers.open import About


class Adapter:
    def __init__(self, about: About) -> None:
        self._run = trackio.init(
            about.project, name=f"{about.name}-{about.id}", config=about.facts, resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def write(self, step: int, told: Told) -> None:
        texts = {f"samples/{number}": one["prompt"] + one["text"] for number, one in enumerate(told.samples, 1)}
        self._run.log({**told.numbers, **texts}, step=step)

    def close(self) -> None:
        trackio.finish()  # or it would say at exit, after our last word, that it has finished
