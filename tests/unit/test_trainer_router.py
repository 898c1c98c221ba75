"""Routers and their losses, against worked examples, their papers' formulas, and transformers' DeepSeek routers."""

from __future__ import annotations

import dataclasses
import math
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tests.support.plain_moe import CONFIG, randomise
from torch import nn

from gristmill.base.errors import UsageError
from gristmill.trainer.model import kinds
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe import adapt, losses, router
from gristmill.trainer.model.moe.router import Routing


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def built(kind: str, *, top_k: int = 2, experts: int = 8, capacity: float = 0.0, seed: int = 0, **options) -> nn.Module:
    """A router with random weights; options without their kind's name."""
    named = {f"{kind}.{name}": value for name, value in options.items()}
    config = dataclasses.replace(
        CONFIG, router=kind, top_k=top_k, experts=experts, capacity=capacity, options=named
    )  # fmt: skip
    module = router.build(config, experts)
    randomise(module, seed)
    return module


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def forced(module: nn.Module, logits_TE: list[list[float]]) -> Routing:
    """The routing of tokens that have these logits."""
    wanted_TE = torch.tensor(logits_TE)
    with torch.no_grad():
        module.weight.zero_()[:, : wanted_TE.shape[1]] = torch.eye(wanted_TE.shape[1])  # pyright: ignore
    x_TD = torch.zeros(len(wanted_TE), CONFIG.width)
    x_TD[:, : wanted_TE.shape[1]] = wanted_TE
    return module(x_TD, 1)


def logit(*scores: float) -> list[float]:
    """What the sigmoid makes these scores of."""
    return [math.log(score / (1 - score)) for score in scores]


def test_softmax_weights_are_mixtrals():
    """Softmax(TopK(x W)) (arXiv 2401.04088, section 2.1): over the chosen logits alone; normalising is just that."""
    module = built("softmax")
    x_TD = drawn(20, 16)
    routing = module(x_TD, 1)
    top_TK, experts_TK = (x_TD @ module.weight.t()).topk(2, dim=-1)  # pyright: ignore
    assert torch.equal(routing.experts_TK, experts_TK)
    torch.testing.assert_close(routing.weights, top_TK.softmax(dim=-1))


def test_switch_keeps_the_probability_as_weight():
    """Equation 2 of arXiv 2101.03961, k = 1: the one way in which the loss reaches the router."""
    module = built("softmax", top_k=1, normalise=False)
    x_TD = drawn(20, 16)
    routing = module(x_TD, 1)
    probs_TE = (x_TD @ module.weight.t()).softmax(dim=-1)  # pyright: ignore
    torch.testing.assert_close(routing.weights[:, 0], probs_TE.max(dim=-1).values)
    routing.weights.sum().backward()
    assert module.weight.grad.abs().sum() > 0  # pyright: ignore
    with pytest.raises(UsageError, match=r"softmax\.normalise: with model\.top_k 1 .* give softmax\.normalise false"):
        built("softmax", top_k=1)


def test_group_limits_by_hand():
    """Four groups of two, two kept, top 3. By a group's best (DeepSeek-V2): 0.9 and 0.8 win; by the sum of the best
    two (DeepSeek-V3): 0.7 + 0.7 and 0.6 + 0.8 do."""
    scores = [0.9, 0.1, 0.7, 0.7, 0.6, 0.8, 0.5, 0.5]
    groups = {"groups": 4, "groups_kept": 2, "normalise": False}
    by_best = forced(built("softmax", top_k=3, **groups), [[math.log(score) for score in scores]])
    assert by_best.experts_TK is not None and by_best.experts_TK.tolist() == [[0, 5, 4]]
    torch.testing.assert_close(by_best.weights, torch.tensor([[0.9, 0.8, 0.6]]) / sum(scores))
    by_two = forced(built("sigmoid", top_k=3, **groups), [logit(*scores)])
    assert by_two.experts_TK is not None
    assert by_two.experts_TK[0, 0] == 5 and set(by_two.experts_TK[0, 1:].tolist()) == {2, 3}
    torch.testing.assert_close(by_two.weights, torch.tensor([[0.8, 0.7, 0.7]]))


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2), (4, 1)])
@pytest.mark.parametrize("normalise", [True, False])
def test_sigmoid_equals_transformers_deepseek_v3(groups, kept, normalise):
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    theirs = DeepseekV3TopkRouter(
        DeepseekV3Config(
            hidden_size=16, n_routed_experts=8, num_experts_per_tok=2, n_group=groups, topk_group=kept,
            norm_topk_prob=normalise, routed_scaling_factor=2.5,
        )
    )  # fmt: skip
    ours = built("sigmoid", groups=groups, groups_kept=kept, normalise=normalise, scale=2.5)
    bias_E = 0.3 * drawn(8, seed=5)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)  # pyright: ignore
        theirs.e_score_correction_bias.copy_(bias_E)  # pyright: ignore
        ours.bias_E.copy_(bias_E)  # pyright: ignore
    assert_equal_routing(ours, theirs)


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2), (8, 3)])
def test_softmax_equals_transformers_deepseek_v2(groups, kept):
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    theirs = DeepseekV2TopkRouter(
        DeepseekV2Config(
            hidden_size=16, num_attention_heads=2, n_routed_experts=8, num_experts_per_tok=2, n_group=groups,
            topk_group=kept, topk_method="group_limited_greedy" if groups > 1 else "greedy", routed_scaling_factor=16.0,
        )
    )  # fmt: skip
    ours = built("softmax", groups=groups, groups_kept=kept, normalise=False, scale=16.0)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)  # pyright: ignore
    assert_equal_routing(ours, theirs)


def assert_equal_routing(ours: nn.Module, theirs: nn.Module) -> None:
    x_TD = drawn(200, 16)
    routing = ours(x_TD, 1)
    _, weights_TK, experts_TK = theirs(x_TD)
    order, their_order = routing.experts_TK.argsort(dim=-1), experts_TK.argsort(dim=-1)
    assert torch.equal(routing.experts_TK.gather(1, order), experts_TK.gather(1, their_order))
    torch.testing.assert_close(routing.weights.gather(1, order), weights_TK.gather(1, their_order))


def test_the_bias_decides_the_choice_and_never_the_weight():
    module = built("sigmoid", experts=4)
    scores = logit(0.8, 0.6, 0.5, 0.1)
    assert forced(module, [scores]).experts_TK.tolist() == [[0, 1]]  # pyright: ignore
    module.bias_E.copy_(torch.tensor([-0.5, 0.0, 0.0, 1.0]))  # pyright: ignore
    routing = forced(module, [scores])
    assert routing.experts_TK is not None and routing.experts_TK.tolist() == [[3, 1]]  # 1.1, 0.6, 0.5, 0.3
    torch.testing.assert_close(routing.weights, torch.tensor([[0.1, 0.6]]) / 0.7)
    assert routing.preferred_TK is not None and routing.preferred_TK.tolist() == [[0, 1]]
    torch.testing.assert_close(routing.probs_TE, torch.tensor([[0.8, 0.6, 0.5, 0.1]]) / 2.0)
    assert dict(module.named_parameters()).keys() == {"weight"} and "bias_E" in module.state_dict()


def test_a_bias_moves_by_its_rate_against_the_error():
    module = built("sigmoid", experts=4, rate=0.01)
    module.balance(torch.tensor([0.5, 0.25, 0.2, 0.05]))  # pyright: ignore
    torch.testing.assert_close(module.bias_E, torch.tensor([-0.01, 0.0, 0.01, 0.01]))
    module.balance(torch.tensor([0.0, 1.0, 0.0, 0.0]))  # pyright: ignore
    torch.testing.assert_close(module.bias_E, torch.tensor([0.0, -0.01, 0.02, 0.02]))
    even = built("sigmoid", experts=6, rate=0.01)
    even.balance(torch.full((6,), 1 / 6) * 4 / 6 + torch.full((6,), 1 / 6) * 2 / 6)  # pyright: ignore
    assert even.bias_E.tolist() == [0.0] * 6  # pyright: ignore  # a sum over micro-batches, uneven by rounding alone
    still = built("sigmoid", experts=4, rate=0.0)
    still.balance(torch.tensor([1.0, 0.0, 0.0, 0.0]))  # pyright: ignore
    assert still.bias_E.tolist() == [0.0] * 4  # pyright: ignore


def test_the_bias_alone_evens_a_skewed_load():
    module = built("sigmoid", rate=0.01)
    x_TD = drawn(512, 16) + 0.5 * drawn(16, seed=9)  # tokens that are alike: the router prefers a few experts
    most = []
    for _ in range(150):
        load_E = losses.load(module(x_TD, 1).experts_TK, 8)
        most.append(float(load_E.max() * 8))
        module.balance(load_E)  # pyright: ignore
    assert most[0] > 2.5 and max(most[-20:]) < 1.2


def test_experts_choose_their_best_tokens_of_each_sequence():
    module = built("expert_choice", experts=4)
    x_TD = drawn(24, 16)
    routing = module(x_TD, 2)
    probs_TE = (x_TD @ module.weight.t()).softmax(dim=-1)  # pyright: ignore
    assert routing.experts_TK is None and routing.tokens_EC.shape == (4, 12)  # 2 * (12 * 2 / 4)
    for expert in range(4):
        for sequence in range(2):
            first = 12 * sequence
            best = probs_TE[first : first + 12, expert].argsort(descending=True)[:6] + first
            own = routing.tokens_EC[expert, 6 * sequence : 6 * sequence + 6]
            assert own.tolist() == best.tolist()
            torch.testing.assert_close(routing.weights[expert, 6 * sequence : 6 * sequence + 6], probs_TE[best, expert])
    report = losses.report(routing, 2, torch.zeros(()))
    assert report.load_E.tolist() == [0.25] * 4 and (report.balance, report.sequence) == (1.0, 1.0)
    for sequence in range(2):  # cut into micro-batches, the choice is the same
        rows = slice(12 * sequence, 12 * sequence + 12)
        part = module(x_TD[rows], 1)
        assert torch.equal(part.tokens_EC + 12 * sequence, routing.tokens_EC[:, 6 * sequence : 6 * sequence + 6])


def test_experts_that_choose_take_no_more_than_their_share():
    routing = built("expert_choice", experts=8, top_k=1)(drawn(16, 16), 1)
    assert routing.tokens_EC.shape == (8, 2)


def test_expert_choice_sees_ahead_in_training_and_nowhere_else():
    module = built("expert_choice", experts=4, capacity=0.5)
    x_TD = drawn(16, 16)
    changed_TD = x_TD.clone()
    changed_TD[-1] = 30 * module.weight[0].detach()  # a token that expert 0 wants above all  # pyright: ignore

    def weights_of_all_but_the_last(x_TD: torch.Tensor) -> torch.Tensor:
        routing = module(x_TD, 1)
        if routing.experts_TK is None:
            dense_TE = torch.zeros(16, 4).index_put(
                (routing.tokens_EC.flatten(), torch.arange(4).repeat_interleave(routing.tokens_EC.shape[1])),
                routing.weights.flatten(),
            )
        else:
            dense_TE = torch.zeros(16, 4).scatter(1, routing.experts_TK, routing.weights)
        return dense_TE[:-1]

    assert not torch.equal(weights_of_all_but_the_last(x_TD), weights_of_all_but_the_last(changed_TD))
    module.eval()
    assert torch.equal(weights_of_all_but_the_last(x_TD), weights_of_all_but_the_last(changed_TD))
    routing = module(x_TD, 1)
    torch.testing.assert_close(routing.weights, routing.probs_TE.topk(2, dim=-1).values)
    assert module.train()(x_TD[:1], 1).tokens_EC.tolist() == [[0]] * 4  # a sequence of 1


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "expert_choice"])
def test_routers_compute_in_fp32_whatever_comes_in(kind):
    module = built(kind)
    x_TD = drawn(50, 16, dtype=torch.bfloat16)
    rounded, whole = module(x_TD, 2), module(x_TD.float(), 2)
    for a, b in zip(rounded, whole):
        assert (a is None and b is None) or torch.equal(a, b)  # pyright: ignore
    assert all(part.dtype == torch.float32 for part in rounded[:3])
    torch.testing.assert_close(rounded.probs_TE.sum(dim=-1), torch.ones(50))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_scores_at_their_ends_give_numbers(kind):
    for logits in ([[-200.0] * 4], [[200.0] * 4], [[200.0, -200.0, -200.0, -200.0]]):
        module = built(kind, experts=4)
        routing = forced(module, logits)
        report = losses.report(routing, 1, torch.zeros(()))
        (routing.weights.sum() + report.balance + report.sequence + report.z).backward()
        assert all(torch.isfinite(value).all() for value in (routing.weights, routing.probs_TE, *report))
        assert torch.isfinite(module.weight.grad).all()  # pyright: ignore


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("softmax", {"groups": 3}, r"softmax\.groups \(3\) must divide the 8 experts"),
        ("sigmoid", {"groups": 8, "groups_kept": 1}, r"1 of 8 groups hold 1 experts, fewer than model\.top_k \(2\)"),
        ("sigmoid", {"groups": 2, "groups_kept": 3}, "groups_kept: 3 is not from 1 to 2"),
        ("sigmoid", {"rate": -1.0}, "sigmoid: rate"),
        ("sigmoid", {"rat": 1.0}, r"sigmoid: unknown key 'rat'; did you mean 'rate'"),
        ("softmax", {"rate": 1.0}, "unknown key 'rate'"),
        ("expert_choice", {"scale": 2.0}, "expert_choice: unknown key 'scale'"),
        ("sigmod", {}, "model.router: no kind 'sigmod'; did you mean 'sigmoid'"),
    ],
)
def test_impossible_options_are_refused(kind, options, told):
    with pytest.raises(UsageError, match=told):
        built(kind, **options)


def test_kinds_are_the_files():
    assert kinds.names("gristmill.trainer.model.moe.router") == ["expert_choice", "sigmoid", "softmax"]
    assert ModelConfig.__dataclass_fields__["router"].default == "softmax"


def test_load_balance_is_switchs():
    """Equation 4 to 6 of arXiv 2101.03961, k = 1: N * sum of f * P. Three tokens to expert 0, one to 1; N = 2."""
    probs_TE = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    experts_TK = torch.tensor([[0], [0], [0], [1]])
    wanted = 2 * (0.75 * (0.9 + 0.8 + 0.6 + 0.3) / 4 + 0.25 * (0.1 + 0.2 + 0.4 + 0.7) / 4)
    assert losses.load_balance(probs_TE, experts_TK, 1).item() == pytest.approx(wanted)
    collapsed = torch.eye(4)[[0] * 6]
    assert losses.load_balance(collapsed, torch.zeros(6, 1, dtype=torch.int64), 1).item() == 4.0  # the worst: N


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_an_even_load_scores_one_whatever_k_and_transformers_scores_k(top_k):
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    experts_TK = (torch.arange(8)[:, None] + torch.arange(top_k)) % 4
    even_TE = torch.full((8, 4), 0.25)
    assert losses.load_balance(even_TE, experts_TK, 2).item() == pytest.approx(1.0)
    logits_TE = drawn(40, 4)
    ours = losses.load_balance(logits_TE.softmax(-1), logits_TE.topk(top_k, dim=-1).indices, 1)
    theirs = load_balancing_loss_func((logits_TE,), 4, top_k)
    torch.testing.assert_close(top_k * ours, theirs)


def test_sequence_loss_is_deepseek_v3s():
    """Equations 17 to 20 of arXiv 2412.19437 in loops: f counts the k highest scores without their bias, P averages
    scores divided by their sum, one sum per sequence."""
    module = built("sigmoid")
    module.bias_E.copy_(drawn(8, seed=5))  # pyright: ignore
    x_TD = drawn(12, 16)
    routing = module(x_TD, 3)
    scores_TE = (x_TD.double() @ module.weight.double().t()).sigmoid()  # pyright: ignore
    total = torch.zeros((), dtype=torch.float64)
    for sequence in range(3):
        rows = range(4 * sequence, 4 * sequence + 4)
        for expert in range(8):
            hits = sum(expert in scores_TE[t].topk(2).indices.tolist() for t in rows)
            share = sum(scores_TE[t, expert] / scores_TE[t].sum() for t in rows) / 4
            total = total + (8 / (2 * 4)) * hits * share
    report = losses.report(routing, 3, torch.zeros(()))
    assert report.sequence.item() == pytest.approx(total.item() / 3, rel=1e-5)
    biased = losses.load_balance(routing.probs_TE, routing.experts_TK, 3)
    assert biased.item() != pytest.approx(report.sequence.item(), rel=1e-3)
    # the load that is reported and balanced is the one that experts get, bias and all
    torch.testing.assert_close(report.load_E, torch.bincount(routing.experts_TK.flatten(), minlength=8) / 24)


def test_gradient_of_the_load_balance_reaches_the_router():
    module = built("softmax", experts=5)
    x_TD = drawn(12, 16)
    routing = module(x_TD, 3)
    losses.load_balance(routing.probs_TE, routing.experts_TK, sequences=3).backward()
    # by hand: E * mean over sequences of sum_e share_e * mean_t p_te, share held constant
    wanted = torch.zeros(5, 16)
    probs_TE = routing.probs_TE.detach()
    for b in range(3):
        rows = slice(4 * b, 4 * b + 4)
        share = torch.bincount(routing.experts_TK[rows].flatten(), minlength=5) / 8
        for p, token in zip(probs_TE[rows], x_TD[rows]):
            wanted += torch.outer(p * (share - (share * p).sum()), token) * 5 / 4 / 3
    torch.testing.assert_close(module.weight.grad, wanted, atol=1e-6, rtol=1e-4)


def test_z_loss_is_the_squared_log_partition():
    """Equation 5 of arXiv 2202.08906."""
    level = torch.full((6, 8), 1.5)
    assert losses.z(level).item() == pytest.approx((1.5 + math.log(8)) ** 2)
    logits_TE = drawn(6, 8)
    wanted = sum(math.log(sum(math.exp(value) for value in row)) ** 2 for row in logits_TE.tolist()) / 6
    assert losses.z(logits_TE).item() == pytest.approx(wanted, rel=1e-5)


def test_gradients_of_losses():
    logits_TE = drawn(12, 5, dtype=torch.float64).requires_grad_()
    experts_TK = logits_TE.detach().topk(2, dim=-1).indices

    def all_three(logits_TE: torch.Tensor) -> tuple[torch.Tensor, ...]:
        probs_TE = logits_TE.softmax(dim=-1)
        balance, sequence = (losses.load_balance(probs_TE, experts_TK, number) for number in (1, 3))
        return balance, sequence, losses.z(logits_TE)

    assert torch.autograd.gradcheck(all_three, (logits_TE,))


def test_load_and_entropy():
    experts_TK = torch.tensor([[0, 1], [0, 2], [0, 1]])
    assert losses.load(experts_TK, 4).tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 6, 0])
    assert losses.entropy(torch.full((3, 4), 0.25)).item() == pytest.approx(1.0)
    assert losses.entropy(torch.eye(4)).item() == 0.0
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert losses.entropy(half).item() == pytest.approx(0.5)
    assert losses.entropy(torch.ones(3, 1)).item() == 1.0


def test_the_page_names_every_kind_and_option_with_its_default():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    told = {}
    for names, defaults in re.findall(r"^\| (`[\w.]+`(?:, `[\w.]+`)*) \| ([\w., ]+) \|", page, re.MULTILINE):
        named, values = re.findall(r"`([\w.]+)`", names), defaults.split(", ")
        told |= dict(zip(named, values * len(named) if len(values) == 1 else values))
    config = ModelConfig.__dataclass_fields__
    known = {name: config[name].default for name in ("balance_loss", "sequence_loss", "z_loss")}
    known |= {f"adapt.{field.name}": field.default for field in dataclasses.fields(adapt.Options)}
    for kind in kinds.names(router.__name__):
        assert f"| `{kind}` |" in page
        options = import_module(f"{router.__name__}.{kind}").Options
        known |= {f"{kind}.{field.name}": field.default for field in dataclasses.fields(options)}
    for name, default in known.items():
        assert told[name] == str(default).lower() or float(told[name]) == default, name
    ours = {name for name in told if name.partition(".")[0] in (*kinds.names(router.__name__), "adapt")}
    assert ours - set(kinds.names(router.__name__)) <= set(known)
