"""Experts over two processes, against two processes that know nothing of each other; and how many bytes travel.

./dev bench parallel            five rounds of four steps, 8 windows of 512 tokens a process and step
./dev bench parallel --quick    one round of one step of 2 windows

Both have the model of bench step (53.5 M weights, 14.6 M of them active, fp32), AdamW, one thread, and run at the same
time, a processor each. With --parallel.ep 2 each process has half of the experts, the rest is shared by rows (FSDP2,
the default) or replicated; independent ones have no gradients to share, and learn two models. Rounds are interleaved.
Tokens per second are of the wall clock, so the machine must have nothing else to do.

Bytes are those that a process sends to the other, for each of its tokens, one way: where each expert takes as many
tokens as any other (capacity 1), they must be tokens x top_k x (n - 1) / n x width x 4, and four times that for a
forward and a backward pass of a layer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from _results import against, publish, row
from _step_models import A
from gristmill.base import cli
from gristmill.base.errors import GristmillError
from gristmill.trainer.data import Example
from gristmill.trainer.model import precision
from gristmill.trainer.model.moe import MixtureOfExperts
from gristmill.trainer.model.moe.spread import SpreadExperts
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.parallel.config import ParallelConfig
from gristmill.trainer.parallel.shards import Shards, spread
from gristmill.trainer.parallel.world import joined
from gristmill.trainer.step import train_step

SEQUENCE, PROCESSES = 512, 2
WAYS: dict[str, ParallelConfig | None] = {
    "independent": None,
    "experts over both, the rest by rows": ParallelConfig(ep=2),
    "experts over both, the rest replicated": ParallelConfig(ep=2, data="replicate"),
}


@dataclass(frozen=True)
class Config:
    quick: bool = False
    """One round of one small step."""


def main(arguments: list[str]) -> int:
    config = cli.parse_config(Config, arguments, "bench parallel", __doc__ or "")
    rounds, steps, windows = (1, 1, 2) if config.quick else (5, 4, 8)
    speeds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name in WAYS:
            found = _together("speed", name, steps, windows)
            speeds[name].append(sum(each["tokens_per_second"] for each in found))
    sent = _together("bytes", next(name for name, own in WAYS.items() if own), 1, windows)
    ratio = median(each["sent"] / each["formula"] for each in sent)
    peers = speeds.pop("independent")
    table = [against(name, values, peers, "independent", "tokens/s") for name, values in speeds.items()]
    bytes_row = row("bytes sent, over the formula", [each["sent"] / each["formula"] for each in sent], "x")
    best = max(table, key=lambda each: each.median)
    about = {"processes": PROCESSES, "windows": windows, "sequence": SEQUENCE, "steps": steps, "rounds": rounds}
    publish("parallel", about, [*table, bytes_row], {"ep2_efficiency": best.median, "bytes_vs_formula": ratio})
    return 0


def _together(what: str, way: str, steps: int, windows: int) -> list[dict[str, float]]:
    """What each process of a job answers."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, what, way, str(steps), str(windows), folder]
        about = os.environ | {"OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen([*words, str(rank)], stdout=subprocess.PIPE, text=True, env=about)
            for rank in range(PROCESSES)
        ]
        answers = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise GristmillError(f"bench parallel: a process of {way!r} failed")
        return [json.loads(answer.splitlines()[-1]) for answer in answers]


# In one of the processes ----------------------------------------------------------------------------------------------


def process(what: str, way: str, steps: int, windows: int, folder: str, rank: int) -> dict[str, float]:
    torch.set_num_threads(1)
    config = WAYS[way]
    # All are joined, so that all begin at once; those that are independent make no use of it while the clock runs.
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    shape = A if what == "speed" else dataclasses.replace(A, capacity=1.0)
    model = Transformer(shape, precision.build("fp32"))
    model.initialise(0)
    with joined(config or ParallelConfig(), torch.device("cpu")) as world:
        shards = None
        if config is not None:
            spread(model, world, config)
            shards = Shards(model, world)
        own = optimizer.build(model, OptimizerConfig(), shards)
        rows = windows if config is None else windows * PROCESSES  # of the batch, of which each process takes its part

        def step(number: int) -> None:
            generator = torch.Generator().manual_seed(number)
            ids = torch.randint(0, shape.vocab, (rows, SEQUENCE + 1), generator=generator)
            starts = torch.zeros(rows, SEQUENCE, dtype=torch.bool)
            train_step(model, own, Example(ids[:, :-1], ids[:, 1:], starts), windows, 1.0)

        if what == "bytes":
            return _bytes(model, step, windows)
        step(-1)
        dist.barrier()
        began = time.perf_counter()
        for number in range(steps):
            step(number)
        dist.barrier()
        return {"tokens_per_second": steps * windows * SEQUENCE / (time.perf_counter() - began)}


def _bytes(model: Transformer, step: Any, windows: int) -> dict[str, float]:
    layers = [block.ffn.experts for block in model.blocks if isinstance(block.ffn, MixtureOfExperts)]
    step(0)
    first = layers[0]
    assert isinstance(first, SpreadExperts)
    one_way = windows * SEQUENCE * A.top_k * (PROCESSES - 1) / PROCESSES * A.width * 4
    return {"sent": first.link.bytes_sent, "formula": 4 * len(layers) * one_way}


if __name__ == "__main__":
    if len(sys.argv) == 7:  # one of the processes that main() starts
        told = process(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]))
        print(json.dumps(told), flush=True)
        os._exit(0)  # the process group's threads may wait for the other process
    sys.exit(cli.guarded("bench parallel", lambda: main(sys.argv[1:])))
