"""Low precision: numbers, blocks and the three products against plain versions of them, faults, rounding by chance."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.support.training_shards import write_shards

from gristmill.base.errors import UsageError
from gristmill.trainer import loop, run_folder
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.data import Example
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig, ModelSection
from gristmill.trainer.model.precision import BLOCKWISE, StochasticRounding
from gristmill.trainer.model.precision._elements import E2M1, E4M3, TINIEST, Element
from gristmill.trainer.model.precision._grouped import grouped_mm
from gristmill.trainer.model.precision.blockwise import ROWS, Blockwise
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.step import train_step

FORMATS = sorted(BLOCKWISE)
BLOCK = {"fp8": 128, "mxfp8": 32, "nvfp4": 16}
ELEMENT = {"fp8": E4M3, "mxfp8": E4M3, "nvfp4": E2M1}
# Written out, and as torch has it: not by way of Element.
E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E4M3_VALUES = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
VALUES = {"fp8": E4M3_VALUES, "mxfp8": E4M3_VALUES, "nvfp4": E2M1_VALUES}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0, spread: float = 0.0) -> torch.Tensor:
    """Normal numbers, times e to the power of others, so that magnitudes within a block differ."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (spread * torch.randn(shape, generator=generator)).exp()


def nearest(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each number's nearest among +-values, ties to the value with the even code, those beyond the last to the last."""
    distance = np.abs(np.abs(x)[..., None] - values)
    odd = np.arange(len(values)) % 2
    return np.sign(x) * values[np.argmin(distance + 1e-12 * odd, axis=-1)]


def plain_blocks(x: torch.Tensor, name: str, weight: bool = False) -> np.ndarray:
    """What x [N, K] is after quantisation, block by block in fp64, as the papers say it."""
    x_NK = x.double().numpy()
    out, size = np.zeros_like(x_NK), BLOCK[name]
    rows = size if weight and name == "fp8" else 1
    whole = np.abs(x_NK).max() / (6 * 448)
    for top in range(0, x_NK.shape[0], rows):
        for left in range(0, x_NK.shape[1], size):
            where = slice(top, top + rows), slice(left, left + size)
            most = np.abs(x_NK[where]).max()
            if name == "fp8":
                scale = most / 448
            elif name == "mxfp8":
                scale = 2.0 ** math.ceil(math.log2(most / 448)) if most else 1.0
            else:
                scale = float(nearest(np.array(most / 6 / whole), E4M3_VALUES)) * whole
            out[where] = nearest(x_NK[where] / scale, VALUES[name]) * scale if scale else 0.0
    return out


# Numbers --------------------------------------------------------------------------------------------------------------


def test_e4m3_rounds_every_bf16_number_as_torch_does():
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).float()
    inside = every[every.abs() <= 448]
    assert len(inside) > 30_000
    assert torch.equal(E4M3.round(inside), inside.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(("element", "values"), [(E4M3, E4M3_VALUES), (E2M1, E2M1_VALUES)])
def test_rounding_is_to_the_nearest_number_and_ties_are_even(element: Element, values):
    numbers = torch.tensor(values)
    ties = (numbers[1:] + numbers[:-1]) / 2
    between = torch.cat([numbers[:-1] + share * numbers.diff() for share in (0.25, 0.49, 0.51, 0.75)])
    x = torch.cat((numbers, ties, between)).float()
    for signed in (x, -x):
        assert np.array_equal(element.round(signed).numpy(), nearest(signed.double().numpy(), values))
    assert torch.equal(element.round(numbers.float()), numbers.float())
    assert element.round(torch.tensor([1e30, -1e30])).tolist() == [values[-1], -values[-1]]
    assert element.round(torch.tensor([float("inf"), float("nan")])).isnan().all()


# Blocks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_blocks_equal_the_plain_version(name, weight):
    """With blocks that are cut off at both edges, magnitudes that differ much, and a block of zeros."""
    x = normal(130, 200, spread=2.0)
    x[3] = 0.0
    got = BLOCKWISE[name].weight(x) if weight else BLOCKWISE[name].activation(x)
    np.testing.assert_allclose(got.values().numpy(), plain_blocks(x, name, weight), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_format_has_comes_back_as_it_was(name):
    numbers = torch.tensor(VALUES[name]).float()
    signed = torch.cat((numbers, -numbers, numbers[-1:]))
    rows = torch.nn.functional.pad(signed, (0, -len(signed) % (BLOCK[name] - 1))).view(-1, BLOCK[name] - 1)
    x = torch.cat((rows, torch.full((len(rows), 1), float(numbers[-1]))), dim=1)  # the largest in each block
    for scale in (1.0, 2.0**-20, 2.0**30):
        torch.testing.assert_close(BLOCKWISE[name].activation(x * scale).values(), x * scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_the_error_is_what_the_format_implies_and_no_less(name):
    """At most half a step: of a number's own size, or, near zero, of its block's smallest."""
    x = normal(256, 512, spread=1.5)
    quantised = BLOCKWISE[name].activation(x)
    combined = quantised.scales if quantised.tensor_scale is None else quantised.scales * quantised.tensor_scale
    scale = combined.squeeze(-1).squeeze(-2).repeat_interleave(BLOCK[name], dim=-1)
    element = ELEMENT[name]
    smallest = scale * 2.0 ** (element.exponent - element.mantissa - 1)
    allowed = torch.maximum(x.abs() * 2.0 ** -(element.mantissa + 1), smallest)
    share = (quantised.values() - x).abs() / allowed
    assert share.max() <= 1 + 1e-5
    assert share.max() > 0.93  # the bound is the format's, not a loose one
    worst = ((quantised.values() - x).abs() / x.abs())[x.abs() > 2 * smallest * 2 ** (element.mantissa + 1)].max()
    assert worst == pytest.approx(1 / (2.0 ** (element.mantissa + 1) + 1), rel=0.02)


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_tiny_numbers_and_an_outlier(name):
    family, size = BLOCKWISE[name], BLOCK[name]
    assert torch.equal(family.activation(torch.zeros(4, 2 * size)).values(), torch.zeros(4, 2 * size))
    tiny = torch.full((2, size), 1e-41)
    assert family.activation(tiny).values().abs().max() <= 1e-40
    x = normal(3, 2 * size)
    x[1, 5] = 1e6
    values = family.activation(x).values()
    assert values[1, 5] == pytest.approx(1e6, rel=0.07)
    if name != "nvfp4":  # there the matrix's scale follows the outlier, and other blocks' scales with it
        alone = family.activation(x[:, size:]).values()
        assert torch.equal(values[:, size:], alone)
    assert values[1, :size].count_nonzero() < size / 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_finite_is_never_hidden(name, bad):
    x = normal(2, 2 * BLOCK[name])
    x[1, 3] = bad
    values = BLOCKWISE[name].activation(x).values()
    assert values[1, : BLOCK[name]].isnan().all()
    if name != "nvfp4":
        assert values[0].isfinite().all() and values[1, BLOCK[name] :].isfinite().all()


# Products -------------------------------------------------------------------------------------------------------------

E, F_OUT, D_IN = 4, 48, 40
ENDS = torch.tensor([128, 128, 512, 640], dtype=torch.int32)  # the second expert has no rows


def products(name: str, x, weight, direction, rounding=None):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = precision.build("fp32", name, rounding).grouped_linear(x, weight, ENDS)
    return y.detach(), *torch.autograd.grad(y, (x, weight), direction)


def inputs(values=None) -> list[torch.Tensor]:
    shapes = ((640, D_IN), (E, F_OUT, D_IN), (640, F_OUT))
    if values is None:
        return [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
        made.append(signs * values[torch.randint(0, len(values), shape, generator=generator)])
    return made


def exact(x, weight, direction):
    """The three products in fp64, expert by expert."""
    x, weight, direction = x.double(), weight.double(), direction.double()
    starts = [0, *ENDS.tolist()]
    rows = [slice(start, end) for start, end in itertools.pairwise(starts)]
    return (
        torch.cat([x[own] @ w.t() for own, w in zip(rows, weight)]),
        torch.cat([direction[own] @ w for own, w in zip(rows, weight)]),
        torch.stack([direction[own].t() @ x[own] for own in rows]),
    )


@pytest.mark.parametrize("name", FORMATS)
def test_each_product_quantises_along_its_own_inner_dimension(name):
    x, weight, direction = inputs()
    got = products(name, x, weight, direction)

    def q(matrix, **kind):
        return torch.tensor(plain_blocks(matrix, name, **kind))

    forward = exact(q(x), torch.stack([q(w, weight=True) for w in weight]), direction)[0]
    by_output = torch.stack([q(w.t(), weight=True).t() for w in weight])
    grad_x = exact(x, by_output, q(direction))[1]
    grad_weight = exact(q(x.t()).t(), weight, q(direction.t()).t())[2]
    if name == "nvfp4":  # there a weight's scale is of all experts' own matrices: taken above matrix by matrix, too
        whole = BLOCKWISE[name].weight(weight).tensor_scale
        assert whole is not None and whole.numel() == E
    for found, wanted in zip(got, (forward, grad_x, grad_weight)):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert not got[2][1].any()  # an expert without rows has a gradient of zeros


@pytest.mark.parametrize(("name", "most"), [("fp8", 0.045), ("mxfp8", 0.045), ("nvfp4", 0.2)])
def test_outputs_and_gradients_are_as_near_to_fp64_as_the_format_allows(name, most):
    """Independent errors of both operands: uniform within steps whose half is at most 1/16 (1/4) of the number."""
    given = inputs()
    for found, wanted in zip(products(name, *given), exact(*given)):
        error = float((found - wanted).norm() / wanted.norm())
        assert most / 8 < error < most


@pytest.mark.parametrize("name", FORMATS)
def test_products_of_numbers_that_the_format_has_are_those_of_fp32(name):
    top = {"fp8": 448.0, "mxfp8": 448.0, "nvfp4": 6.0}[name]
    given = inputs(torch.tensor([0.0, top / 2, top]) if name == "nvfp4" else torch.tensor([0.0, 4.0, 64.0, 448.0]))
    given[0][:, ::8] = given[1][..., ::8] = given[2][:, ::8] = top  # the largest in every block, along either dimension
    given[0][::8] = given[1][:, ::8] = given[2][::8] = top
    for found, wanted in zip(products(name, *given), exact(*given)):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_padding_change_nothing(name):
    """As dispatch pads: zeros behind each expert's rows, whose gradient is zero."""
    how = precision.build("fp32", name)
    assert how.row_multiple == ROWS and not any(ROWS % size for size in BLOCK.values())
    x, weight, direction = inputs()
    wider = torch.zeros(640 + ROWS, D_IN)
    wider[:640] = x
    wide_direction = F.pad(direction, (0, 0, 0, ROWS))
    weight.requires_grad_()
    ends = ENDS.clone()
    ends[-1] += ROWS
    y = how.grouped_linear(wider, weight, ends)
    (grad,) = torch.autograd.grad(y, weight, wide_direction)
    narrow = products(name, x, weight.detach(), direction)
    torch.testing.assert_close(y[:640], narrow[0])
    assert not y[640:].any()
    torch.testing.assert_close(grad, narrow[2])


# By chance ------------------------------------------------------------------------------------------------------------


def test_stochastic_rounding_is_right_on_the_average_and_leaves_what_the_format_has():
    rounding = StochasticRounding(0, torch.device("cpu"))
    for element, x, low, high in ((E2M1, 2.3, 2.0, 3.0), (E2M1, -0.1, -0.5, 0.0), (E4M3, 0.3, 0.28125, 0.3125)):
        found = element.round(torch.full((100_000,), x), rounding)
        assert set(found.unique().tolist()) == {low, high}
        spread = (high - low) / 2 / math.sqrt(100_000)
        assert float(found.double().mean()) == pytest.approx(x, abs=5 * spread)
    for element, values in ((E2M1, E2M1_VALUES), (E4M3, E4M3_VALUES)):
        numbers = torch.tensor(values).float().repeat(1000)
        assert torch.equal(element.round(-numbers, rounding), -numbers)


def test_stochastic_rounding_follows_from_seed_and_step_and_touches_gradients_alone():
    given = inputs()

    def at(seed: int, *steps: int):
        rounding = StochasticRounding(seed, torch.device("cpu"))
        for step in steps:
            rounding.begin(step)
            found = products("nvfp4", *given, rounding=rounding)
        return found

    nearest_ones, first, again, other = products("nvfp4", *given), at(0, 7), at(0, 3, 7), at(1, 7)
    assert torch.equal(first[0], nearest_ones[0])  # the forward product draws nothing
    for a, b, c, d in zip(first[1:], again[1:], other[1:], nearest_ones[1:]):
        assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, d)
    wanted = exact(*given)
    for at_random, to_nearest, right in zip(first[1:], nearest_ones[1:], wanted[1:]):
        assert (at_random - right).norm() < 2.5 * (to_nearest - right).norm()


# Whole models ---------------------------------------------------------------------------------------------------------

MODEL = ModelConfig(
    vocab=61, width=48, layers=2, heads=3, kv_heads=1, head_dim=16, experts=4, top_k=2, expert_width=40,
)  # fmt: skip


def model(name: str, rounding: StochasticRounding | None = None, recompute: bool = False, dense: str = "fp32"):
    built = Transformer(MODEL, precision.build(dense, name, rounding), recompute)
    built.initialise(0)
    return built


def example(seed: int = 0) -> Example:
    ids = torch.randint(0, MODEL.vocab, (4, 33), generator=torch.Generator().manual_seed(seed))
    return Example(ids[:, :-1], ids[:, 1:], torch.zeros(4, 32, dtype=torch.bool))


@pytest.mark.parametrize("dense", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*FORMATS, "bf16"])
def test_models_learn_with_experts_in_low_precision(name, dense):
    losses = {}
    for experts in ("", name):
        trained = model(experts, dense=dense)
        own = optimizer.build(trained, OptimizerConfig())
        losses[experts] = [train_step(trained, own, example(), 4, 1.0).nll for _ in range(12)]
        assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())
    plain, low = losses[""], losses[name]
    assert low[-1] < low[0] - 0.5
    assert low[0] == pytest.approx(plain[0], abs=0.03) and low[-1] == pytest.approx(plain[-1], abs=0.3)
    assert low != plain or (name, dense) == ("bf16", "bf16")


@pytest.mark.parametrize("experts", ["fp32", "nvfp4"])
def test_products_compile(experts):
    """fp32 groups, which torch's own operator refuses to compile, and a format, whose products stay as they are."""
    how = precision.build("fp32", experts)
    x, weight, direction = inputs()
    x.requires_grad_()
    compiled = torch.compile(how.grouped_linear, backend="aot_eager", fullgraph=experts == "fp32")
    found, wanted = compiled(x, weight, ENDS), how.grouped_linear(x, weight, ENDS)
    assert torch.equal(found, wanted)
    assert torch.equal(torch.autograd.grad(found, x, direction)[0], torch.autograd.grad(wanted, x, direction)[0])


def test_fp32_groups_have_the_gradients_of_differences():
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(shape, generator=generator) for shape in ((12, 8), (3, 8, 4), (12, 4)))
    ends = torch.tensor([4, 4, 12], dtype=torch.int32)
    given = [one.requires_grad_() for one in (a, b)]
    got = torch.autograd.grad(grouped_mm(a, b, ends), given, c)
    plain = torch.cat([a[:4] @ b[0], a[4:] @ b[2]])
    torch.testing.assert_close(grouped_mm(a, b, ends), plain)
    for found, wanted in zip(got, torch.autograd.grad(plain, given, c)):
        torch.testing.assert_close(found, wanted)
    torch.library.opcheck(torch.ops.gristmill.grouped_mm_fp32.default, (a, b, ends))
    torch.library.opcheck(torch.ops.gristmill.grouped_mm_fp32.default, (a.detach().t(), c, ends))


def test_computing_again_gives_the_same_gradients_under_stochastic_rounding():
    found = []
    for recompute in (False, True):
        rounding = StochasticRounding(0, torch.device("cpu"))
        built = model("nvfp4", rounding, recompute)
        one = example()
        loss = built.loss(one.inputs_BS, one.targets_BS)
        (loss.nll + loss.auxiliary).backward()
        found.append([parameter.grad for parameter in built.parameters()])
    for plain, again in zip(*found):
        assert torch.equal(plain, again)


def test_a_resumed_run_rounds_as_one_that_was_never_stopped(tmp_path, monkeypatch):
    (tmp_path / "shards").mkdir()
    shards = write_shards(tmp_path / "shards")
    shape = ModelSection(width=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=4, top_k=2, expert_width=16)
    about = TrainConfig(
        mixture="both", data=str(shards), output=str(tmp_path / "whole"), tokens=5 * 4 * 32, checkpoint_every=2,
        validate_tokens=0, precision="bf16", expert_precision="nvfp4", stochastic_rounding=True, model=shape,
        batch=BatchConfig(sequence=32, sequences=4, micro=2),
    )  # fmt: skip
    loop.train(about)
    stopped = dataclasses.replace(about, output=str(tmp_path / "stopped"))
    real, calls = loop.train_step, []

    def stop_at_fourth(*args):
        calls.append(1)
        if len(calls) == 4:
            raise OSError("the machine is gone")
        return real(*args)

    monkeypatch.setattr(loop, "train_step", stop_at_fourth)
    with pytest.raises(OSError):
        loop.train(stopped)
    loop.resume(stopped.folder)  # from its checkpoint after step 2
    weights = [run_folder.load_model(config.folder, "cpu").model.state_dict() for config in (about, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    nearest_ones = dataclasses.replace(about, output=str(tmp_path / "nearest"), stochastic_rounding=False)
    loop.train(nearest_ones)
    other = run_folder.load_model(nearest_ones.folder, "cpu").model.state_dict()
    assert not all(torch.equal(weights[0][name], other[name]) for name in other)


def test_what_cannot_be_is_refused_with_the_mend():
    with pytest.raises(UsageError, match=r"precision: no 'fp8'; experts alone can have it: --expert-precision"):
        precision.build("fp8")
    with pytest.raises(UsageError, match=r"precision: no 'bf61'; did you mean 'bf16'"):
        precision.build("bf61")
    with pytest.raises(UsageError, match=r"expert_precision: no 'nvpf4'; did you mean 'nvfp4'"):
        precision.build("bf16", "nvpf4")
    with pytest.raises(UsageError, match="stochastic_rounding is of --expert-precision"):
        TrainConfig(stochastic_rounding=True)
    assert isinstance(precision.build("bf16", "fp8").experts, Blockwise)  # pyright: ignore
    assert torch.finfo(torch.float32).tiny == TINIEST
