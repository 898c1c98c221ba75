"""Every kind of attention: what all of them owe (no looking ahead, documents apart, a memory that changes nothing), and
what each refuses."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tests.support.attention_layers import KINDS, config, in_pieces, inputs, layer, whole

from gristmill.base.errors import UsageError
from gristmill.trainer.model import attention, kinds, precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.segments import Context, one_per_row
from gristmill.trainer.model.transformer import Transformer

S = 45  # several windows, blocks and chunks, and a multiple of none


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_kinds_are_the_files() -> None:
    assert {"gqa", "swa", "mla", "nsa", "kda"} <= set(KINDS)
    assert not any(name.startswith("_") for name in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_no_position_looks_ahead(kind: str) -> None:
    made, x_BSD = layer(kind, torch.float64), inputs(2, S, torch.float64)
    before = whole(made, x_BSD)
    for place in (1, 7, 8, 20, S - 1):
        changed_BSD = x_BSD.clone()
        changed_BSD[:, place:] += 1.0
        after = whole(made, changed_BSD)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-13)
        assert (after[:, place] - before[:, place]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_is_read_as_if_it_stood_alone(kind: str) -> None:
    made, x_BSD = layer(kind, torch.float64), inputs(3, S, torch.float64)
    rows = [(3, 4, 17, 40), (), (1, 16, S - 1)]  # documents of one position among them, and a row that is one document
    packed = whole(made, x_BSD, rows)
    for row, places in enumerate(rows):
        edges = [0, *places, S]
        for start, stop in pairwise(edges):
            alone = whole(made, x_BSD[row : row + 1, start:stop])
            torch.testing.assert_close(packed[row : row + 1, start:stop], alone, rtol=1e-6, atol=1e-6)
    together = whole(made, x_BSD)
    assert (together[0, 40:] - packed[0, 40:]).abs().max() > 1e-3  # which else would not have been tested


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_stay_inside_a_document(kind: str) -> None:
    made, x_BSD = layer(kind, torch.float64), inputs(1, S, torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(whole(made, x_BSD, [(11, 20)])[:, 11:20].square().sum(), x_BSD)
    inside = grad[:, 11:20].abs().amax(dim=-1).min()
    assert inside > 0  # and outside nothing, but for sums of decays, which cancel to rounding
    assert max(grad[:, :11].abs().max(), grad[:, 20:].abs().max()) < 1e-12 * inside


@pytest.mark.parametrize(
    "lengths", [[1] * S, [S], [10, 1, 1, 9, S - 21], [2, S - 2]], ids=["each", "all", "pieces", "prompt"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_memory_changes_nothing(kind: str, lengths: list[int]) -> None:
    made, x_BSD = layer(kind, torch.float64), inputs(2, S, torch.float64)
    torch.testing.assert_close(in_pieces(made, x_BSD, lengths), whole(made, x_BSD), rtol=1e-6, atol=1e-6)


def test_memory_holds_what_the_paper_says_and_no_more() -> None:
    held: dict[str, dict[str, tuple[int, ...]]] = {}
    for kind in KINDS:
        made, memory = layer(kind), {}
        made(inputs(1, S), Context(one_per_row(torch.zeros(1, S)), torch.float32), memory)
        held[kind] = {name: tuple(x.shape) for name, x in memory.items()}
    assert held["gqa"] == {"key": (1, 2, S, 8), "value": (1, 2, S, 8)}
    assert held["swa"] == {"key": (1, 2, 5, 8), "value": (1, 2, 5, 8)}
    assert held["mla"] == {"latent": (1, 1, S, 24), "rotary_key": (1, 1, S, 4)}
    assert held["nsa"]["summary_key"] == (1, 2, (S - 4) // 2 + 1, 8)
    assert held["nsa"]["plain_key"] == (1, 2, 3, 8) and held["nsa"]["near_key"] == (1, 2, 5, 8)
    assert held["kda"] == {"unmixed": (1, 2, 3 * 48), "state": (1, 6, 8, 8)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_of_one(kind: str) -> None:
    made, x_BSD = layer(kind), inputs(2, 1).requires_grad_()
    y_BSD = whole(made, x_BSD)
    assert y_BSD.shape == x_BSD.shape and torch.isfinite(y_BSD).all()
    torch.testing.assert_close(whole(made, x_BSD, [(), ()]), y_BSD)
    y_BSD.sum().backward()
    assert x_BSD.grad is not None and torch.isfinite(x_BSD.grad).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_close_to_fp32(kind: str) -> None:
    x_BSD = inputs(2, S)
    exact, rounded = whole(layer(kind), x_BSD), whole(layer(kind, torch.bfloat16), x_BSD.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(kind: str) -> None:
    made, x_BSD = layer(kind, torch.float64), inputs(1, 11, torch.float64).requires_grad_()
    parameters = list(made.parameters())
    direction = torch.randn(1, 11, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def outcome(*_: torch.Tensor) -> torch.Tensor:
        return (whole(made, x_BSD, [(6,)]) * direction).sum()

    assert torch.autograd.gradcheck(outcome, (x_BSD, *parameters), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: str) -> None:
    made = layer(kind)
    whole(made, inputs(2, S)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_as_one_graph(kind: str) -> None:
    made, x_BSD = layer(kind), inputs(2, S)
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    for starts in (None, [(7,), (20, 41)], [(30, 31), ()]):
        torch.testing.assert_close(whole(compiled, x_BSD, starts), whole(made, x_BSD, starts))


def test_decays_begin_as_the_paper_has_them() -> None:
    made = layer("kda", heads=60, kv_heads=60)
    step = torch.nn.functional.softplus(made.decay_bias.detach())
    assert 1e-3 <= step.min() < 2e-3 and 0.05 < step.max() <= 0.1 + 1e-6
    assert 0.008 < step.median() < 0.0125  # even on a logarithmic scale
    rate_H = made.log_rate_H.detach().exp()
    assert 1.0 <= rate_H.min() < 3 and 14 < rate_H.max() <= 16.0


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_counted(kind: str) -> None:
    flops = layer(kind).flops
    assert 0 < flops(1) <= flops(64) <= flops(4096)


def test_flops_of_scores() -> None:
    def flops(kind: str, sequence: int) -> float:
        return layer(kind).flops(sequence)

    assert flops("gqa", 100) == 4 * 48 * 50  # half of the positions, scores and values, 2 FLOPs for each weight
    assert flops("swa", 10**6) == pytest.approx(4 * 48 * 5, rel=1e-4)  # a window's, however long the sequence
    assert flops("mla", 100) == 2 * 6 * (6 + 4 + 10) * 50
    assert flops("kda", 10**6) == flops("kda", 64)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_built_without_memory(kind: str) -> None:
    with torch.device("meta"):
        made = attention.build(config(kind), 0, precision.build("fp32"))
    assert all(p.is_meta for p in made.parameters())
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in layer(kind).parameters())


def test_kinds_alternate_over_the_layers_of_one_model() -> None:
    pattern = config(*KINDS, layers=len(KINDS) + 1)
    model = Transformer(pattern, precision.build("fp32"))
    model.initialise(0)
    modules = [type(block.attention).__module__.rpartition(".")[2] for block in model.blocks]
    assert modules == [*KINDS, KINDS[0]]
    ids_BS = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(0))
    logits_BSV = model.logits(ids_BS)
    memory = model.new_memory()
    parts = [model.logits(piece, memory=memory, past=past) for past, piece in ((0, ids_BS[:, :5]), (5, ids_BS[:, 5:]))]
    torch.testing.assert_close(torch.cat(parts, dim=1), logits_BSV, rtol=1e-4, atol=1e-5)
    loss = model.loss(ids_BS[:, :-1], ids_BS[:, 1:])
    (loss.nll + loss.auxiliary).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        ("swa", {"swa.window": 0}, "swa: window: 0 is not from 1"),
        ("swa", {"swa.windw": 4}, "unknown key 'windw'; did you mean 'window'"),
        ("mla", {"mla.rope_dim": 5}, r"mla: rope_dim \(5\) must be even"),
        ("mla", {"mla.kv_lora": 0}, "mla: kv_lora: 0 is not from 1"),
        ("mla", {"mla.yarn_factor": 0.5}, "mla: yarn_factor: 0.5 is not from 1"),
        ("nsa", {"nsa.window": 0}, "nsa: window: 0 is not from 1"),
        ("nsa", {"nsa.block": 24}, r"nsa: block \(24\) must be a multiple of stride \(16\)"),
        ("nsa", {"nsa.selected_block": 40}, r"nsa: selected_block \(40\) must be a multiple of stride \(16\)"),
        ("nsa", {"nsa.block": 128}, r"nsa: block \(128\) must not exceed selected_block \(64\)"),
        ("nsa", {"nsa.selected": 2}, "nsa: selected: 2 is not from 3"),
        ("kda", {"kda.taps": 0}, "kda: taps: 0 is not from 1"),
        ("kda", {"kda.taps": "many"}, "kda: taps: "),
    ],
)
def test_options_are_refused_by_name(kind: str, given: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        attention.build(config(kind, options=given), 0, precision.build("fp32"))


def test_kinds_and_shapes_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"model.attention: no kind 'sw'; did you mean 'swa'"):
        attention.build(config("sw"), 0, precision.build("fp32"))
    with pytest.raises(UsageError, match=r"model.heads \(6\) must be a multiple of model.kv_heads \(4\)"):
        config("nsa", kv_heads=4)
    with pytest.raises(UsageError, match=r"model.head_dim \(7\) must be even"):
        config("gqa", head_dim=7)
    with pytest.raises(UsageError, match=r"model.attention is empty"):
        config()
    stray = config("gqa", options={"swa.window": 4})
    with pytest.raises(UsageError, match=r"'swa.window' belongs to nothing in this model"):
        Transformer(stray, precision.build("fp32"))


def test_helper_modules_are_no_kinds() -> None:
    with pytest.raises(UsageError, match="no kind '_scores'"):
        kinds.find("gristmill.trainer.model.attention", "_scores", "model.attention")
    assert isinstance(config("gqa"), ModelConfig)


def test_values_of_latent_attention_may_be_wider_than_its_keys() -> None:
    made = layer("mla", options={"mla.kv_lora": 16, "mla.nope_dim": 8, "mla.rope_dim": 4, "mla.value_dim": 16})
    x_BSD = inputs(2, 5)
    torch.testing.assert_close(in_pieces(made, x_BSD, [2, 3]), whole(made, x_BSD), rtol=1e-4, atol=1e-5)
