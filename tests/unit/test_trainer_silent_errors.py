"""Errors that other trainers had without a sign: each has a check here, and a twin that puts the error in and sees the
check fail.

Where they were found: NVIDIA-NeMo/Automodel#1408 (auxiliary gradient lost, coefficient never applied), #1412 (its
scale), AI-Hypercomputer/maxtext#1483 (not divided by accumulation), huggingface/transformers#48205 (rows behind the
last offset), NVIDIA/Megatron-LM#6228 (experts that never change), #1330 (counts doubled under checkpointing),
NVIDIA-NeMo/Megatron-Bridge#5165 (a loss that a configuration omits), allenai/OLMoE#45 (a definition off by k).
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.support.plain_moe import CONFIG

from gristmill.trainer.data import Example
from gristmill.trainer.model import moe
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.huggingface import deepseek_v3
from gristmill.trainer.model.moe import adapt, dispatch, losses
from gristmill.trainer.model.moe.router import sigmoid
from gristmill.trainer.model.precision import build as precision
from gristmill.trainer.model.precision.plain import Plain
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.step import StepResult, accumulate, train_step

SIGMOID = dataclasses.replace(CONFIG, router="sigmoid", experts=4, options={"sigmoid.rate": 0.01})


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def build(config: ModelConfig = CONFIG, recompute: bool = False) -> Transformer:
    model = Transformer(config, precision("fp32"), recompute)
    model.initialise(0)
    return model


def example(rows: int = 4, length: int = 16) -> Example:
    ids = torch.randint(0, CONFIG.vocab, (rows, length + 1), generator=torch.Generator().manual_seed(3))
    return Example(ids[:, :-1], ids[:, 1:], torch.zeros(rows, length, dtype=torch.bool))


def router_gradient(config: ModelConfig, micro: int = 4) -> torch.Tensor:
    model = build(config)
    accumulate(model, example(), micro)
    gradient = model.get_parameter("blocks.1.ffn.router.weight").grad
    assert gradient is not None
    return gradient.double()


def step(model: Transformer) -> StepResult:
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip=0.0)  # decay moves what has no gradient at all
    return train_step(model, optimizer.build(model, config), example(), 2, 1.0)


# ---- 1. The auxiliary losses' gradient reaches the router, times its coefficient, whatever the accumulation


@pytest.mark.parametrize("name", ["balance_loss", "sequence_loss", "z_loss"])
class TestAuxiliaryGradient:
    def check(self, name: str) -> None:
        """Against the derivative of the loss itself, taken by differences along a direction."""
        none = dataclasses.replace(CONFIG, balance_loss=0.0, sequence_loss=0.0, z_loss=0.0)
        part = router_gradient(dataclasses.replace(none, **{name: 3.0})) - router_gradient(none)
        model, weight = build(none), "blocks.1.ffn.router.weight"
        direction = torch.randn(CONFIG.experts, CONFIG.width, generator=torch.Generator().manual_seed(5))
        values = []
        for eps in (-1e-3, 1e-3):
            with torch.no_grad():
                model.get_parameter(weight).add_(eps * direction)
                (report,) = model.loss(*example()[:2]).routers[1:]
                values.append(getattr(report, name.removesuffix("_loss")).item())
                model.get_parameter(weight).sub_(eps * direction)
        assert (part * direction).sum().item() == pytest.approx(3.0 * (values[1] - values[0]) / 2e-3, rel=0.02)

    def test(self, name: str) -> None:
        self.check(name)

    def test_twin_lost(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def detached(*arguments) -> losses.RouterReport:
            return losses.RouterReport(*(value.detach() for value in real(*arguments)))

        real = losses.report
        monkeypatch.setattr(losses, "report", detached)
        with pytest.raises(AssertionError):
            self.check(name)

    def test_twin_coefficient_never_applied(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def without(self, reports, like) -> torch.Tensor:
            return sum((one.balance + one.sequence + one.z for one in reports), torch.zeros_like(like))

        monkeypatch.setattr(adapt.Coefficients, "weigh", without)
        with pytest.raises(AssertionError):
            self.check(name)


class TestAuxiliaryScale:
    CONFIG = dataclasses.replace(CONFIG, sequence_loss=1.0, z_loss=1.0)

    def check(self) -> None:
        """Four rows at once, or one by one: the same gradient."""
        whole, parts = router_gradient(self.CONFIG, 4), router_gradient(self.CONFIG, 1)
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)

    def test(self) -> None:
        self.check()

    def test_twin_not_divided_by_accumulation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Transformer.loss

        def times_micro_batches(self, tokens_BS, *arguments):
            loss = real(self, tokens_BS, *arguments)
            return loss._replace(auxiliary=loss.auxiliary * (4 / len(tokens_BS)))

        monkeypatch.setattr(Transformer, "loss", times_micro_batches)
        with pytest.raises(AssertionError):
            self.check()


# ---- 2. No row of the experts' buffer is left uncomputed: behind the last offset grouped_mm leaves what memory held


class Garbage(Plain):
    """grouped_linear as it may be: rows behind the last offset hold anything."""

    def grouped_linear(self, x_RD: torch.Tensor, weight_EFD: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        y_RF = super().grouped_linear(x_RD, weight_EFD, ends_E)
        behind_R = torch.arange(len(y_RF)) >= ends_E[-1]
        return torch.where(behind_R[:, None], float("nan"), y_RF)


class TestRowsBehindTheLastOffset:
    def check(self, capacity: float = 0.0) -> None:
        """Forward and backward are numbers even where what is left uncomputed is NaN."""
        config = dataclasses.replace(CONFIG, capacity=capacity)
        layer = moe.MixtureOfExperts(config, config.experts, Garbage(torch.float32, 8))
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
        x_BSD = torch.randn(2, 9, config.width, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out, _ = layer(x_BSD)
        out.square().sum().backward()
        everything = (out, x_BSD.grad, *(parameter.grad for parameter in layer.parameters()))
        assert all(part is not None and torch.isfinite(part).all() for part in everything)

    @pytest.mark.parametrize("capacity", [0.0, 0.5])
    def test(self, capacity: float) -> None:
        self.check(capacity)

    def test_twin_buffer_longer_than_the_last_offset_and_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The last offset ends with the last expert's tokens, and dropped assignments read a row behind it."""
        real = dispatch.by_token

        def tight(experts_TK, weights_TK, experts, row_multiple, most=0):
            where = real(experts_TK, weights_TK, experts, row_multiple, most)
            used = int((where.token_R < len(experts_TK)).nonzero().max()) + 1
            ends_E = where.ends_E.clamp(max=used)
            return where._replace(ends_E=ends_E, row_TK=where.row_TK.clamp(max=len(where.token_R) - 1))

        monkeypatch.setattr(dispatch, "by_token", tight)
        with pytest.raises(AssertionError):
            self.check(0.5)


# ---- 4. Every expert changes in a step, and its gradient is its own


class TestExpertsChange:
    def check(self) -> None:
        model = build(SIGMOID)
        before = {name: value.clone() for name, value in model.named_parameters()}
        step(model)
        for name, value in model.named_parameters():
            moved = (value != before[name]).flatten(1).any(dim=1) if ".experts." in name else (value != before[name])
            assert moved.all() if ".experts." in name else moved.any(), name
        for block in model.blocks:
            gate_up = block.ffn.experts.gate_up_EFD  # pyright: ignore
            assert all(not torch.equal(gate_up[0], other) for other in gate_up[1:])  # pyright: ignore

    def test(self) -> None:
        self.check()

    def test_twin_optimiser_leaves_them_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = optimizer.build

        def without_experts(model, config):
            built = real(model, config)
            stacked = {id(value) for name, value in model.named_parameters() if ".experts." in name}
            for group in (group for part in built.parts for group in part.param_groups):
                group["params"] = [value for value in group["params"] if id(value) not in stacked]
            return built

        monkeypatch.setattr(optimizer, "build", without_experts)
        with pytest.raises(AssertionError):
            self.check()

    def test_twin_gradient_goes_to_a_copy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Plain.grouped_linear

        def of_a_copy(self, x_RD, weight_EFD, ends_E):
            return real(self, x_RD, weight_EFD.detach().clone(), ends_E)

        monkeypatch.setattr(Plain, "grouped_linear", of_a_copy)
        with pytest.raises(AssertionError):
            self.check()


# ---- 5. Checkpointed activations count nothing twice


class TestCountsUnderRecomputation:
    def check(self) -> None:
        """Loads, biases and the coefficients that adapt to loads are those of a step without recomputation."""
        options = {**SIGMOID.options, "adapt.load": 1.2}
        seen = []
        for recompute in (False, True):
            model = build(dataclasses.replace(SIGMOID, adapt=True, options=options), recompute)
            result = step(model)
            assert result.router is not None
            assert all(sum(layer) == pytest.approx(1.0, abs=1e-4) for layer in result.router.load)
            biases = torch.stack([router.bias_E for router in model.routers])  # pyright: ignore
            factors = model.coefficients.factors.tolist()
            seen.append({"load": result.router.load, "biases": biases.tolist(), "factors": factors})
        for name, value in seen[0].items():
            assert value == seen[1][name], name

    def test(self) -> None:
        self.check()

    def test_twin_counted_on_the_side(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each pass through a router adds to its counter, as a forward hook does, and the biases move by that."""
        real = sigmoid.Router.forward

        def counting(self, x_TD, sequences):
            routing = real(self, x_TD, sequences)
            assert routing.experts_TK is not None
            load_E = losses.load(routing.experts_TK, len(self.weight)) / 2  # of two micro-batches
            self.counted_E = getattr(self, "counted_E", 0) + load_E
            return routing

        def by_counts(self, loads, norm, biases=True):
            for router in self.routers:
                router.balance(router.counted_E)

        monkeypatch.setattr(sigmoid.Router, "forward", counting)
        monkeypatch.setattr(Transformer, "adapt", torch.no_grad()(by_counts))
        with pytest.raises(AssertionError, match="biases"):
            self.check()


# ---- 6. A loss does not vanish because a configuration omits it, and 1 means even for every k


class TestSequenceLossOfAConfigurationThatOmitsIt:
    def check(self) -> None:
        """DeepSeek-V3's config.json does not name the coefficient; what is built from it has the loss all the same."""
        from transformers import DeepseekV3Config

        about = DeepseekV3Config(
            vocab_size=CONFIG.vocab, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, n_routed_experts=8, num_experts_per_tok=2, n_group=2,
            topk_group=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
            first_k_dense_replace=1,
        )  # fmt: skip
        values = about.to_dict()
        assert not [name for name in values if "aux" in name]
        loss = build(ModelConfig(**deepseek_v3.from_config(values))).loss(*example()[:2])
        assert loss.auxiliary.item() == pytest.approx(1e-4 * loss.routers[0].sequence.item())

    def test(self) -> None:
        self.check()

    def test_twin_absent_means_zero(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = deepseek_v3.from_config

        def lenient(values):
            return real(values) | {"sequence_loss": values.get("aux_loss_alpha", 0.0)}

        monkeypatch.setattr(deepseek_v3, "from_config", lenient)
        with pytest.raises(AssertionError):
            self.check()


class TestEvenIsOneForEveryK:
    def check(self) -> None:
        for top_k in (1, 2, 4):
            experts_TK = (torch.arange(8)[:, None] + torch.arange(top_k)) % 4
            probs_TE = torch.full((8, 4), 0.25)
            assert losses.load_balance(probs_TE, experts_TK, 2).item() == pytest.approx(1.0)
            assert losses.load(experts_TK, 4).sum().item() == pytest.approx(1.0)

    def test(self) -> None:
        self.check()

    def test_twin_share_of_tokens_instead_of_assignments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = losses.load_balance

        def per_token(probs_TE, experts_TK, sequences):
            return real(probs_TE, experts_TK, sequences) * experts_TK.shape[1]

        monkeypatch.setattr(losses, "load_balance", per_token)
        with pytest.raises(AssertionError):
            self.check()
