"""QK-clip: heads whose scores exceed the bound come down to it, all others stay to the bit."""

import dataclasses

import pytest
import torch

from gristmill.base.errors import UsageError
from gristmill.trainer.model import precision
from gristmill.trainer.model.attention import _scores
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.segments import Context, Segments, from_starts, one_per_row
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.config import GroupConfig, OptimizerConfig

SHAPE = ModelConfig(
    vocab=40, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4, top_k=2, expert_width=16,
    options={"gqa.qk_norm": False},
)  # fmt: skip
MLA = {"mla.kv_lora": 16, "mla.nope_dim": 8, "mla.rope_dim": 4, "mla.value_dim": 8}
MODELS = {
    "own keys": dataclasses.replace(SHAPE, kv_heads=4),
    "shared keys": SHAPE,
    "swa": dataclasses.replace(SHAPE, attention=("swa",), options={"swa.qk_norm": False, "swa.window": 5}),
    "mla": dataclasses.replace(SHAPE, attention=("mla",), options=MLA),
    "mla with narrow queries": dataclasses.replace(SHAPE, attention=("mla",), options=MLA | {"mla.q_lora": 8}),
}
STILL = OptimizerConfig(learning_rate=1e-30, weight_decay=0.0, qk_clip=6.0)  # a step that only clips


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def build(config: ModelConfig) -> Transformer:
    model = Transformer(config, precision.build("fp32"))
    model.initialise(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attention.query" in name and parameter.ndim == 2:
                parameter[: len(parameter) // 2] *= 8  # heads of the first half have large scores
    return model


def batch() -> tuple[torch.Tensor, Segments]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 40, (3, 12), generator=generator), from_starts(torch.rand(3, 12, generator=generator) < 0.2)


def largest(model: Transformer, ids_BS: torch.Tensor, segments: Segments) -> torch.Tensor:
    """[layers, H]; of the batch alone."""
    for block in model.blocks:
        block.attention.watch_scores()  # pyright: ignore
    with torch.no_grad():
        model(ids_BS, segments)
    return torch.stack([block.attention.largest_H for block in model.blocks])  # pyright: ignore


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_scores_beyond_the_bound_come_down_to_it(config):
    model = build(dataclasses.replace(config, layers=1))  # a layer's scores depend on those before it
    own = optimizer.build(model, STILL)
    before = {name: value.clone() for name, value in model.named_parameters()}
    first = largest(model, *batch())[0]
    assert (first > 6).any() and (first < 6).any()
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    own.begin(1.0)
    own.step()
    after = largest(model, *batch())[0]
    torch.testing.assert_close(after, first.clamp(max=6.0), rtol=1e-4, atol=1e-5)
    for name, value in model.named_parameters():
        touched = name.startswith("blocks.0.attention.") and not torch.equal(value, before[name])
        assert torch.equal(value, before[name]) or touched, name
        if touched:
            kept = (value == before[name]).unflatten(0, (4, -1)).flatten(1).all(dim=1) if value.ndim == 2 else ()
            assert len(kept) and bool(kept[first <= 6].all()), name


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("whole_rows", [True, False])
def test_the_largest_score_is_of_what_attention_sees(window, whole_rows, monkeypatch):
    monkeypatch.setattr(_scores, "ROWS", 5)  # several parts, the last one shorter
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(3, heads, 12, 8, generator=generator) for heads in (4, 2, 2))
    ids_BS, segments = batch()
    context = Context(one_per_row(ids_BS) if whole_rows else segments, torch.float32)
    found_H = torch.zeros(4)
    _scores.attend(q, k, v, context, window, largest_H=found_H)
    scores_BHST = q @ k.repeat_interleave(2, dim=1).mT * 8**-0.5
    seen_BHST = context.visible(12, window)[:, None].expand_as(scores_BHST)
    torch.testing.assert_close(found_H, scores_BHST.where(seen_BHST, -torch.inf).amax(dim=(0, 2, 3)))


def test_passes_of_a_step_are_seen_together_and_forgotten_after_it():
    model, (ids_BS, _) = build(SHAPE), batch()
    own = optimizer.build(model, STILL)
    parts = (ids_BS[:1], ids_BS[1:])
    for rows in parts:
        model(rows)
    seen = torch.stack([block.attention.largest_H for block in model.blocks])  # pyright: ignore
    own.zero_grad()
    with torch.no_grad():
        model.eval()(ids_BS)  # validation is not training
    assert all(not block.attention.largest_H.any() for block in model.blocks)  # pyright: ignore
    alone = [largest(model.train(), rows, one_per_row(rows)) for rows in parts]
    torch.testing.assert_close(seen, torch.maximum(*alone))


def test_recomputed_activations_are_seen_alike():
    ids_BS, segments = batch()
    seen = []
    for recompute in (False, True):
        model = build(SHAPE)
        model.recompute = recompute
        optimizer.build(model, STILL)
        model.loss(ids_BS, ids_BS, segments).nll.backward()
        seen.append(torch.stack([block.attention.largest_H for block in model.blocks]))  # pyright: ignore
    assert torch.equal(*seen) and seen[0].all()


@pytest.mark.parametrize("changes", [{}, {"qk_clip": 6.0, "dense": GroupConfig(learning_rate=0.0)}])
def test_without_a_bound_or_with_frozen_attention_nothing_is_watched(changes):
    model = build(SHAPE)
    optimizer.build(model, OptimizerConfig(**changes))
    model(batch()[0])
    assert all(block.attention.largest_H is None for block in model.blocks)  # pyright: ignore


@pytest.mark.parametrize("changes", [{"options": {}}, {"attention": ("kda",), "options": {}}])
def test_a_model_that_has_nothing_to_clip_is_refused(changes):
    with pytest.raises(UsageError, match=r"optimizer\.qk_clip: no layer's attention can be clipped"):
        optimizer.build(build(dataclasses.replace(SHAPE, **changes)), STILL)


def test_layers_that_cannot_be_clipped_are_left_alone():
    model = build(dataclasses.replace(SHAPE, attention=("kda", "gqa")))
    own = optimizer.build(model, STILL)
    model(batch()[0])
    own.step()
    own.zero_grad()
