"""muP: with base_width, what a few steps do to activations and logits does not grow with the width."""

import dataclasses

import pytest
import torch

from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.config import GroupConfig, OptimizerConfig

NARROW, STEPS = 64, 6
STILL = GroupConfig(learning_rate=0.0)  # tables, whose rates do not go with the width, would hide the others' moves
RATES = {
    "adamw": OptimizerConfig(),
    "muon": OptimizerConfig(kind="muon", learning_rate=0.03, embeddings=STILL),
    "adafactor": OptimizerConfig(kind="adafactor", learning_rate=0.1, embeddings=STILL),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def build(width: int, base_width: int, seed: int = 0) -> Transformer:
    """All widths grow together: heads of 16, one expert as wide as the stream."""
    config = ModelConfig(
        vocab=64, width=width, layers=2, heads=width // 16, kv_heads=width // 16, head_dim=16, experts=4, top_k=2,
        expert_width=width, base_width=base_width,
    )  # fmt: skip
    model = Transformer(config, precision.build("fp32"))
    model.initialise(seed)
    return model


def moved(width: int, base_width: int, kind: str) -> dict[str, float]:
    """Root mean square of the change of the last block's output and of the logits, over a few steps."""
    model = build(width, base_width)
    ids = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(0))
    own = optimizer.build(model, RATES[kind])
    kept: dict[str, torch.Tensor] = {}
    model.blocks[-1].register_forward_hook(lambda _module, _given, out: kept.update(stream=out[0].detach()))

    def look() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            logits = model.logits(ids[:, :-1])
        return {"stream": kept["stream"], "logits": logits}

    before = look()
    for _ in range(STEPS):
        own.begin(1.0)
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        (loss.nll + loss.auxiliary).backward()
        own.step()
        own.zero_grad()
    after = look()
    return {name: float((after[name] - before[name]).square().mean().sqrt()) for name in before}


@pytest.mark.parametrize(("kind", "width", "least"), [("adamw", 512, 2.0), ("muon", 256, 1.4), ("adafactor", 256, 1.4)])
def test_a_step_moves_activations_as_much_at_every_width(kind, width, least):
    """The coordinate check of arXiv 2203.03466, appendix D.1: without the rule, the wide model moves more."""
    narrow, wide = moved(NARROW, NARROW, kind), moved(width, NARROW, kind)
    unscaled = moved(width, 0, kind)
    for name in narrow:
        assert 0.4 < wide[name] / narrow[name] < 1.6
        assert unscaled[name] > least * wide[name]


def scales_of(model: Transformer) -> dict[int, float]:
    """By id of the parameter."""
    (adamw,) = optimizer.build(model, OptimizerConfig(learning_rate=1.0)).parts
    return {id(parameter): group["peak"] for group in adamw.param_groups for parameter in group["params"]}


def test_rates_of_matrices_and_the_logits_scale_and_nothing_else_does():
    model = build(256, 64)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[key]: scale for key, scale in scales_of(model).items()}
    assert len(scales) == len(names)
    for name, scale in scales.items():
        assert scale == (1.0 if "norm" in name or name == "embedding_VD" else 0.25), name
    fixed = Transformer(dataclasses.replace(model.config, attention=("kda",)), model.precision)
    rates = scales_of(fixed)
    for name, parameter in fixed.named_parameters():  # short convolutions have as many inputs at every width
        if name.endswith("convolution_FK"):
            assert rates[id(parameter)] == 1.0
    base = build(256, 0)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(model.logits(ids), base.logits(ids) / 4)
    assert set(scales_of(build(64, 64)).values()) == {1.0}
