"""The model as a whole: head, documents apart, precisions, coefficients, recomputation, counts, and its settings."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from gristmill.base.config import from_mapping, to_mapping
from gristmill.base.errors import UsageError
from gristmill.trainer.model import head, precision
from gristmill.trainer.model.config import ModelConfig, ModelSection, presets, resolve
from gristmill.trainer.model.counts import count
from gristmill.trainer.model.segments import from_starts
from gristmill.trainer.model.transformer import Transformer

# Odd on purpose: head_dim * heads is not the width, 5 experts, 3 heads per key-value head.
ODD = ModelConfig(
    vocab=97, width=48, layers=2, heads=6, kv_heads=2, head_dim=16, experts=5, top_k=2, expert_width=24,
    rope_theta=5000.0, tie_embeddings=False,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def build(config: ModelConfig = ODD, kind: str = "fp32", seed: int = 0, scale: float = 1.0) -> Transformer:
    model = Transformer(config, precision.build(kind))
    model.initialise(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            else:  # norms away from 1, so that a forgotten one shows
                parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(seed)) - 0.5)
    return model


def tokens(config: ModelConfig, rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, config.vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_chunked_cross_entropy_equals_the_plain_one(monkeypatch):
    monkeypatch.setattr(head, "CHUNK", 7)  # chunks that do not divide the rows
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(25, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(31, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 31, (25,), generator=generator)
    (F.cross_entropy(x @ weight.t(), targets) * 3.0).backward()
    plain = x.grad, weight.grad
    x.grad = weight.grad = None
    loss = head.cross_entropy(x, weight, targets)
    (loss * 3.0).backward()  # a factor, as accumulation uses
    assert math.isclose(loss.item(), F.cross_entropy(x @ weight.t(), targets).item(), rel_tol=1e-6)
    torch.testing.assert_close(x.grad, plain[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weight.grad, plain[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(head.token_nll(x, weight, targets).mean(), loss.detach().float())


def test_a_later_document_does_not_see_an_earlier_one():
    model = build(scale=5.0)
    ids = tokens(ODD, 2, 24)
    starts = torch.zeros(2, 24, dtype=torch.bool)
    starts[0, 10] = starts[1, 5] = starts[1, 17] = True
    segments = from_starts(starts)
    before = model.logits(ids, segments)
    changed = ids.clone()
    changed[0, :10] = (changed[0, :10] + 1) % ODD.vocab
    after = model.logits(changed, segments)
    assert torch.equal(before[0, 10:], after[0, 10:])
    assert not torch.allclose(before[0, :10], after[0, :10])
    alone = model.logits(ids[1:, 5:17])  # positions start again at 0, so a document scores as if alone
    torch.testing.assert_close(before[1:, 5:17], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model.logits(ids)[0, 10:], before[0, 10:], atol=1e-3)


def test_bf16_with_padded_groups_is_close_to_fp32():
    config = dataclasses.replace(ODD, experts=8, top_k=3)
    ids = tokens(config, 4, 65)
    results = {}
    for kind in ("fp32", "bf16"):
        model = build(config, kind)
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        (loss.nll + loss.auxiliary).backward()
        results[kind] = loss.nll.item(), model.get_parameter("blocks.0.ffn.experts.down_EDF").grad
    assert math.isclose(results["fp32"][0], results["bf16"][0], rel_tol=2e-3)
    gap = (results["fp32"][1] - results["bf16"][1]).norm() / results["fp32"][1].norm()
    assert gap < 0.1


def test_coefficients_scale_the_router_gradient():
    """Total gradient = cross-entropy's + coefficient * each loss's: none is dropped or counted twice."""
    ids = tokens(ODD, 2, 17)

    def router_grad(balance: float = 0, sequence: float = 0, z: float = 0) -> torch.Tensor:
        model = build(dataclasses.replace(ODD, balance_loss=balance, sequence_loss=sequence, z_loss=z))
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        (loss.nll + loss.auxiliary).backward()
        return model.get_parameter("blocks.1.ffn.router.weight").grad.double()  # pyright: ignore

    base = router_grad()
    parts = {name: router_grad(**{name: 1}) - base for name in ("balance", "sequence", "z")}
    for name, part in parts.items():
        assert part.norm() > 0
        torch.testing.assert_close(router_grad(**{name: 4}) - base, 4 * part, atol=1e-6, rtol=1e-3)
    together = router_grad(1, 2, 3) - base
    wanted = parts["balance"] + 2 * parts["sequence"] + 3 * parts["z"]
    torch.testing.assert_close(together, wanted, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("router", ["softmax", "sigmoid", "expert_choice"])
def test_recomputation_changes_neither_gradients_nor_what_routers_report(router):
    config = dataclasses.replace(ODD, router=router, capacity=0.8, bungee=2.0, dense_layers=1)
    ids = tokens(config, 2, 33)
    plain, again = build(config), build(config)
    again.recompute = True
    results = [model.loss(ids[:, :-1], ids[:, 1:]) for model in (plain, again)]
    for result in results:
        (result.nll + result.auxiliary).backward()
        assert len(result.routers) == 1
        for report in result.routers:
            assert report.load_E.sum().item() == pytest.approx(1.0)
            assert 0 <= report.entropy.item() <= 1 and 0 <= report.dropped.item() < 1
    for a, b in zip(results[0].routers, results[1].routers):
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    for a, b in zip(plain.parameters(), again.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_scales_multiply_embeddings_and_logits():
    """The small-model recipe's constants: doubled embeddings are what the scale doubles, logits what it divides."""
    config = dataclasses.replace(ODD, embedding_scale=2.0, logit_scale=0.125)
    plain, scaled = build(), build(config)
    with torch.no_grad():
        plain.embedding_VD.mul_(2.0)
    ids = tokens(ODD, 2, 9)
    torch.testing.assert_close(scaled.logits(ids), plain.logits(ids) * 0.125)
    nll = scaled.loss(ids[:, :-1], ids[:, 1:]).nll
    wanted = F.cross_entropy(scaled.logits(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(nll, wanted)


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("router", ["softmax", "sigmoid", "expert_choice"])
def test_shortest_sequences(router, length):
    config = dataclasses.replace(ODD, router=router, capacity=1.0)
    model = build(config)
    ids = tokens(config, 1, length)
    loss = model.loss(ids, ids)
    (loss.nll + loss.auxiliary).backward()
    assert math.isfinite(loss.nll.item())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(model.eval().logits(ids)).all()


def test_a_batch_with_nothing_to_learn_has_no_gradient_of_its_own():
    model = build()
    ids = tokens(ODD, 2, 9)
    loss = model.loss(ids, ids, learnt_BS=torch.zeros(2, 9, dtype=torch.bool))
    assert loss.nll.item() == 0.0
    loss.nll.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_counts_are_those_of_the_model():
    for tied in (True, False):
        config = dataclasses.replace(ODD, tie_embeddings=tied)
        assert count(config).total == sum(parameter.numel() for parameter in build(config).parameters())
    counts = count(ODD)
    assert counts.total - counts.active == (ODD.experts - ODD.top_k) * 3 * ODD.width * ODD.expert_width * ODD.layers
    assert sum(counts.parts.values()) == counts.total and counts.parts["routers"] == 2 * 5 * 48
    # Config A of the measurements: 94.7 MFLOP per token at a sequence of 512.
    small = count(resolve(ModelSection(preset="small", tie_embeddings=False), vocab=16_384))
    assert small.flops_per_token(512) == pytest.approx(94.7e6, rel=0.005)


def test_counts_name_every_part():
    config = dataclasses.replace(
        ODD, router="sigmoid", shared_experts=1, residual=True, bungee=2.0, dense_layers=1
    )  # fmt: skip
    parts = count(config).parts
    assert set(parts) == {
        "embeddings", "head", "attention", "norms", "routers", "experts", "shared experts", "residual networks",
        "dense networks",
    }  # fmt: skip
    one = 3 * 48 * 24
    assert (parts["experts"], parts["shared experts"], parts["dense networks"]) == (5 * one, one, 2 * one)
    assert parts["residual networks"] == 2 * one + 2 * 48


def test_presets_and_overrides():
    assert {"tiny", "small"} <= set(presets())
    tiny = resolve(ModelSection(), vocab=4096)
    assert 2e6 < count(tiny).total < 4e6 and tiny.vocab == 4096
    assert resolve(ModelSection(layers=7, vocab=5000), vocab=4096).layers == 7
    names = {field.name for field in dataclasses.fields(ModelSection)} - {"preset"}
    assert names == {field.name for field in dataclasses.fields(ModelConfig)}
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        resolve(ModelSection(preset="tinny"), vocab=4096)
    with pytest.raises(UsageError, match="top_k"):
        resolve(ModelSection(top_k=9), vocab=4096)


def test_a_configuration_survives_json():
    config = dataclasses.replace(
        ODD, attention=("swa", "gqa"), router="sigmoid", pyramid=(4, 6),
        options={"swa.window": 8, "sigmoid.rate": 0.5, "sigmoid.normalise": False},
    )  # fmt: skip
    assert from_mapping(ModelConfig, to_mapping(config), "run.json") == config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attention": ("none",)}, "model.attention: no kind 'none'"),
        ({"router": "hash"}, "model.router: no kind 'hash'"),
        ({"options": {"sigmoid.rate": 0.1}}, "model.options: 'sigmoid.rate' belongs to nothing in this model"),
        ({"options": {"window": 4}}, "model.options: 'window' belongs to nothing"),
        ({"options": {"softmax.sclae": 2.0}}, "softmax: unknown key 'sclae'; did you mean 'scale'"),
        ({"options": {"softmax.scale": "much"}}, "softmax: scale: .*valid number"),
        ({"attention": ("gqa", "gqa", "none")}, "model.attention: no kind 'none'"),  # of no layer
        ({"router": "hash", "dense_layers": 2}, "model.router: no kind 'hash'"),
    ],
)
def test_unknown_names_are_refused(changes, told):
    with pytest.raises(UsageError, match=told):
        build(dataclasses.replace(ODD, **changes))


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rope_theta": 0.0}, "model.rope_theta: 0.0 is not from 2"),
        ({"rope_theta": NAN}, "model.rope_theta"),
        ({"norm_eps": -1.0}, "model.norm_eps"),
        ({"norm_eps": NAN}, "model.norm_eps"),
        ({"embedding_scale": NAN}, "model.embedding_scale"),
        ({"logit_scale": 0.0}, "model.logit_scale"),
        ({"moe_every": 100}, "model.moe_every \\(100\\): none of the 2 layers"),
        ({"bungee": 2.0, "output_norm": True}, "model.bungee: model.output_norm right after it"),
        ({"options": {"softmax.scale": NAN}}, "scale: nan is not from 0"),
        ({"attention": ("mla",), "options": {"mla.yarn_beta_fast": 0.0}}, "yarn_beta_fast: 0.0 is not from 1.0"),
        ({"attention": ("mla",), "options": {"mla.yarn_mscale": NAN}}, "yarn_mscale: nan"),
    ],
)
def test_numbers_that_give_no_model_are_refused(changes, told):
    with pytest.raises(UsageError, match=told):
        build(dataclasses.replace(ODD, **changes))
