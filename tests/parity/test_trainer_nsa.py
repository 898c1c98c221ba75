"""Native sparse attention against the paper's equations (arXiv 2502.11089), one query at a time, in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.support.attention_layers import in_pieces, inputs, layer, whole

G, H, d = 2, 6, 8  # key-value heads, heads, width of a head
THETA = 10_000.0


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    angle = position * THETA ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    a, b = x[: d // 2], x[d // 2 :]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()))


def softmax_attention(q: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    p = (torch.stack(keys) @ q / d**0.5).softmax(dim=0)
    return p @ torch.stack(values)


def summary(module: Any, x: list[torch.Tensor]) -> torch.Tensor:
    """phi of eq. 7."""
    placed = torch.cat([one + place for one, place in zip(x, module.place_Ld)])
    hidden = module.hidden.weight @ placed
    return module.summary.weight @ (hidden * hidden.sigmoid())


def plain(made: Any, x_SD: torch.Tensor, chosen: list[set[int]] | None = None) -> torch.Tensor:
    """One document, [S, D]. `chosen` takes the blocks of every choice."""
    o = made.options
    S = len(x_SD)
    q = (x_SD @ made.query.weight.T).view(S, H, d)
    k = (x_SD @ made.key.weight.T).view(S, 3, G, d)
    v = (x_SD @ made.value.weight.T).view(S, 3, G, d)
    gate = (x_SD @ made.gate.weight.T).sigmoid().view(S, H, 3)
    rows = []
    for t in range(S):
        heads = []
        for g in range(G):
            own = range(g * H // G, (g + 1) * H // G)
            starts = [i * o.stride for i in range(S) if i * o.stride + o.block <= t + 1]
            keys = [
                turned(summary(made.key_summary, [k[s + n, 0, g] for n in range(o.block)]), s + o.block - 1)
                for s in starts
            ]
            values = [summary(made.value_summary, [v[s + n, 0, g] for n in range(o.block)]) for s in starts]
            blocks = t // o.selected_block + 1
            score = [0.0] * blocks
            for h in own if keys else ():  # eq. 8 to 10
                p = (torch.stack(keys) @ turned(q[t, h], t) / d**0.5).softmax(dim=0).tolist()
                for j in range(blocks):
                    for m in range(o.selected_block // o.stride):
                        for n in range(o.block // o.stride):
                            i = o.selected_block // o.stride * j + m - n
                            score[j] += p[i] if 0 <= i < len(p) else 0.0
            always = {0, blocks - 1, max(blocks - 2, 0)}
            others = sorted(set(range(blocks)) - always, key=lambda j: -score[j])
            best = always | set(others[: o.selected - len(always)])
            if chosen is not None:
                chosen.append(best)
            seen = [u for u in range(t + 1) if u // o.selected_block in best]
            near = range(max(t + 1 - o.window, 0), t + 1)
            for h in own:  # eq. 5
                query = turned(q[t, h], t)
                coarse = softmax_attention(query, keys, values) if keys else torch.zeros(d, dtype=torch.float64)
                fine = softmax_attention(query, [turned(k[u, 1, g], u) for u in seen], [v[u, 1, g] for u in seen])
                local = softmax_attention(query, [turned(k[u, 2, g], u) for u in near], [v[u, 2, g] for u in near])
                heads.append(gate[t, h, 0] * coarse + gate[t, h, 1] * fine + gate[t, h, 2] * local)
        rows.append(made.output.weight @ torch.cat(heads))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "options",
    [
        {"nsa.block": 4, "nsa.stride": 2, "nsa.selected_block": 4, "nsa.selected": 4, "nsa.window": 5},
        {"nsa.block": 2, "nsa.stride": 1, "nsa.selected_block": 3, "nsa.selected": 5, "nsa.window": 5},
        {"nsa.block": 4, "nsa.stride": 4, "nsa.selected_block": 4, "nsa.selected": 4, "nsa.window": 1},  # eq. 9: equal
        {"nsa.block": 1, "nsa.stride": 1, "nsa.selected_block": 5, "nsa.selected": 4, "nsa.window": 40},
        {"nsa.block": 32, "nsa.stride": 16, "nsa.selected_block": 64, "nsa.window": 512},  # longer than the sequence
    ],
    ids=["overlapping", "unlike", "equal", "single", "defaults"],
)
def test_outputs_and_gradients_equal_the_papers(options: dict) -> None:
    made = layer("nsa", torch.float64, options=options)
    x_BSD = inputs(1, 37, torch.float64).requires_grad_()
    starts = (0, 6, 7)
    chosen: list[set[int]] = []
    expected = torch.cat([plain(made, x_BSD[0, a:b], chosen) for a, b in zip(starts, (*starts[1:], 37))])
    ours = whole(made, x_BSD, [starts])[0]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)  # angles are computed in fp32
    if options["nsa.selected_block"] < 7:  # some queries do leave blocks out, and not all the same ones
        assert len({tuple(sorted(some)) for some in chosen if max(some) >= len(some)}) >= 5
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = [x_BSD, *made.parameters()]
    grads = torch.autograd.grad((ours * direction).sum(), wanted)
    expected_grads = torch.autograd.grad((expected * direction).sum(), wanted, materialize_grads=True)
    for got, right in zip(grads, expected_grads):
        assert (got - right).norm() <= 1e-5 * right.norm() + 1e-12


def test_generation_equals_the_papers() -> None:
    made = layer("nsa", torch.float64)
    x_BSD = inputs(1, 31, torch.float64)
    ours = in_pieces(made, x_BSD, [9, *[1] * 15, 7])[0]
    torch.testing.assert_close(ours, plain(made, x_BSD[0]), rtol=1e-5, atol=1e-5)


def test_one_choice_serves_all_heads_of_a_group() -> None:
    """Sharp scores: a key far away, in a block that only one of the group's heads likes, is seen by the others too."""
    made = layer("nsa", torch.float64)
    x_BSD = inputs(1, 40, torch.float64)
    with torch.no_grad():
        made.gate.weight.zero_()
        made.query.weight[d : 3 * d].zero_()  # head 0 alone decides what group 0 looks at
    chosen: list[set[int]] = []
    plain(made, x_BSD[0], chosen)
    assert F.one_hot(torch.tensor([sum(one) for one in chosen[::G]])).sum(dim=0).count_nonzero() > 5
    torch.testing.assert_close(whole(made, x_BSD)[0], plain(made, x_BSD[0]), rtol=1e-5, atol=1e-5)
