"""Experts and their layer: dispatch, capacity, shared and residual networks, against plain loops in fp64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.support import plain_moe
from tests.support.plain_moe import CONFIG, Exact

from gristmill.base.errors import UsageError
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.counts import count
from gristmill.trainer.model.feed_forward import Dense
from gristmill.trainer.model.moe import MixtureOfExperts, adapt, dispatch
from gristmill.trainer.model.moe.experts import Experts
from gristmill.trainer.model.moe.router import Routing
from gristmill.trainer.model.transformer import Transformer


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def changed(**changes) -> ModelConfig:
    return dataclasses.replace(CONFIG, **changes)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same_with_gradients(moe: MixtureOfExperts, x_BSD: torch.Tensor, top_k: int, most: int = 0) -> float:
    """Output, its gradients for input and all parameters, and the dropped share, which comes back."""
    x_BSD = x_BSD.clone().requires_grad_()
    parameters = dict(moe.named_parameters())
    out, report = moe(x_BSD)
    expected, dropped = plain_moe.mixture(moe, x_BSD, top_k, most)
    torch.testing.assert_close(out, expected)
    assert report.dropped.item() == pytest.approx(dropped, abs=1e-6)
    direction = drawn(*out.shape, seed=2)
    inputs = [x_BSD, *parameters.values()]
    got = torch.autograd.grad((out * direction).sum(), inputs, allow_unused=True)
    wanted = torch.autograd.grad((expected * direction).sum(), inputs, allow_unused=True)
    for name, a, b in zip(("x", *parameters), got, wanted):
        a, b = (torch.zeros(()) if part is None else part for part in (a, b))
        assert torch.isfinite(a).all(), name
        torch.testing.assert_close(a, b.expand_as(a).to(a.dtype), msg=lambda text, name=name: f"{name}: {text}")
    return dropped


@pytest.mark.parametrize("row_multiple", [1, 4])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 4.0])
def test_a_layer_equals_the_plain_loop_at_any_capacity(factor, row_multiple):
    moe = plain_moe.layer(changed(capacity=factor), Exact(row_multiple))
    most = plain_moe.even_share(24, 2, 5, factor) if factor else 0
    dropped = assert_same_with_gradients(moe, drawn(2, 12, 16), 2, most)
    assert (dropped > 0) == (0 < factor <= 1)


@pytest.mark.parametrize(
    "parts",
    [
        {"shared_experts": 2},
        {"residual": True},
        {"bungee": 2.0},
        {"output_norm": True},
        {"shared_experts": 1, "residual": True, "bungee": 2.0, "dense_width": 24},
    ],
    ids=lambda parts: "+".join(parts),
)
def test_what_stands_beside_the_experts_equals_the_plain_loop(parts):
    moe = plain_moe.layer(changed(**parts))
    assert_same_with_gradients(moe, drawn(2, 5, 16), 2)


def test_bungee_starts_as_configured_and_learns():
    moe = MixtureOfExperts(changed(bungee=2.0), 5, Exact())
    assert moe.bungee is not None and moe.bungee.item() == 2.0
    assert MixtureOfExperts(CONFIG, 5, Exact()).bungee is None
    model = Transformer(changed(bungee=2.0), precision.build("fp32"))
    model.initialise(0)
    assert [block.ffn.bungee.item() for block in model.blocks] == [2.0, 2.0]  # pyright: ignore


# One line each of what must not go wrong: tokens, experts, k, capacity, router, and what is dropped.
EDGES = {
    "one token": (1, 5, 2, 0.0, None, 0.0),
    "one token, capacity": (1, 5, 2, 1.0, None, 0.0),
    "one expert": (7, 1, 1, 0.0, None, 0.0),
    "every expert": (7, 5, 5, 0.0, None, 0.0),
    "experts without a token": (9, 5, 2, 0.0, [9, 8, 0, 0, 0], 0.0),
    "all to one expert": (9, 5, 2, 1.0, [9, 8, 0, 0, 0], 10 / 18),  # two experts, of four places each
    "the minimum is left": (40, 5, 2, 1e-9, None, None),
}


@pytest.mark.parametrize("row_multiple", [1, 4])
@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge, row_multiple):
    tokens, experts, top_k, factor, preference, dropped = EDGES[edge]
    moe = plain_moe.layer(changed(top_k=top_k, capacity=factor), Exact(row_multiple), experts)
    x_BSD = drawn(1, tokens, 16)
    if preference is not None:
        x_BSD[..., 0] = 10.0  # what the router reads, and nothing else
        with torch.no_grad():
            moe.router.weight.zero_()[:, 0] = torch.tensor(preference).double()  # pyright: ignore
    most = plain_moe.even_share(tokens, top_k, experts, factor) if factor else 0
    got = assert_same_with_gradients(moe, x_BSD, top_k, most)
    assert dropped is None or got == pytest.approx(dropped)
    if edge == "the minimum is left":
        assert got >= 1 - experts * dispatch.MINIMUM_CAPACITY / (tokens * top_k)
    if edge == "experts without a token":
        _, report = moe(x_BSD)
        report.balance.backward()
        gate_up = torch.autograd.grad(moe(x_BSD)[0].sum(), moe.experts.gate_up_EFD)[0]
        assert gate_up[:2].abs().sum() > 0 and gate_up[2:].abs().sum() == 0
        assert report.load_E.tolist() == [0.5, 0.5, 0, 0, 0]
        assert torch.isfinite(moe.router.weight.grad).all()  # pyright: ignore


@pytest.mark.parametrize("factor", [0.0, 0.5])
@pytest.mark.parametrize("router", ["softmax", "sigmoid", "expert_choice"])
def test_gradients_of_a_whole_layer_and_its_losses(router, factor):
    """gradcheck: every derivative against differences, the router's losses among what is differentiated."""
    config = changed(
        width=8, experts=4, router=router, capacity=factor, residual=True, bungee=2.0, shared_experts=1
    )  # fmt: skip
    moe = plain_moe.layer(config, Exact(4))
    names, parameters = zip(*moe.named_parameters())

    def forward(x_BSD, *values):
        out, report = torch.func.functional_call(moe, dict(zip(names, values)), (x_BSD,))
        return out, report.z, report.balance, report.sequence

    x_BSD = drawn(2, 6, 8).requires_grad_()
    # fast_mode compares a random projection of the Jacobian: the whole one takes minutes.
    assert torch.autograd.gradcheck(forward, (x_BSD, *parameters), fast_mode=True, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_experts_equal_a_loop_in_the_precisions_that_train(kind):
    experts = Experts(CONFIG, 5, precision.build(kind))
    plain_moe.randomise(experts, std=0.3)
    generator = torch.Generator().manual_seed(0)
    T = 37
    x = torch.randn(T, CONFIG.width, generator=generator).requires_grad_()
    chosen = torch.tensor([[0, 3], [3, 4], [4, 0]])[torch.randint(0, 3, (T,), generator=generator)]  # never 1 or 2
    weights = torch.rand(T, 2, generator=generator).requires_grad_()
    inputs = [x, weights, *experts.parameters()]
    rows = [
        sum(w * plain_moe.swiglu(x_D, experts.gate_up_EFD[e], experts.down_EDF[e]) for e, w in zip(own, weight))
        for x_D, own, weight in zip(x, chosen.tolist(), weights)
    ]
    expected = torch.stack(rows)  # pyright: ignore[reportArgumentType]
    direction = torch.randn(expected.shape, generator=generator)
    expected_grads = torch.autograd.grad((expected * direction).sum(), inputs)
    routing = Routing(torch.zeros(T, 5), torch.zeros(T, 5), weights, chosen)
    out, _ = experts(x.to(experts.precision.dtype), routing)
    grads = torch.autograd.grad((out.float() * direction).sum(), inputs)
    tolerance = 1e-4 if kind == "fp32" else 0.02
    for got, wanted in zip((out.float(), *grads), (expected, *expected_grads)):
        assert torch.isfinite(got).all()
        assert (got - wanted).norm() <= tolerance * wanted.norm()
    assert grads[2][1].abs().max() == 0  # an expert without tokens has a zero gradient, not garbage


@pytest.mark.parametrize("router", ["softmax", "sigmoid", "expert_choice"])
def test_a_layer_compiles_as_one_graph(router):
    """No shape hangs on a value and nothing waits for one: torch.compile finds no place to break."""
    config = changed(router=router, capacity=0.5, shared_experts=1, residual=True, output_norm=True)
    moe = plain_moe.layer(config, precision.build("bf16"))  # torch cannot trace grouped_mm in fp32
    torch.compiler.reset()
    compiled = torch.compile(moe, backend="aot_eager", fullgraph=True)
    x_BSD = drawn(2, 12, 16).bfloat16().requires_grad_()
    (out, report), (wanted, plain) = compiled(x_BSD), moe(x_BSD)
    assert torch.equal(out, wanted) and all(torch.equal(a, b) for a, b in zip(report, plain))
    (grad,) = torch.autograd.grad(out.sum(), x_BSD)
    torch.testing.assert_close(grad, torch.autograd.grad(wanted.sum(), x_BSD)[0])


@pytest.mark.parametrize("most", [0, 3])
@pytest.mark.parametrize("row_multiple", [1, 4, 32])
def test_a_layout_depends_on_shapes_alone_and_every_row_is_its_experts(row_multiple, most):
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for _ in range(20):
        scores_TE = torch.rand(13, 6, generator=generator) * torch.rand(6, generator=generator)
        weights_TK, experts_TK = scores_TE.topk(2, dim=-1)
        where = dispatch.by_token(experts_TK, weights_TK, 6, row_multiple, most)
        lengths.add(len(where.token_R))
        ends = where.ends_E.tolist()
        assert ends == sorted(ends) and ends[-1] == len(where.token_R)
        assert all(end % row_multiple == 0 for end in ends)
        taken = [0] * 6
        for assignment, row in enumerate(where.row_TK.flatten().tolist()):
            token, expert = assignment // 2, int(experts_TK.flatten()[assignment])
            if row == len(where.token_R):
                continue  # dropped
            assert where.token_R[row] == token and where.assignment_R[row] == assignment
            assert ([0, *ends][expert]) <= row < ends[expert]
            taken[expert] += 1
        counts = torch.bincount(experts_TK.flatten(), minlength=6)
        assert taken == (counts.clamp(max=most) if most else counts).tolist()
        assert (where.token_R < 13).sum() == sum(taken)  # the other rows are padding
        assert where.dropped.item() == pytest.approx(1 - sum(taken) / 26, abs=1e-6)
    assert len(lengths) == 1


def test_one_token_fills_the_rows_of_its_own_experts_alone():
    where = dispatch.by_token(torch.tensor([[7, 90]]), torch.tensor([[0.5, 0.5]]), 128, 32)
    assert len(where.token_R) == 64 and where.ends_E[7] == 32 and where.ends_E[90] == 64


def test_capacity_is_that_of_the_switch_transformer():
    """Section 2.2 of arXiv 2101.03961: tokens per batch / experts, times the capacity factor; figure 3's 6 tokens on 3
    experts, of which one has 3, overflow at factor 1.0 and fit at 1.5."""
    assert dispatch.capacity(1.0, 60, 1, 3) == 20 and dispatch.capacity(1.5, 60, 1, 3) == 30
    assert dispatch.capacity(1.25, 4096, 2, 16) == 640
    assert dispatch.capacity(0.0, 60, 1, 3) == 0  # no bound
    assert dispatch.capacity(1.0, 1, 1, 128) == 4  # a step of generation drops nothing of its one token
    experts_TK = torch.tensor([0, 0, 0, 1, 1, 2])[:, None]
    weights_TK = torch.tensor([0.5, 0.9, 0.7, 0.9, 0.9, 0.9])[:, None]
    tight, loose = (dispatch.by_token(experts_TK, weights_TK, 3, 1, most) for most in (2, 3))
    assert tight.dropped.item() == pytest.approx(1 / 6) and loose.dropped.item() == 0
    assert tight.row_TK[:, 0].tolist() == [6, 0, 1, 2, 3, 4]  # token 0 weighs least: no row


def test_training_and_evaluation_have_capacities_of_their_own():
    moe = plain_moe.layer(changed(capacity=0.5))
    x_BSD = drawn(2, 12, 16)
    trained, report = moe(x_BSD)
    moe.eval()
    scored, without = moe(x_BSD)
    assert report.dropped > 0 and without.dropped == 0
    torch.testing.assert_close(scored, plain_moe.mixture(moe, x_BSD, 2)[0])
    assert not torch.allclose(trained, scored)
    moe.experts.capacity_eval = 0.5
    torch.testing.assert_close(moe(x_BSD)[0], trained)


def test_experts_that_choose_equal_the_plain_loop():
    experts = Experts(CONFIG, 5, Exact(4)).double()
    plain_moe.randomise(experts)
    x_TD, weights_EC = drawn(8, 16).requires_grad_(), drawn(5, 3, seed=3).requires_grad_()
    tokens_EC = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(e))[:3] for e in range(5)])
    routing = Routing(drawn(8, 5), drawn(8, 5), weights_EC, None, tokens_EC)
    out, dropped = experts(x_TD, routing)
    expected = [torch.zeros(16, dtype=torch.float64) for _ in range(8)]
    for expert in range(5):
        for token, weight in zip(tokens_EC[expert].tolist(), weights_EC[expert]):
            y_D = plain_moe.swiglu(x_TD[token], experts.gate_up_EFD[expert], experts.down_EDF[expert])
            expected[token] = expected[token] + weight * y_D
    torch.testing.assert_close(out, torch.stack(expected))
    direction = drawn(8, 16, seed=4)
    inputs = (x_TD, weights_EC, *experts.parameters())
    for got, wanted in zip(
        torch.autograd.grad((out * direction).sum(), inputs),
        torch.autograd.grad((torch.stack(expected) * direction).sum(), inputs),
    ):
        torch.testing.assert_close(got, wanted)
    left = set(range(8)) - set(tokens_EC.flatten().tolist())
    assert 7 in left and out[7].abs().max() == 0 and dropped.item() == pytest.approx(len(left) / 8)


@pytest.mark.parametrize(
    ("changes", "experts"),
    [
        ({}, [5, 5, 5, 5]),
        ({"dense_layers": 1}, [0, 5, 5, 5]),
        ({"moe_every": 2}, [0, 5, 0, 5]),
        ({"dense_layers": 1, "moe_every": 2}, [0, 0, 5, 0]),
        ({"pyramid": (4, 4, 8, 16)}, [4, 4, 8, 16]),
        ({"dense_layers": 2, "pyramid": (3, 6)}, [0, 0, 3, 6]),
        ({"dense_layers": 4}, [0, 0, 0, 0]),
    ],
)
def test_which_layers_have_how_many_experts(changes, experts):
    config = changed(layers=4, **changes)
    model = Transformer(config, precision.build("fp32"))
    model.initialise(0)
    ids = torch.arange(12).view(2, 6)
    loss = model.loss(ids, ids)
    (loss.nll + loss.auxiliary).backward()
    networks = [block.ffn for block in model.blocks]
    assert [0 if isinstance(ffn, Dense) else len(ffn.router.weight) for ffn in networks] == experts  # pyright: ignore
    assert [len(report.load_E) for report in loss.routers] == [number for number in experts if number]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    # Counted by hand: what one token does not meet are the experts beyond k.
    counts = count(config)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    idle = sum(max(number - config.top_k, 0) for number in experts)
    assert counts.total - counts.active == idle * 3 * config.width * config.expert_width
    dense = counts.parts.get("dense networks", 0)
    assert dense == experts.count(0) * 3 * config.width * config.top_k * config.expert_width


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"top_k": 6}, r"model\.top_k \(6\) must not exceed model\.experts \(5\)"),
        ({"pyramid": (4, 1)}, r"model\.top_k \(2\)"),
        ({"pyramid": (4, 4, 4)}, r"model\.pyramid names 3 layers, and 2 of the 2"),
        ({"capacity": -1.0}, r"model\.capacity"),
        ({"moe_every": 0}, r"model\.moe_every"),
        ({"dense_layers": 3}, r"model\.dense_layers"),
        ({"expert_width": 12}, r"model\.expert_width must be a multiple of 8"),
    ],
)
def test_impossible_shapes_are_refused(changes, told):
    with pytest.raises(UsageError, match=told):
        changed(**changes)


def loads(*most: float) -> list[torch.Tensor]:
    """One layer each, of 4 experts, the busiest of which has so many times its even share."""
    return [torch.tensor([share / 4, *[(1 - share / 4) / 3] * 3]) for share in most]


def test_coefficients_stay_as_configured_unless_they_adapt():
    model = Transformer(CONFIG, precision.build("fp32"))
    model.adapt(loads(4.0, 4.0), norm=100.0)
    assert model.coefficients.factors.tolist() == [1.0, 1.0]
    assert "coefficients.factors" not in model.state_dict()


def test_coefficients_rise_outside_their_band_and_fall_inside():
    options = {"adapt.load": 2.0, "adapt.norm": 1.0, "adapt.step": 1.1, "adapt.most": 1.3}
    coefficients = adapt.Coefficients(changed(adapt=True, options=options))
    assert "factors" in coefficients.state_dict()

    def after(load: float, norm: float) -> list[float]:
        coefficients.adapt(loads(1.0, load), norm)  # the worst layer counts
        return [round(factor, 6) for factor in coefficients.factors.tolist()]

    assert after(2.1, 0.9) == [1.1, 1.0]  # load alone: balance
    assert after(2.1, 1.1) == [1.21, 1.1]
    assert after(2.1, 0.9) == [1.3, 1.0]  # no further than `most`; norm is back
    assert after(1.9, 0.9) == [round(1.3 / 1.1, 6), 1.0]
    assert after(1.0, 5.0) == [round(1.3 / 1.21, 6), 1.1]
    assert after(1.0, 1.0) == [1.0, 1.0]  # never below the configured ones

    moe = plain_moe.layer(CONFIG, precision.build("fp32"))
    one = moe(drawn(2, 6, 16).float())[1]
    after(2.1, 1.1)
    config = coefficients.config
    even = config.balance_loss * one.balance + config.sequence_loss * one.sequence
    wanted = 1.1 * even + 1.1 * config.z_loss * one.z
    torch.testing.assert_close(coefficients.weigh([one], one.z), wanted)
    torch.testing.assert_close(coefficients.weigh([one, one], one.z), 2 * wanted)


@pytest.mark.parametrize(("option", "value"), [("load", 0.5), ("step", 0.9), ("most", 0.0), ("norm", -1.0)])
def test_bands_that_cannot_be_are_refused(option, value):
    with pytest.raises(UsageError, match=f"adapt: {option}"):
        adapt.Coefficients(changed(adapt=True, options={f"adapt.{option}": value}))
