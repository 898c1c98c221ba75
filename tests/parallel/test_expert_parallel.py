"""Experts over 2 and 4 ranks against one process: what a layer answers, and every gradient; what travels, and when.

One job per number of ranks plays all cases, since processes take seconds to start. T tokens of a rank, E experts,
K experts per token, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.support import plain_moe
from tests.support.plain_moe import CONFIG, Exact
from tests.support.ranks import in_ranks
from torch.utils.checkpoint import checkpoint

from gristmill.base.errors import UsageError
from gristmill.trainer.generate import sample
from gristmill.trainer.model import precision
from gristmill.trainer.model.moe import MixtureOfExperts
from gristmill.trainer.model.moe.router import Routing
from gristmill.trainer.model.moe.spread import SpreadExperts
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.parallel.all_to_all import AllToAll, Splits, by_torch

E, D = 8, CONFIG.width
RANKS = (2, 4)
CONFIG_E = dataclasses.replace(CONFIG, experts=E, shared_experts=1)


@dataclass(frozen=True)
class Case:
    """A layer, and what the ranks feed it. Numbers are fp64 unless a precision says otherwise."""

    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    kind: tuple[str, str] | None = None
    """The precision's name, and the experts'."""
    sequences: int = 2
    more: int = 0
    """So many sequences more in each rank than in the one before."""
    busy: int = 0
    """All tokens go to the first so many experts; 0: wherever the router sends them."""
    training: bool = True
    recompute: bool = False
    together: bool = False
    """The one process is fed all ranks' tokens at once, not one rank's after the other."""
    tolerance: float = 1e-9
    """Norm of a difference over the norm of what is expected."""


# Low precision: rows of an expert come in the order of ranks, as they come in one process that is fed all tokens. Each
# row, and for fp8 each block of 128 rows, is then quantised alike, and what differs is how fp32 sums round. In bf16 a
# sum that rounds another way may end at the neighbouring number, 2^-8 away.
CASES = {
    "softmax": Case(),
    "sigmoid with a bias": Case({"router": "sigmoid", "residual": True, "bungee": 2.0}),
    "unlike numbers of tokens": Case(more=1, together=True),
    "experts choose": Case({"router": "expert_choice"}),
    "experts choose, outside training": Case({"router": "expert_choice"}, more=1, training=False),
    "capacity with drops": Case({"capacity": 0.5}, sequences=4),
    "capacity beyond every load": Case({"capacity": 8.0}),
    "capacity outside training": Case({"capacity_eval": 0.5}, more=1, training=False),
    "two busy experts": Case(busy=2),
    "two busy experts, capacity": Case({"capacity": 0.5}, busy=2),
    "recomputed": Case(recompute=True),
    "recomputed, capacity": Case({"capacity": 0.5}, sequences=4, recompute=True),
    "fp32": Case(kind=("fp32", ""), together=True, tolerance=1e-6),
    "bf16": Case(kind=("bf16", ""), together=True, tolerance=2**-8),
    "bf16, two busy experts": Case(kind=("bf16", ""), busy=2, together=True, tolerance=2**-8),
    "fp8": Case(kind=("fp32", "fp8"), sequences=20, together=True, tolerance=1e-6),
    "fp8, two busy experts": Case(kind=("fp32", "fp8"), busy=2, together=True, tolerance=1e-6),
}


def layer(case: Case) -> MixtureOfExperts:
    config = dataclasses.replace(CONFIG_E, **case.changes)
    moe = plain_moe.layer(config, Exact(4) if case.kind is None else precision.build(*case.kind))
    with torch.no_grad():
        if case.busy:  # a router that reads the first number of a token, which is 10, and prefers the first experts
            weight_ED = moe.router.weight.zero_()  # pyright: ignore
            weight_ED[: case.busy, 0] = torch.arange(case.busy, 0, -1).to(weight_ED.dtype)
        if case.changes.get("router") == "sigmoid":
            moe.router.bias_E.copy_(torch.linspace(-0.5, 0.5, E))  # pyright: ignore
    return moe.train(case.training)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fed(case: Case, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A rank's input, and what its output is multiplied by to be differentiated."""
    dtype = torch.float64 if case.kind is None else precision.build(*case.kind).dtype
    x_BSD = drawn(1 + rank, case.sequences + rank * case.more, 6, D)
    if case.busy:
        x_BSD[..., 0] = 10.0
    return x_BSD.to(dtype), drawn(101 + rank, *x_BSD.shape).to(dtype)


def play(moe: MixtureOfExperts, case: Case, x_BSD: torch.Tensor, direction: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, dropped share, loads, and gradients for the input and all parameters."""
    x_BSD = x_BSD.clone().requires_grad_()
    moe.zero_grad()
    out, report = checkpoint(moe, x_BSD, use_reentrant=False) if case.recompute else moe(x_BSD)  # pyright: ignore
    (out * direction).sum().backward()
    gradients = {name: one.grad for name, one in moe.named_parameters() if one.grad is not None}
    assert x_BSD.grad is not None
    return {"out": out.detach(), "dropped": report.dropped, "load": report.load_E, "x": x_BSD.grad, **gradients}


# ---- what ranks do


def every_case(rank: int, n: int) -> dict[str, torch.Tensor]:
    link = AllToAll(dist.group.WORLD)  # pyright: ignore
    results = {}
    for name, case in CASES.items():
        moe = layer(case)
        moe.spread(link)
        assert isinstance(moe.experts, SpreadExperts) and len(moe.experts.gate_up_EFD) == E // n
        results |= {f"{name}: {key}": value for key, value in play(moe, case, *fed(case, rank)).items()}
    results |= {f"all to all: {key}": value for key, value in rows_and_gradients(link).items()}
    results |= {f"model: {key}": value for key, value in whole_model(rank, link).items()}
    if n == 2:  # compiling takes seconds
        results["compiled"] = compiled_against_eager(link)
    results["order"] = order_of_events(rank, n)
    results["bytes"] = bytes_of_even_routing(link)
    odd = layer(Case({"experts": n + 1}))
    with pytest.raises(UsageError, match=rf"{n} ranks do not divide the {n + 1} experts"):
        odd.spread(link)
    return results


def rows_and_gradients(link: AllToAll) -> dict[str, torch.Tensor]:
    """Rank r sends (r + 2s) % 3 rows to rank s, so that some send others nothing; and then two rows to each."""
    n, rank = link.ranks, link.rank
    results = {}
    rows = [[(r + 2 * s) % 3 for s in range(n)] for r in range(n)]
    most = max(*map(sum, rows), *map(sum, zip(*rows)))
    for name, splits in (("uneven", Splits(rows[rank], [row[rank] for row in rows], most)), ("even", None)):
        total = 2 * n if splits is None else sum(splits.send)
        x_RD = (100.0 * rank + torch.arange(total))[:, None].repeat(1, 3).requires_grad_()
        journey = link.start(x_RD, splits)
        between = x_RD.square()
        arrived = journey.wait()
        loss = (arrived * (rank + 1)).sum() + between.sum()
        loss.backward(retain_graph=True)
        once = x_RD.grad
        assert once is not None
        x_RD.grad = None
        loss.backward()  # a graph can be gone through again
        assert torch.equal(once, x_RD.grad)  # pyright: ignore
        results |= {f"{name} rows": arrived[:, 0], f"{name} gradient": once[:, 0] - 2 * x_RD.detach()[:, 0]}
    return results


def tiny_model(recompute: bool = False) -> Transformer:
    model = Transformer(CONFIG_E, precision.build("fp32"), recompute)
    model.initialise(0)
    return model


def ids_of(rank: int) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab, (2, 8), generator=torch.Generator().manual_seed(rank))


def written(model: Transformer, rank: int) -> list[int]:
    """Of all ranks as many tokens: no token is the last of a document."""
    return sample(model.eval(), [1 + rank, 2], 6, window=16, eos=-1, temperature=0, top_k=5, seed=0)


def whole_model(rank: int, link: AllToAll) -> dict[str, torch.Tensor]:
    model = tiny_model(recompute=True)
    for block in model.blocks:
        block.ffn.spread(link)  # pyright: ignore
    ids = ids_of(rank)
    loss = model.loss(ids, ids)
    (loss.nll + loss.auxiliary).backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters())
    embedding = model.embedding_VD.grad
    assert embedding is not None
    return {"nll": loss.nll, "embedding": embedding, "written": torch.tensor(written(model, rank))}


def compiled_against_eager(link: AllToAll) -> torch.Tensor:
    case = CASES["softmax"]
    moe = layer(case)
    moe.spread(link)
    x_BSD, direction = fed(case, link.rank)
    wanted = play(moe, case, x_BSD, direction)
    moe.compile(dynamic=False, backend="aot_eager")
    got = play(moe, case, x_BSD, direction)
    return torch.stack([(got[key] - wanted[key]).abs().max() for key in wanted]).max()


def order_of_events(rank: int, n: int) -> torch.Tensor:
    """What happened in a forward and a backward pass, as numbers of EVENTS; through a backend of another name."""
    events: list[str] = []

    class Noted:
        def __init__(self, pending: Any) -> None:
            self.pending = pending

        def wait(self) -> None:
            events.append("waited")
            self.pending.wait()

    def noting(*given: Any) -> Noted:
        events.append("set out")
        return Noted(by_torch(*given))

    moe = layer(CASES["capacity with drops"])  # the one that asks nobody for counts
    moe.spread(AllToAll(dist.group.WORLD, noting))  # pyright: ignore
    assert moe.shared is not None
    moe.shared.register_forward_hook(lambda *_: events.append("shared"))
    moe.shared.gate_up.weight.register_hook(lambda *_: events.append("shared"))
    x_BSD, direction = fed(CASES["capacity with drops"], rank)
    (moe(x_BSD.requires_grad_())[0] * direction).sum().backward()
    return torch.tensor([EVENTS.index(event) for event in events])


EVENTS = ["set out", "shared", "waited"]


def bytes_of_even_routing(link: AllToAll) -> torch.Tensor:
    """After a forward pass without a gradient, and after one with, and a backward pass."""
    T, K = 12, 2
    experts = layer(CASES["fp32"]).experts
    assert not isinstance(experts, SpreadExperts)
    spread = SpreadExperts(experts, link)
    routing = Routing(torch.zeros(T, E), torch.zeros(T, E), torch.ones(T, K), torch.arange(T * K).view(T, K) % E)
    x_TD = drawn(0, T, D).float().requires_grad_()
    counts = [link.bytes_sent]
    with torch.no_grad():
        spread(x_TD, routing)
    counts.append(link.bytes_sent)
    spread(x_TD, routing)[0].sum().backward()
    counts.append(link.bytes_sent)
    return torch.tensor(counts).diff()


# ---- what one process says to it


Results = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module", params=RANKS)
def ranks(request: pytest.FixtureRequest) -> Results:
    """What each rank found; there are as many as entries."""
    torch.set_num_threads(1)
    return in_ranks(every_case, request.param)


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float, what: str) -> None:
    assert got.shape == wanted.shape and torch.isfinite(got).all(), what
    difference, norm = (got - wanted).double().norm().item(), wanted.double().norm().item()
    assert difference <= tolerance * norm, f"{what}: {difference:.3g} beside {norm:.3g}"


@pytest.mark.parametrize("name", CASES)
def test_a_layer_over_ranks_equals_one_process(name: str, ranks: Results) -> None:
    case, moe = CASES[name], layer(CASES[name])
    got = [{key: one[f"{name}: {key}"] for key in ("out", "x", "dropped", "load")} for one in ranks]
    given = [fed(case, rank) for rank in range(len(ranks))]
    if case.together:
        x_BSD, direction = (torch.cat(own) for own in zip(*given))
        parts = [play(moe, case, x_BSD, direction)]
        cuts = [len(x) for x, _ in given]
        wanted = [{"out": out, "x": x} for out, x in zip(parts[0]["out"].split(cuts), parts[0]["x"].split(cuts))]
    else:
        parts = wanted = [play(moe, case, x, direction) for x, direction in given]
    for rank, (mine, one) in enumerate(zip(got, wanted, strict=True)):
        for key in one.keys() & mine.keys():
            close(mine[key], one[key], case.tolerance, f"{key} of rank {rank}")
    for key, whole in moe.named_parameters():
        summed = torch.stack([part[key].double() for part in parts if key in part]).sum(dim=0)
        mine = [one[f"{name}: {key}"].double() for one in ranks]
        # Each rank holds the whole gradient of its experts, over all ranks' tokens; of all else, its own tokens' share.
        together = torch.cat(mine) if key.startswith("experts.") else torch.stack(mine).sum(dim=0)
        assert together.shape == whole.shape
        close(together, summed, case.tolerance, key)
    if case.busy and not case.changes:
        assert all(one[f"{name}: experts.down_EDF"].count_nonzero() == 0 for one in ranks[1:])  # who had no row
    if 0.5 in case.changes.values():
        assert all(one["dropped"] > 0 for one in got)
    elif case.changes.get("router") != "expert_choice":
        assert all(one["dropped"] == 0 for one in got)


@pytest.mark.parametrize("kind", ["uneven", "even"])
def test_rows_go_where_they_are_sent_and_gradients_come_back(kind: str, ranks: Results) -> None:
    n = len(ranks)
    rows = [[(r + 2 * s) % 3 if kind == "uneven" else 2 for s in range(n)] for r in range(n)]
    assert kind == "even" or any(0 in row for row in rows)
    for rank, one in enumerate(ranks):
        sent = [100 * r + sum(row[:rank]) + place for r, row in enumerate(rows) for place in range(row[rank])]
        assert one[f"all to all: {kind} rows"].tolist() == sent
        receivers = [s + 1 for s in range(n) for _ in range(rows[rank][s])]
        assert one[f"all to all: {kind} gradient"].tolist() == receivers


def test_a_recomputed_model_trains_and_writes_as_in_one_process(ranks: Results) -> None:
    for rank, one in enumerate(ranks):
        model = tiny_model()
        loss = model.loss(ids_of(rank), ids_of(rank))
        (loss.nll + loss.auxiliary).backward()
        close(one["model: nll"], loss.nll.detach(), 1e-6, "nll")
        assert model.embedding_VD.grad is not None
        close(one["model: embedding"], model.embedding_VD.grad, 1e-5, "the embedding's gradient")
        assert one["model: written"].tolist() == written(model, rank)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_a_compiled_layer_over_ranks_equals_the_plain_one(ranks: Results) -> None:
    assert all(one["compiled"] < 1e-12 for one in ranks)


def test_the_shared_expert_computes_while_rows_and_gradients_travel(ranks: Results) -> None:
    """Forward: out, and back. Backward: gradients of what came back, and then of what went out."""
    there_and_back = ["set out", "shared", "waited", "set out", "waited"]
    back_and_there = ["set out", "waited", "set out", "shared", "waited"]
    for one in ranks:
        assert [EVENTS[event] for event in one["order"].tolist()] == there_and_back + back_and_there


def test_bytes_sent_are_those_of_the_formula(ranks: Results) -> None:
    """tokens * top_k * (n-1)/n * width * bytes of a number, where routing is even: there, and as many back; the same
    again for the gradients."""
    one_way = 12 * 2 * (len(ranks) - 1) // len(ranks) * D * 4
    assert all(one["bytes"].tolist() == [2 * one_way, 4 * one_way] for one in ranks)


def fails_in_one_rank(rank: int, n: int) -> None:
    if rank == 1:
        raise ValueError("the second rank is unwell")
    dist.barrier()


def test_a_rank_that_fails_ends_the_job_with_its_words() -> None:
    with pytest.raises(AssertionError, match="ValueError: the second rank is unwell"):
        in_ranks(fails_in_one_rank, 2)
