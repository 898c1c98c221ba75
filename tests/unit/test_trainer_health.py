"""What a step tells of itself: against the same numbers worked out by hand from the model."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.support.plain_moe import CONFIG

from gristmill.base.errors import UsageError
from gristmill.trainer.data import Example
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.precision import build as precision
from gristmill.trainer.model.segments import from_starts
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.step import StepResult, train_step
from gristmill.trainer.watch import hardware
from gristmill.trainer.watch.config import HealthConfig, SamplesConfig
from gristmill.trainer.watch.hardware import Peak
from gristmill.trainer.watch.health import LOGIT_BINS, logit_shares
from gristmill.trainer.watch.meter import Meter


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def example(rows: int = 4, length: int = 16) -> Example:
    ids = torch.randint(0, CONFIG.vocab, (rows, length + 1), generator=torch.Generator().manual_seed(3))
    return Example(ids[:, :-1], ids[:, 1:], torch.zeros(rows, length, dtype=torch.bool))


def built(config: ModelConfig = CONFIG, recompute: bool = False) -> tuple[Transformer, optimizer.Optimizer]:
    model = Transformer(config, precision("fp32"), recompute)
    model.initialise(0)
    return model, optimizer.build(model, OptimizerConfig(learning_rate=1e-3, clip=1.0))


def weights(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def state_of(own: optimizer.Optimizer) -> dict[str, torch.Tensor]:
    return {name: piece.tensor.clone() for name, piece in own.state().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def step(model: Transformer, own: optimizer.Optimizer, micro: int = 2, **options: object) -> StepResult:
    return train_step(model, own, example(), micro, 1.0, **options)  # pyright: ignore[reportArgumentType]


def test_the_routers_health_is_that_of_the_whole_batch():
    model, own = built()
    it = example()
    with torch.no_grad():
        reports = model.loss(it.inputs_BS, it.targets_BS, from_starts(it.starts_BS)).routers
    health = step(model, own).router
    assert health is not None
    for layer, report in enumerate(reports):
        load = report.load_E.tolist()
        assert health.load[layer] == pytest.approx(load, abs=1e-5)
        assert health.busiest[layer] == pytest.approx(max(load) * len(load), abs=1e-4)
        assert health.dead[layer] == load.count(0.0)
        assert health.entropy[layer] == pytest.approx(float(report.entropy), abs=1e-5)
        assert health.z_loss[layer] == pytest.approx(float(report.z), rel=1e-5)
        assert health.sequence_loss[layer] == pytest.approx(float(report.sequence), rel=1e-5)
    assert len(health.load) == len(reports) == len(health.dropped) and health.bias_range == []
    assert health.logits is None


def test_experts_that_nothing_reaches_are_counted():
    model, own = built()
    with torch.no_grad():
        for router in model.routers:
            router.get_parameter("weight")[0] = 0.0  # a logit of 0, below that of the better half
            router.get_parameter("weight")[1:] *= 100.0
    health = step(model, own).router
    assert health is not None
    assert health.dead == [row.count(0.0) for row in health.load]


def test_norms_by_group_make_up_the_whole_norm_and_are_of_the_gradient_before_clipping():
    model, own = built()
    plain, _ = built()
    it = example()
    plain.loss(it.inputs_BS, it.targets_BS, from_starts(it.starts_BS)).nll.backward()
    result = step(model, own, micro=4)
    assert set(result.norms) == set(own.groups)
    assert math.sqrt(sum(norm**2 for norm in result.norms.values())) == pytest.approx(result.grad_norm, rel=1e-5)
    table = plain.get_parameter("embedding_VD").grad
    assert table is not None and own.groups["embeddings"][0][0] == "embedding_VD"


def test_an_observed_step_tells_how_far_the_weights_moved_and_moves_them_just_as_far():
    (observed, own), (blind, other) = built(), built()
    before = weights(observed)
    result = step(observed, own, observe=True)
    assert step(blind, other).updates is None
    assert same(weights(observed), weights(blind))
    assert result.updates is not None and set(result.updates) == set(own.groups)
    for group, named in own.groups.items():
        old = torch.cat([before[name].flatten() for name, _ in named]).double()
        new = torch.cat([parameter.detach().flatten() for _, parameter in named]).double()
        expected = float((new - old).norm() / old.norm())
        assert result.updates[group] == pytest.approx(expected, rel=1e-4), group


@pytest.mark.parametrize("recompute", [False, True])
def test_logits_are_counted_once_each_whatever_the_micro_batches(recompute):
    seen = []
    for micro in (1, 4):
        model, own = built(recompute=recompute)
        health = step(model, own, micro, observe=True).router
        assert health is not None and health.logits is not None
        assert (health.logits["low"], health.logits["high"]) == (-8.0, 8.0)
        seen.append(health.logits["share"])
    for one, other in zip(*seen):
        assert len(one) == LOGIT_BINS and sum(one) == pytest.approx(1.0, abs=1e-3)
        assert one == pytest.approx(other, abs=1e-4)


def test_logits_beyond_the_bins_are_in_the_outermost():
    logits = torch.tensor([[-1e30, -8.1, -7.9, 0.1, 7.9, 9.0, float("inf"), float("nan")]])
    share = logit_shares(logits)
    assert (share[0], share[-1]) == (3 / 8, 3 / 8)  # -7.9 and 7.9 are in the outermost bins themselves
    assert share[LOGIT_BINS // 2] == 2 / 8  # 0.1, and what is no number


@pytest.mark.parametrize("observe", [False, True])
def test_a_step_that_is_not_accepted_leaves_everything_as_it_was(observe):
    model, own = built()
    before, state = weights(model), state_of(own)
    asked: list[tuple[float, float]] = []

    def refuse(nll: float, norm: float) -> bool:
        asked.append((nll, norm))
        return False

    result = step(model, own, accept=refuse, observe=observe)
    assert asked == [(result.nll, result.grad_norm)] and not result.moved and result.updates is None
    assert same(before, weights(model)) and same(state, state_of(own))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert step(model, own).moved


def test_a_step_that_is_not_finite_is_not_even_put_to_the_question():
    model, own = built()
    with torch.no_grad():
        model.norm.weight.fill_(float("inf"))
    before = weights(model)
    result = step(model, own, accept=lambda *_: pytest.fail("asked"))
    assert not result.moved and not math.isfinite(result.nll) and same(before, weights(model))


def test_a_step_without_experts_has_norms_and_no_router():
    model, own = built(dataclasses.replace(CONFIG, dense_layers=CONFIG.layers))
    result = step(model, own, observe=True)
    assert result.router is None and "router" not in result.norms and result.updates is not None


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4), ("h100", 989.4), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4), ("NVIDIA L4", 121), ("NVIDIA L40S", 362.05),
    ],
)  # fmt: skip
def test_gpus_are_known_by_what_drivers_call_them(name, tflops):
    peak = hardware.of_gpu(name)
    assert peak is not None and peak.flops == pytest.approx(tflops * 1e12) and peak.source


@pytest.mark.parametrize(
    "name",
    ["", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 D", "GeForce RTX 4090 Laptop GPU", "H1000"],
)
def test_a_gpu_that_is_not_known_has_no_peak(name):
    assert hardware.of_gpu(name) is None


def test_every_listed_gpu_is_found_by_its_listed_name():
    assert [peak.name for name in hardware.gpu_names() if (peak := hardware.of_gpu(name))] == hardware.gpu_names()


def test_a_meter_tells_the_share_of_the_peak_and_the_money():
    cpu = torch.device("cpu")
    meter = Meter(cpu, Peak("x", 1e12, "made up"), flops_per_token=1e8, price_per_hour=3.6)
    told = meter.read(tokens=1000, seconds=0.5, seconds_so_far=100.0)
    assert told["tokens_per_second"] == 2000.0 and told["mfu"] == 0.2 and told["cost"] == pytest.approx(0.1)
    assert told["memory_gb"] is not None and told["memory_gb"] > 0.01
    blind = Meter(cpu, None, 1e8, 0.0).read(1000, 0.5, 100.0)
    assert blind["mfu"] is None and blind["cost"] is None


def test_a_cpu_is_measured_once_and_without_drawing():
    before = torch.get_rng_state()
    peak = hardware.of_device(torch.device("cpu"), torch.float32)
    assert peak is not None and peak.flops > 1e8 and peak is hardware.of_device(torch.device("cpu"), torch.float32)
    assert torch.equal(before, torch.get_rng_state())


def test_impossible_settings_are_refused():
    for make in (
        lambda: HealthConfig(every=-1),
        lambda: SamplesConfig(every=-1),
        lambda: SamplesConfig(top_k=0),
        lambda: SamplesConfig(temperature=-0.1),
    ):
        with pytest.raises(UsageError):
            make()
