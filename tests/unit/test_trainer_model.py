"""The model: parity with Hugging Face, losses against their plain forms, experts against a loop, documents apart."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from gristmill.base.errors import DataError, UsageError
from gristmill.trainer.model import head, huggingface, precision
from gristmill.trainer.model.attention.segments import from_starts
from gristmill.trainer.model.config import ModelConfig, ModelSection, presets, resolve
from gristmill.trainer.model.moe import losses
from gristmill.trainer.model.moe.experts import Experts
from gristmill.trainer.model.moe.router import SoftmaxTopK
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


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_huggingface_in_both_directions(tmp_path, tied):
    from transformers import AutoModelForCausalLM

    config = dataclasses.replace(ODD, tie_embeddings=tied)
    model = build(config, scale=5.0)
    huggingface.export(config, model.state_dict(), tmp_path / "a", sequence=64, eos=0, tokenizer=None)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    ids = tokens(config, 3, 33)
    with torch.no_grad():
        ours, expected = model.logits(ids), theirs(ids).logits
    assert expected.std() > 0.5  # logits that differ from one another: equality means something
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)

    theirs.save_pretrained(tmp_path / "b")
    read, weights = huggingface.load(tmp_path / "b")
    assert dataclasses.replace(read, aux_loss=config.aux_loss, z_loss=config.z_loss) == config
    state = model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)


def test_import_refuses_another_shape(tmp_path):
    model = build()
    huggingface.export(ODD, model.state_dict(), tmp_path, sequence=64, eos=0, tokenizer=None)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"attention_bias": false', '"attention_bias": true'))
    with pytest.raises(DataError, match="attention_bias"):
        huggingface.load(tmp_path)


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


def naive_experts(experts: Experts, x, chosen, weights):
    out = torch.zeros_like(x)
    for t in range(len(x)):
        for k, e in enumerate(chosen[t].tolist()):
            gate, up = (experts.gate_up_EFD[e] @ x[t]).chunk(2)
            out[t] = out[t] + weights[t, k] * (experts.down_EDF[e] @ (F.silu(gate) * up))
    return out


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_experts_equal_a_loop_even_when_one_has_no_token(kind):
    experts = Experts(ODD, precision.build(kind))
    generator = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    T = 37
    x = torch.randn(T, ODD.width, generator=generator).requires_grad_()
    chosen = torch.tensor([[0, 3], [3, 4], [4, 0]])[torch.randint(0, 3, (T,), generator=generator)]  # never 1 or 2
    weights = torch.rand(T, 2, generator=generator).requires_grad_()
    inputs = [x, weights, *experts.parameters()]
    expected = naive_experts(experts, x, chosen, weights)
    direction = torch.randn(expected.shape, generator=generator)
    expected_grads = torch.autograd.grad((expected * direction).sum(), inputs)
    out = experts(x.to(experts.precision.dtype), chosen, weights)
    grads = torch.autograd.grad((out.float() * direction).sum(), inputs)
    tolerance = 1e-4 if kind == "fp32" else 0.02
    for got, wanted in zip((out.float(), *grads), (expected, *expected_grads)):
        assert torch.isfinite(got).all()
        assert (got - wanted).norm() <= tolerance * wanted.norm()
    assert grads[2][1].abs().max() == 0  # an expert without tokens has a zero gradient, not garbage


def test_bf16_with_padded_groups_is_close_to_fp32():
    config = dataclasses.replace(ODD, experts=8, top_k=3)
    reference, rounded = build(config, "fp32"), build(config, "bf16")
    ids = tokens(config, 4, 65)
    results = {}
    for name, model in (("fp32", reference), ("bf16", rounded)):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        (loss.nll + loss.auxiliary).backward()
        results[name] = loss.nll.item(), model.blocks[0].moe.experts.down_EDF.grad  # pyright: ignore
    assert math.isclose(results["fp32"][0], results["bf16"][0], rel_tol=2e-3)
    gap = (results["fp32"][1] - results["bf16"][1]).norm() / results["fp32"][1].norm()
    assert gap < 0.1


def test_load_balance_is_one_when_even_and_its_gradient_reaches_the_router():
    even = torch.full((8, 4), 0.25)
    chosen = torch.tensor([[0, 1], [2, 3]]).repeat(4, 1)
    assert losses.load_balance(even, chosen, sequences=2).item() == pytest.approx(1.0)

    router = SoftmaxTopK(ODD)
    torch.nn.init.normal_(router.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(12, ODD.width, generator=torch.Generator().manual_seed(1))
    routing = router(x)
    losses.load_balance(routing.probs_TE, routing.experts_TK, sequences=3).backward()
    # by hand: E * mean over sequences of sum_e share_e * mean_t p_te, share held constant
    wanted = torch.zeros_like(router.weight)
    probs = routing.probs_TE.detach()
    for b in range(3):
        rows = slice(4 * b, 4 * b + 4)
        share = torch.bincount(routing.experts_TK[rows].flatten(), minlength=5) / 8
        for p, token in zip(probs[rows], x[rows]):
            d_logits = p * (share - (share * p).sum())
            wanted += torch.outer(d_logits, token) * 5 / 4 / 3
    torch.testing.assert_close(router.weight.grad, wanted, atol=1e-6, rtol=1e-4)


def test_coefficients_scale_the_router_gradient():
    """Total gradient = cross-entropy's + coefficient * each loss's: none is dropped or counted twice."""
    ids = tokens(ODD, 2, 17)

    def router_grad(aux: float, z: float) -> torch.Tensor:
        model = build(dataclasses.replace(ODD, aux_loss=aux, z_loss=z))
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        (loss.nll + loss.auxiliary).backward()
        return model.blocks[1].moe.router.weight.grad.double()  # pyright: ignore

    base, one, four = router_grad(0, 0), router_grad(1, 0), router_grad(4, 0)
    assert (one - base).norm() > 0
    torch.testing.assert_close(four - base, 4 * (one - base), atol=1e-6, rtol=1e-3)
    z = router_grad(0, 1) - base
    torch.testing.assert_close(router_grad(4, 1) - base, (four - base) + z, atol=1e-6, rtol=1e-3)


def test_recomputation_changes_neither_gradients_nor_the_reported_load():
    ids = tokens(ODD, 2, 33)
    plain, again = build(), build()
    again.recompute = True
    results = [model.loss(ids[:, :-1], ids[:, 1:]) for model in (plain, again)]
    for result in results:
        (result.nll + result.auxiliary).backward()
        for report in result.routers:
            assert report.load_E.sum().item() == pytest.approx(1.0)
            assert 0 <= report.entropy.item() <= 1
    for a, b in zip(results[0].routers, results[1].routers):
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    for a, b in zip(plain.parameters(), again.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_counts_are_those_of_the_model():
    for tied in (True, False):
        config = dataclasses.replace(ODD, tie_embeddings=tied)
        assert config.parameters == sum(parameter.numel() for parameter in build(config).parameters())
    idle = (ODD.experts - ODD.top_k) * 3 * ODD.width * ODD.expert_width * ODD.layers
    assert ODD.active_parameters == ODD.parameters - idle


def test_presets_and_overrides():
    assert {"tiny", "small"} <= set(presets())
    tiny = resolve(ModelSection(), vocab=4096)
    assert 2e6 < tiny.parameters < 4e6 and tiny.vocab == 4096
    assert resolve(ModelSection(layers=7, vocab=5000), vocab=4096).layers == 7
    names = {field.name for field in dataclasses.fields(ModelSection)} - {"preset"}
    assert names == {field.name for field in dataclasses.fields(ModelConfig)}
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        resolve(ModelSection(preset="tinny"), vocab=4096)
    with pytest.raises(UsageError, match="top_k"):
        resolve(ModelSection(top_k=9), vocab=4096)
    with pytest.raises(UsageError, match="attention"):
        build(dataclasses.replace(ODD, attention="none"))
