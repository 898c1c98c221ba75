"""Kimi delta attention against the paper's recurrence (arXiv 2510.26692, eq. 1) in fp64, and against transformers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.support.attention_layers import in_pieces, inputs, layer, whole

from gristmill.trainer.model.attention._delta_rule import delta_rule

H, d = 6, 8


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def recurrence(
    q_Sd: torch.Tensor, k_Sd: torch.Tensor, v_Se: torch.Tensor, decay_Sd: torch.Tensor, beta_S: torch.Tensor,
    state_de: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Eq. 1 as it is printed, for one head of one document."""
    outputs = []
    eye = torch.eye(q_Sd.shape[1], dtype=q_Sd.dtype)
    for q, k, v, decay, beta in zip(q_Sd, k_Sd, v_Se, decay_Sd, beta_S):
        state_de = (eye - beta * torch.outer(k, k)) @ torch.diag(decay.exp()) @ state_de + beta * torch.outer(k, v)
        outputs.append(state_de.T @ q)
    return torch.stack(outputs), state_de


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(S: int, fastest: float, dtype: torch.dtype = torch.float64) -> Any:
    """Of 2 rows, 3 heads: q, k at length 1, v, decays from none to `fastest`, beta. Keys are 5 wide, values 4."""
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (random(2, 3, S, 5, seed=0), random(2, 3, S, 5, seed=1))]
    decay = -fastest * random(2, 3, S, 5, seed=3).sigmoid() ** 4
    made = [*unit, random(2, 3, S, 4, seed=2), decay, random(2, 3, S, seed=4).sigmoid()]
    return [x.to(dtype).requires_grad_() for x in made]


def at(place: Any, given: Any) -> Any:
    return [x[place] for x in given]


@pytest.mark.parametrize("fastest", [0.0, 0.2, 500.0], ids=["none", "slow", "at once"])
@pytest.mark.parametrize("S", [1, 7, 9, 32, 33, 75])
def test_chunks_equal_the_recurrence(S: int, fastest: float) -> None:
    given = parts(S, fastest)
    before = random(2, 3, 5, 4, seed=5).requires_grad_()
    starts = {0: [], 1: sorted({S // 3, S // 3 + 1, S - 1} - {0, S})}  # where documents begin, by row
    positions = torch.arange(1000, 1000 + S).repeat(2, 1)  # the first document of a row began long before
    for start in starts[1]:
        positions[1, start:] = torch.arange(S - start)
    y, state = delta_rule(*given, positions_BS=positions, state_BHde=before)
    expected, states = torch.empty_like(y), torch.empty_like(state)
    for row, head in ((row, head) for row in range(2) for head in range(3)):
        after, edges = before[row, head], [0, *starts[row], S]
        for number, (start, stop) in enumerate(pairwise(edges)):
            place = row, head, slice(start, stop)
            expected[place], after = recurrence(*at(place, given), state_de=after if number == 0 else 0 * after)
        states[row, head] = after
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state, states, rtol=1e-9, atol=1e-9)
    directions = random(*y.shape, seed=6), random(*state.shape, seed=7)
    inputs_ = [*given, before]
    grads = torch.autograd.grad((y * directions[0]).sum() + (state * directions[1]).sum(), inputs_)
    wanted = torch.autograd.grad((expected * directions[0]).sum() + (states * directions[1]).sum(), inputs_)
    for got, right in zip(grads, wanted):
        torch.testing.assert_close(got, right, rtol=1e-7, atol=1e-8)


def test_no_decay_is_too_fast_for_fp32() -> None:
    given = parts(150, 2000.0, torch.float32)
    y, state = delta_rule(*given, positions_BS=torch.arange(150).repeat(2, 1))
    exact, _ = delta_rule(*parts(150, 2000.0), positions_BS=torch.arange(150).repeat(2, 1))
    torch.testing.assert_close(y.double(), exact, rtol=1e-3, atol=1e-4)
    grads = torch.autograd.grad(y.sum() + state.sum(), given)
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_the_delta_rule_passes_gradcheck() -> None:
    given = parts(11, 2.0)
    positions = torch.tensor([[*range(11)], [*range(4), *range(7)]])
    assert torch.autograd.gradcheck(lambda *x: delta_rule(*x, positions), given, fast_mode=True)  # pyright: ignore


def plain(made: Any, x_SD: torch.Tensor) -> torch.Tensor:
    """One document, [S, D]: section 4 of the paper, written as it stands there."""
    S, F = len(x_SD), torch.nn.functional

    def through(*names: str) -> torch.Tensor:
        y = x_SD
        for name in names:
            y = y @ getattr(made, name).weight.T
        return y

    mixed = []
    for name, taps_FK in zip(("query", "key", "value"), made.convolution_FK.chunk(3)):
        x_SF, K = through(name), taps_FK.shape[1]
        rows: Any = [sum(taps_FK[:, K - 1 - n] * x_SF[t - n] for n in range(min(K, t + 1))) for t in range(S)]
        mixed.append(F.silu(torch.stack(rows)).view(S, H, d))
    q, k, v = mixed
    q, k = (x / (x.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    step = F.softplus(through("decay_down", "decay_up") + made.decay_bias).view(S, H, d)
    decay = -made.log_rate_H.exp()[:, None] * step
    beta, gate = through("beta").sigmoid(), through("gate_down", "gate_up").sigmoid().view(S, H, d)
    heads = []
    for h in range(H):
        empty = torch.zeros(d, d, dtype=x_SD.dtype)
        y, _ = recurrence(q[:, h] * d**-0.5, k[:, h], v[:, h], decay[:, h], beta[:, h], empty)
        y = y / (y.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * made.output_norm.weight
        heads.append(y * gate[:, h])
    return torch.cat(heads, dim=-1) @ made.output.weight.T


def test_outputs_and_gradients_equal_the_papers() -> None:
    made = layer("kda", torch.float64)
    x_BSD = inputs(1, 90, torch.float64).requires_grad_()
    starts = (0, 2, 70, 71)
    expected = torch.cat([plain(made, x_BSD[0, a:b]) for a, b in zip(starts, (*starts[1:], 90))])
    ours = whole(made, x_BSD, [starts])[0]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    direction = random(*ours.shape, seed=2)
    wanted = [x_BSD, *made.parameters()]
    grads = torch.autograd.grad((ours * direction).sum(), wanted)
    for got, right in zip(grads, torch.autograd.grad((expected * direction).sum(), wanted)):
        assert (got - right).norm() <= 1e-8 * right.norm()


def test_generation_equals_the_papers() -> None:
    made = layer("kda", torch.float64)
    x_BSD = inputs(1, 80, torch.float64)
    ours = in_pieces(made, x_BSD, [1, 1, 66, *[1] * 5, 7])[0]
    torch.testing.assert_close(ours, plain(made, x_BSD[0]), rtol=1e-9, atol=1e-9)


def test_outputs_equal_those_of_transformers() -> None:
    from transformers.models.kimi_linear.configuration_kimi_linear import KimiLinearConfig
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    made = layer("kda", norm_eps=1e-5, options={"kda.taps": 4})
    theirs = KimiLinearDeltaAttention(
        KimiLinearConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=H, linear_num_heads=H, linear_head_dim=d,
            linear_conv_kernel_dim=4, rms_norm_eps=1e-5, layer_types=["linear_attention"], mlp_layer_types=["dense"],
        ),
        0,
    )  # fmt: skip
    names = {
        "q_proj.weight": "query.weight", "k_proj.weight": "key.weight", "v_proj.weight": "value.weight",
        "conv1d.weight": "convolution_FK", "forget_gate.f_a_proj.weight": "decay_down.weight",
        "forget_gate.f_b_proj.weight": "decay_up.weight", "forget_gate.dt_bias": "decay_bias",
        "forget_gate.A_log": "log_rate_H", "b_proj.weight": "beta.weight", "g_a_proj.weight": "gate_down.weight",
        "g_b_proj.weight": "gate_up.weight", "o_norm.weight": "output_norm.weight", "o_proj.weight": "output.weight",
    }  # fmt: skip
    ours, shapes = made.state_dict(), theirs.state_dict()
    assert set(names) == set(shapes) and set(names.values()) == set(ours)
    theirs.load_state_dict({name: ours[own].view(shapes[name].shape) for name, own in names.items()})
    x_BSD = inputs(2, 70)
    with torch.no_grad():
        ours_BSD, expected_BSD = whole(made, x_BSD), theirs(x_BSD)
    assert (ours_BSD - expected_BSD).norm() < 1e-5 * expected_BSD.norm()
