"""One training step: forward, backward and AdamW, against transformers and torchtitan's layer.

./dev bench step            five rounds after a warm-up, of 8 windows of 512 tokens
./dev bench step --quick    one round, of 2 windows
./dev bench step --gpu      on one GPU, by the wall clock: 64 windows, against transformers alone

Processor time of one thread, every implementation once in each round, random tokens, the router as it comes. Ceilings
are products of matrices of the sizes that the model has, measured in the same rounds. compiled_*: torch.compile of our
blocks against torch.compile of their model. Memory is the peak of a process that does nothing else, over what it had
before the model was made.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

import _step_models as models
from _results import Row, against, publish, row
from gristmill.base import cli
from gristmill.base.errors import GristmillError, UsageError
from gristmill.trainer.allocator import keep_freed_memory
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.counts import count
from gristmill.trainer.watch import hardware

PEERS = "requirements.txt"
SEQUENCE = 512
PRODUCTS = ((4096, 384, 16_384), (8192, 384, 512), (8192, 256, 384), (4096, 384, 384))  # rows, in, out


@dataclass(frozen=True)
class Config:
    quick: bool = False
    """One round, of two windows."""
    corpus: Path | None = None
    """Not used: tokens are random."""
    gpu: bool = False
    """On one GPU."""


def main(arguments: list[str]) -> int:
    config = cli.parse_config(Config, arguments, "bench step", __doc__ or "")
    if config.gpu:
        return on_gpu(config)
    torch.set_num_threads(1)
    keep_freed_memory()  # as `trainer run` does; the peers have it too
    windows, rounds = (2, 1) if config.quick else (8, 5)
    keys = dict[str, float]()
    rows = memory(windows, keys)
    for name, shape in models.CONFIGS.items():
        rows += steps(name, shape, windows, rounds, keys)
    rows += many_experts(windows, rounds, keys)
    about = {"windows": windows, "sequence": SEQUENCE, "rounds": rounds, "threads": 1, "torch": torch.__version__}
    publish("step", about, rows, keys)
    return 0


def on_gpu(config: Config) -> int:
    """Tokens a second, the share of the GPU's peak that these are, and peak memory."""
    if not torch.cuda.is_available():
        raise UsageError("bench step --gpu: no CUDA device here")
    windows, rounds = (8, 2) if config.quick else (64, 10)
    rows: list[Row] = []
    keys: dict[str, float] = {}
    peak = hardware.of_gpu(torch.cuda.get_device_name())
    builders = {"": models.ours, "transformers, ": models.transformers}
    for name, shape in models.CONFIGS.items():
        flops = count(shape).flops_per_token(SEQUENCE)
        for kind in ("bf16", "bf16 compiled"):
            rates: dict[str, list[float]] = {}
            for whose, build in builders.items():
                torch.compiler.reset()
                torch.cuda.reset_peak_memory_stats()
                run = build(shape, "bf16", compiled=kind != "bf16", device="cuda")
                rates[whose] = wall_clock(run, shape, windows, rounds)
                memory = torch.cuda.max_memory_allocated() / 1e6
                rows.append(row(f"{name}: peak memory, {whose}{kind}", [memory], "MB"))
                del run
                gc.collect()
            own, theirs = rates.values()
            rows.append(against(f"{name}: {kind}", own, theirs, f"transformers, {kind}", "tokens/s"))
            keys[f"{name}_{kind.replace(' ', '_')}_vs_transformers"] = rows[-1].median
            if peak:
                shares = [rate * flops / peak.flops for rate in own]
                rows.append(row(f"{name}: {kind}, of the peak of {peak.name}", shares, "share"))
    about = {"windows": windows, "sequence": SEQUENCE, "rounds": rounds, "gpu": torch.cuda.get_device_name()}
    publish("step-gpu", about | {"torch": torch.__version__}, rows, keys)
    return 0


def wall_clock(run: models.Step, shape: ModelConfig, windows: int, rounds: int) -> list[float]:
    """Tokens a second of each step, after three that are not counted."""
    generator = torch.Generator().manual_seed(0)
    rates: list[float] = []
    for _ in range(3 + rounds):
        batch = torch.randint(0, shape.vocab, (windows, SEQUENCE + 1), generator=generator).cuda()
        torch.cuda.synchronize()
        started = time.perf_counter()
        run(batch)
        torch.cuda.synchronize()
        rates.append(windows * SEQUENCE / (time.perf_counter() - started))
    return rates[3:]


def steps(name: str, shape: ModelConfig, windows: int, rounds: int, keys: dict[str, float]) -> list[Row]:
    peer = {
        "transformers, bf16": lambda: models.transformers(shape, "bf16"),
        "transformers, bf16 compiled": lambda: models.transformers(shape, "bf16", compiled=True),
        "transformers, fp32": lambda: models.transformers(shape, "fp32"),
        "torchtitan's layer, bf16": lambda: models.torchtitan(shape, "bf16"),
    }
    mine = {
        "bf16": lambda: models.ours(shape, "bf16"),
        "bf16 compiled": lambda: models.ours(shape, "bf16", compiled=True),
        "fp32": lambda: models.ours(shape, "fp32"),
    }
    rates = interleaved({**mine, **peer}, shape, windows, rounds)
    compared = (
        ("eager_vs_transformers", "bf16", "transformers, bf16"),
        ("compiled_vs_transformers", "bf16 compiled", "transformers, bf16 compiled"),
        ("", "fp32", "transformers, fp32"),
        ("vs_torchtitan", "bf16", "torchtitan's layer, bf16"),
    )
    rows = []
    for key, own, other in compared:
        rows.append(against(f"{name}: {own}", rates[own], rates[other], other, "tokens/CPU s"))
        if key:
            keys[key] = min(keys.get(key, float("inf")), rows[-1].median)  # the worse of the configurations
    flops = count(shape).flops_per_token(SEQUENCE)
    for kind, own, key in (
        ("fp32", "fp32", "fp32_ceiling_fraction"),
        ("bf16", "bf16 compiled", "bf16_ceiling_fraction"),
    ):
        top = ceiling(torch.float32 if kind == "fp32" else torch.bfloat16)
        shares = [rate * flops / top for rate in rates[own]]
        rows += [
            row(f"{name}: ceiling, {kind}", [top / 1e9], "GFLOP/s"),
            row(f"{name}: {own}, of that", shares, "share"),
        ]
        keys[key] = min(keys.get(key, float("inf")), median(shares))
    return rows


def many_experts(windows: int, rounds: int, keys: dict[str, float]) -> list[Row]:
    """Eight experts against 128, a token meeting two of the same width in both."""
    few, many = (replace(models.A, experts=experts) for experts in (8, 128))
    rates = interleaved(
        {"8": lambda: models.ours(few, "bf16"), "128": lambda: models.ours(many, "bf16")}, few, windows, rounds
    )
    kept = [b / a for a, b in zip(rates["8"], rates["128"], strict=True)]
    keys["experts_8_to_128"] = median(kept)
    return [row("speed kept from 8 to 128 experts", kept, "share")]


def interleaved(
    builders: dict[str, Callable[[], models.Step]], shape: ModelConfig, windows: int, rounds: int
) -> dict[str, list[float]]:
    """Tokens a second of processor time, by implementation and round, after a step that is not counted."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, shape.vocab, (windows, SEQUENCE + 1), generator=generator) for _ in range(rounds + 2)]
    runs = {name: build() for name, build in builders.items()}
    for run in runs.values():
        for batch in batches[:2]:
            run(batch)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for batch in batches[2:]:
        for name, run in runs.items():
            started = time.process_time()
            run(batch)
            rates[name].append(windows * SEQUENCE / (time.process_time() - started))
    for name, found in rates.items():
        print(f"{name}: {median(found):,.0f} tokens/CPU s", file=sys.stderr, flush=True)  # it takes long
    del runs
    gc.collect()
    return rates


def ceiling(dtype: torch.dtype) -> float:
    """FLOPs a second of the best of the model's own products, x @ W^T."""
    best = 0.0
    for rows, width, out in PRODUCTS:
        x, weight = torch.randn(rows, width, dtype=dtype), torch.randn(out, width, dtype=dtype)
        for _ in range(5):
            started = time.process_time()
            torch.nn.functional.linear(x, weight)
            best = max(best, 2 * rows * width * out / (time.process_time() - started))
    return best


def memory(windows: int, keys: dict[str, float]) -> list[Row]:
    names = {"ours": "ours", "transformers": "transformers", "torchtitan": "torchtitan's layer"}
    peaks = {name: _peak(name, windows) for name in names}
    keys["memory_vs_transformers"] = peaks["transformers"] / peaks["ours"]
    return [row(f"A, bf16: peak memory of {told}", [peaks[name]], "MB") for name, told in names.items()]


def _peak(name: str, windows: int) -> float:
    done = subprocess.run(
        [sys.executable, __file__, "--memory", name, str(windows)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise GristmillError(f"bench step, memory of {name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure_memory(name: str, windows: int) -> None:
    import transformers  # noqa: F401 - every process has imported the same

    torch.set_num_threads(1)
    keep_freed_memory()
    before = _high_water()
    step = getattr(models, name)(models.A, "bf16")
    for _ in range(3):
        step(torch.randint(0, models.A.vocab, (windows, SEQUENCE + 1)))
    print(json.dumps(_high_water() - before))


def _high_water() -> float:
    """MB. The kernel's mark of this program: getrusage's is that of the process that began it, where that had more."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        _measure_memory(sys.argv[2], int(sys.argv[3]))
        sys.exit(0)
    sys.exit(cli.guarded("bench step", lambda: main(sys.argv[1:])))
