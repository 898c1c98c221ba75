"""The all-to-all through symmetric memory, on CPUs: gloo plays torch's operator, by what it says of its arguments.

What it carries, and what becomes of gradients, must be what torch.distributed carries, to the bit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.parallel.test_expert_parallel import CASES, fed, layer, play, rows_and_gradients
from tests.support.ranks import in_ranks

from gristmill.base.errors import UsageError
from gristmill.trainer.parallel import symmetric
from gristmill.trainer.parallel.all_to_all import AllToAll, Splits
from gristmill.trainer.parallel.symmetric import BySymmetricMemory

PLAYED = ("softmax", "unlike numbers of tokens", "capacity with drops", "two busy experts", "recomputed", "bf16")
allocated: list[int] = []


def same_everywhere(length: int, dtype: torch.dtype, device: torch.device, group: dist.ProcessGroup) -> torch.Tensor:
    lengths: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(lengths, length, group)
    assert len(set(lengths)) == 1, f"ranks allocate {lengths}"
    allocated.append(length)
    return torch.full((length,), 77, dtype=dtype, device=device)


def by_gloo(
    x_RD: torch.Tensor, out_QD: torch.Tensor, send_n: torch.Tensor, receive_2n: torch.Tensor, group: dist.ProcessGroup
) -> None:
    """As torch.ops.symm_mem.all_to_all_vdev: a rank knows what it sends, and learns what came."""
    counts = torch.empty_like(send_n)
    dist.all_to_all_single(counts, send_n, group=group)
    receive_2n[0], receive_2n[1] = counts, counts.cumsum(0) - counts
    dist.all_to_all_single(
        out_QD[: int(counts.sum())], x_RD[: int(send_n.sum())].clone(), counts.tolist(), send_n.tolist(), group=group
    )


def both_ways(rank: int, n: int) -> list[int]:
    symmetric.allocate, symmetric.exchange = same_everywhere, by_gloo
    group: Any = dist.group.WORLD
    plain, link = AllToAll(group), AllToAll(group, BySymmetricMemory(group, torch.device("cpu")))
    found = []
    for one in (plain, link):
        results = {f"all to all: {key}": value for key, value in rows_and_gradients(one).items()}
        for name in PLAYED:
            moe = layer(CASES[name])
            moe.spread(one)
            results |= {
                f"{name}: {key}": value for key, value in play(moe, CASES[name], *fed(CASES[name], rank)).items()
            }
        found.append(results)
    assert found[0].keys() == found[1].keys()
    for key, wanted in found[0].items():
        assert torch.equal(found[1][key], wanted), key
    assert link.bytes_sent == plain.bytes_sent
    nobody = torch.empty(0, 3, requires_grad=True)
    assert link.start(nobody, Splits([0] * n, [0] * n, 0)).wait().shape == (0, 3)
    return allocated


@pytest.mark.parametrize("n", [2, 4])
def test_what_symmetric_memory_carries_is_what_torch_carries(n: int) -> None:
    lengths = in_ranks(both_ways, n)
    assert all(one == lengths[0] for one in lengths)
    assert lengths[0][1:] == sorted(lengths[0][1:]) and len(set(lengths[0][1:])) >= 2, "buffers grow, and only grow"


def test_where_there_is_no_such_memory_it_is_refused() -> None:
    with pytest.raises(UsageError, match=r"parallel.all_to_all symmetric needs GPUs; take parallel.all_to_all torch"):
        symmetric.require(torch.device("cpu"))
