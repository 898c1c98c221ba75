"""Weights & Biases: offline, files in RUN/wandb that `wandb sync RUN/wandb/offline-*` sends later; or as it happens.

It is told the numbers and nothing of the machine: no command line, no code, no output, no host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import wandb

from gristmill.trainer.trackers.flatten import Told
from gristmill.trainer.trackers.open import About


class Adapter:
    def __init__(self, about: About) -> None:
        # Steps that come again when a run goes on have the same numbers; its page keeps those that came first.
        self._run = wandb.init(
            project=about.project, name=about.name, id=about.id, resume="allow", dir=str(about.folder),
            mode="online" if about.online else "offline", config=about.facts,
            settings=wandb.Settings(
                console="off", quiet=True, save_code=False, disable_code=True, disable_git=True,
                x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
            ),
        )  # fmt: skip

    def write(self, step: int, told: Told) -> None:
        values: dict[str, object] = dict(told.numbers)
        for name, one in told.histograms.items():
            edges = np.linspace(one.low, one.high, len(one.share) + 1)
            values[name] = wandb.Histogram(np_histogram=(np.array(one.share), edges))
        if told.samples:
            rows: list[Any] = [[sample["prompt"], sample["text"]] for sample in told.samples]
            values["samples"] = wandb.Table(columns=["prompt", "text"], data=rows)
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
