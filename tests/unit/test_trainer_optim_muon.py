"""Muon: equal to torch's on matrices, expert by expert on stacks; directions that are nearly orthogonal."""

import math

import pytest
import torch

from gristmill.trainer.optim.muon import Muon, slots
from gristmill.trainer.optim.orthogonalise import orthogonalise

SHAPES = [(16, 16), (8, 24), (24, 8), (8, 24)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def all_rows(_: torch.nn.Parameter, rows: torch.Tensor) -> torch.Tensor:
    """Nobody has others."""
    return rows


def ours(parameters: list[torch.nn.Parameter], maps: int = 1) -> Muon:
    group = {"params": parameters, "lr": 0.02, "weight_decay": 0.1, "maps": maps}
    built = Muon([group], 0.95, all_rows, all_rows)
    built.state.update({parameter: slots(parameter) for parameter in parameters})
    return built


def train(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], gradients: list[torch.Tensor]):
    for step in range(4):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * math.cos(step) + gradient.flip(-1) * math.sin(step)
        optimizer.step()


def theirs(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        parameters, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )


@pytest.mark.parametrize("in_fp32", [True, False])
def test_matrices_move_as_with_torchs(in_fp32, monkeypatch):
    if in_fp32:  # torch's rounds to bf16, on a processor too
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    a, b = ([torch.nn.Parameter(normal(*shape, seed=seed)) for seed, shape in enumerate(SHAPES)] for _ in range(2))
    before = [one.detach().clone() for one in a]
    gradients = [normal(*shape, seed=9 + seed) for seed, shape in enumerate(SHAPES)]
    train(ours(a), a, gradients)
    train(theirs(b), b, gradients)
    for old, one, other in zip(before, a, b, strict=True):
        difference = (one - other).norm() / (other - old).norm()
        assert difference < (1e-5 if in_fp32 else 0.03)


def test_each_expert_and_each_of_stacked_maps_moves_by_itself(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    stack = torch.nn.Parameter(normal(3, 2 * 8, 24))
    apart = [torch.nn.Parameter(one.clone()) for expert in stack.detach() for one in expert.chunk(2)]
    gradient = normal(3, 2 * 8, 24, seed=1) * torch.tensor([1.0, 100.0, 1e-3])[:, None, None]
    train(ours([stack], maps=2), [stack], [gradient])
    train(theirs(apart), apart, [one for expert in gradient for one in expert.chunk(2)])
    torch.testing.assert_close(stack, torch.cat([*apart]).view_as(stack), atol=1e-5, rtol=1e-4)


def test_singular_values_come_near_one():
    for index, shape in enumerate([(16, 64), (64, 16), (5, 16, 64), (2, 3, 64, 16)]):
        (result,) = orthogonalise([1e3 ** (index - 1) * normal(*shape)])
        values = torch.linalg.svdvals(result.float())
        assert result.shape == shape and values.min() > 0.6 and values.max() < 1.3


def test_the_direction_of_the_singular_vectors_stays(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    matrix = normal(8, 32)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    (result,) = orthogonalise([matrix])
    turned = u.mT @ result @ vh.mT
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-4


def test_an_answer_does_not_depend_on_those_beside_it(monkeypatch):
    """To the bit, so that machines may share the list."""
    matrices = [normal(*shape, seed=seed) for seed, shape in enumerate([(8, 24), (24, 8), (4, 8, 24), (8, 24)])]
    together = orthogonalise(matrices)
    for matrix, result in zip(matrices, together, strict=True):
        assert torch.equal(orthogonalise([matrix])[0], result)
    monkeypatch.setattr("gristmill.trainer.optim.orthogonalise.AT_ONCE", 8 * 24)
    assert all(torch.equal(a, b) for a, b in zip(orthogonalise(matrices), together, strict=True))


def test_a_gradient_of_zero_moves_nothing():
    assert not orthogonalise([torch.zeros(4, 8)])[0].any()
    assert orthogonalise([]) == []


@pytest.mark.parametrize("shape", [(64, 64), (16, 128), (3, 128, 16)])
def test_a_step_is_as_large_as_adamws(shape):
    """Root mean square 0.2 at rate 1 (Moonlight, section 2.2), whatever the shape."""
    parameter = torch.nn.Parameter(torch.zeros(shape))
    own = Muon([{"params": [parameter], "lr": 1.0, "weight_decay": 0.0}], 0.95, all_rows, all_rows)
    own.state[parameter] = slots(parameter)
    parameter.grad = normal(*shape)
    own.step()
    assert 0.14 < parameter.square().mean().sqrt() < 0.24
