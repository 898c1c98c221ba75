"""A run on a GPU: as on the CPU, the same bits after a crash, its numbers in the log; NCCL, one rank and all."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.support.crashing import crashing_at
from tests.support.training_runs import config, events_of, same_weights
from tests.support.training_shards import write_shards
from torch.distributed._symmetric_memory import is_nvshmem_available

from gristmill.trainer import loop
from gristmill.trainer.checkpoints.checkpoint_writer import CheckpointWriter
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.watch import hardware


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in events_of(folder, "step")]


def test_losses_are_those_of_the_cpu(shards, tmp_path):
    for device in ("cpu", "cuda"):
        loop.train(config(shards, tmp_path / device, device=device))
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"precision": "bf16", "expert_precision": "fp8"}])
def test_a_run_that_crashed_resumes_to_the_same_bits(shards, tmp_path, monkeypatch, changes):
    whole = config(shards, tmp_path / "whole", device="cuda", **changes)
    loop.train(whole)
    again = dataclasses.replace(whole, output=str(tmp_path / "again"))
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", crashing_at(5))
        with pytest.raises(OSError):
            loop.train(again)
    loop.resume(again.folder)
    assert same_weights(whole.folder, again.folder)


def test_checkpoints_are_copied_through_pinned_memory(tmp_path):
    with CheckpointWriter(tmp_path, keep=1) as writer:
        weight = torch.randn(1000, 1000, device="cuda")
        copy = writer._buffer(("model", "weight"), weight)
        assert copy.is_pinned() and copy.device.type == "cpu"
        assert torch.equal(copy.copy_(weight), weight.cpu())


def test_the_log_has_memory_and_the_share_of_the_peak(shards, tmp_path):
    loop.train(config(shards, tmp_path / "run", device="cuda", precision="bf16"))
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["type"] == "step"]
    assert all(event["memory_gb"] > 0 and event["tokens_per_second"] > 0 for event in steps)
    known = hardware.of_gpu(torch.cuda.get_device_name())
    assert all((event["mfu"] is not None) == (known is not None) for event in steps)
    assert all(0 <= event["mfu"] < 1 for event in steps if event["mfu"] is not None)


def test_a_data_parallel_step_of_one_rank_by_nccl_is_a_plain_step(tmp_path):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    ids = torch.randint(0, 100, (2, 33), generator=torch.Generator().manual_seed(1)).cuda()
    shape = ModelConfig(
        vocab=100, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, experts=8, top_k=2, expert_width=32
    )
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = []
        for shard in (False, True):
            model = Transformer(shape, precision.build("fp32"))
            model.initialise(0)
            model.cuda()
            if shard:
                for block in model.blocks:
                    fully_shard(block)
            loss = model.loss(ids[:, :-1], ids[:, 1:])
            (loss.nll + loss.auxiliary).backward()
            grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
            found.append({name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in grads.items()})
        assert found[0].keys() == found[1].keys()
        for name, wanted in found[0].items():
            torch.testing.assert_close(found[1][name], wanted, rtol=1e-4, atol=1e-6)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("spread", ["", "torch", "symmetric"], ids=["data", "experts", "symmetric"])
def test_all_gpus_of_the_machine_learn_what_one_does(shards, tmp_path, spread):
    ranks = min(torch.cuda.device_count(), 4)  # of 4 experts, 4 windows
    if ranks < 2:
        pytest.skip("needs two GPUs")
    if spread == "symmetric" and not is_nvshmem_available():
        pytest.skip("needs NVSHMEM")
    ranks = 4 if ranks == 4 else 2
    loop.train(config(shards, tmp_path / "one", device="cuda"))
    flags = ["--mixture", "both", "--data", str(shards), "--output", str(tmp_path / "all"), "--device", "cuda"]
    flags += [
        "--tokens",
        str(8 * 4 * 32),
        "--checkpoint-every",
        "3",
        "--validate-every",
        "4",
        "--validate-tokens",
        "300",
    ]
    flags += ["--batch.sequence", "32", "--batch.sequences", "4", "--batch.micro", "1", "--model.preset", "tiny"]
    small = {"width": 16, "layers": 2, "heads": 2, "kv-heads": 1, "head-dim": 8, "experts": 4, "top-k": 2}
    for name, value in (small | {"expert-width": 16}).items():
        flags += [f"--model.{name}", str(value)]
    flags += ["--parallel.ep", str(ranks if spread else 1), "--parallel.all-to-all", spread or "torch"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launch, "-m", "gristmill.trainer", "run", *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "all") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
