"""What experts in fp8 and nvfp4 cost in loss beside bf16, with and without the scales of the small-model recipe.

./dev bench precision                three seeds, 500 steps each
./dev bench precision --quick        one seed, 50 steps
./dev bench precision --corpus DIR   bytes of DIR/*.jsonl.gz (field "text") instead of the installed packages' text

The claim under test: embeddings times 10.667, logits times 0.125, no clipping, and a learnt scalar of 2.0 on the
experts' output ("bungee") bring fp8 and nvfp4 experts to bf16's loss. A byte model of 2 layers, 8 experts, top 2, an
auxiliary-loss-free router; the experts' products, forward and backward, in the format named, all else in bf16. A gap is
against the bf16 run of the same recipe, seed and order of text; fp32 experts show what a gap of mere rounding is.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from _precision_runs import BATCH, SEQUENCE, SHAPE, Job, Outcome, train, write_text
from _results import Row, publish, row
from gristmill.base import cli
from gristmill.base.progress import Progress

BASE = "bf16"
FORMATS = (BASE, "fp32", "fp8", "nvfp4")
SCALES = {"embedding_scale": 10.667, "logit_scale": 0.125}
RECIPES: dict[str, tuple[dict[str, float], float]] = {  # fields of the model, clipping
    "plain": ({}, 1.0),
    "scales": (SCALES, 0.0),
    "scales, bungee": (SCALES | {"bungee": 2.0}, 0.0),
}


@dataclass(frozen=True)
class Config:
    quick: bool = False
    """One seed, a tenth of the steps."""
    corpus: Path | None = None
    """A folder of *.jsonl.gz; without it, the text of the installed packages."""

    @property
    def seeds(self) -> int:
        return 1 if self.quick else 3

    @property
    def steps(self) -> int:
        return 50 if self.quick else 500


def main(arguments: list[str]) -> int:
    config = cli.parse_config(Config, arguments, "bench precision", __doc__ or "")
    with tempfile.TemporaryDirectory(prefix="bench-precision-") as scratch:
        folder = Path(scratch)
        origin = write_text(config.corpus, folder)
        jobs = {
            (recipe, experts, seed): Job(folder, experts, fields, clip, seed, config.steps)
            for seed in range(config.seeds)
            for recipe, (fields, clip) in RECIPES.items()
            for experts in FORMATS
        }
        outcomes = dict(zip(jobs, _all(list(jobs.values()))))
    rows, keys = _compare(outcomes, config.seeds)
    inputs = {"text": origin, "steps": config.steps, "seeds": config.seeds, "batch": [BATCH, SEQUENCE], "model": SHAPE}
    publish("precision", inputs, rows, keys)
    return 0


def _all(jobs: list[Job]) -> list[Outcome]:
    done: list[Outcome] = []
    workers = min(os.cpu_count() or 1, 2)
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        Progress("runs", total=len(jobs), unit="runs") as progress,
    ):
        for outcome in pool.map(train, jobs):
            done.append(outcome)
            progress.update(len(done))
    return done


def _compare(outcomes: dict[tuple[str, str, int], Outcome], seeds: int) -> tuple[list[Row], dict[str, float]]:
    rows: list[Row] = []
    keys: dict[str, float] = {}
    for recipe in RECIPES:
        base = [outcomes[recipe, BASE, seed] for seed in range(seeds)]
        for experts in FORMATS:
            own = [outcomes[recipe, experts, seed] for seed in range(seeds)]
            name = f"{recipe}: {experts}"
            rows += _rows(f"{name}, loss", [one.loss for one in own], "nats/byte")
            if experts != BASE:
                gaps = [one.loss - other.loss for one, other in zip(own, base)]
                rows += _rows(f"{name}, gap to {BASE}", gaps, "nats/byte")
                if all(map(math.isfinite, gaps)):
                    keys[f"{experts}_gap_{recipe.replace(', ', '_')}"] = median(gaps)
            rows += _rows(f"{name}, busiest expert", [one.busiest for one in own], "of the mean load")
            rows += _rows(f"{name}, starved experts", [one.starved for one in own], "experts")
            rows += _rows(f"{name}, gradient norm", [one.grad_norm for one in own], "")
    return rows, keys


def _rows(name: str, values: list[float], unit: str) -> list[Row]:
    """One over the seeds that stayed finite, and one that counts those that did not."""
    finite = [value for value in values if math.isfinite(value)]
    found = [row(name, finite, unit)] if finite else []
    if len(finite) < len(values):
        found.append(row(f"{name}, not finite", [float(len(values) - len(finite))], "seeds"))
    return found


if __name__ == "__main__":
    sys.exit(cli.guarded("bench precision", lambda: main(sys.argv[1:])))
