"""TensorBoard: files in RUN/tensorboard; look at them with `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from gristmill.trainer.trackers.flatten import Histogram, Told
from gristmill.trainer.trackers.open import About


class Adapter:
    def __init__(self, about: About) -> None:
        purge = about.next_step or None  # its page then hides what was written of later steps before
        self._writer = SummaryWriter(str(about.folder / "tensorboard"), purge_step=purge, flush_secs=10)

    def write(self, step: int, told: Told) -> None:
        for name, number in told.numbers.items():
            self._writer.add_scalar(name, number, step)
        for name, histogram in told.histograms.items():
            self._histogram(name, histogram, step)
        for number, sample in enumerate(told.samples, 1):
            fenced = f"{sample['prompt']}{sample['text']}".replace("\n", "\n    ")
            self._writer.add_text(f"samples/{number}", f"    {fenced}", step)  # as code: markdown shows it as it is

    def close(self) -> None:
        self._writer.close()

    def _histogram(self, name: str, it: Histogram, step: int) -> None:
        edges = np.linspace(it.low, it.high, len(it.share) + 1)
        middles, share = (edges[1:] + edges[:-1]) / 2, np.array(it.share)
        self._writer.add_histogram_raw(
            name, min=it.low, max=it.high, num=1, sum=float(share @ middles), sum_squares=float(share @ middles**2),
            bucket_limits=edges[1:].tolist(), bucket_counts=share.tolist(), global_step=step,
        )  # fmt: skip
