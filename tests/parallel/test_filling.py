"""Weights that are drawn, or read, where they will lie: the values of a whole model, without the memory of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.attention_layers import config as attentive
from tests.support.ranks import in_ranks

from gristmill.base.errors import GristmillError
from gristmill.trainer.checkpoints.tensor_file import Piece
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig, ModelSection, presets, resolve
from gristmill.trainer.model.filling import Unfilled, place
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.parallel.config import ParallelConfig
from gristmill.trainer.parallel.shards import Shards, spread
from gristmill.trainer.parallel.world import joined

SHAPES = {
    "all kinds": attentive("gqa", attention=("kda", "nsa", "mla", "swa"), layers=4, router="sigmoid", adapt=True),
    "untied, with all that stands beside experts": attentive(
        "gqa", tie_embeddings=False, bungee=2.0, residual=True, shared_experts=1, dense_layers=1
    ),
}  # fmt: skip
MESHES = {
    "by rows": ParallelConfig(),
    "replicated": ParallelConfig(data="replicate"),
    "experts": ParallelConfig(ep=2),
}
DEEP = attentive("gqa", vocab=64, layers=24, width=64, expert_width=64)


def whole(shape: ModelConfig) -> Transformer:
    model = Transformer(shape, precision.build("fp32"))
    model.initialise(7)
    return model


def filled(shape: ModelConfig, mesh: ParallelConfig, with_memory: bool = False) -> tuple[dict[str, Piece], int]:
    """What is here of a model, and the bytes at the fullest moment of making it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with joined(mesh, torch.device("cpu")) as world:
        with torch.profiler.profile(activities=activities, profile_memory=with_memory) as record:
            with Unfilled():
                model = Transformer(shape, precision.build("fp32"))
            spread(model, world, mesh)
            shards = Shards(model, world)
            model.initialise(7, shards.fill)
        shards.require_filled()
        return shards.pieces(), _most(record) if with_memory else 0


def _most(record: Any) -> int:
    now = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def differing(rank: int, n: int) -> list[str]:
    """Cases, and weights, that are not the rows of a whole model's."""
    wrong = []
    for case, shape in SHAPES.items():
        wanted = whole(shape).state_dict()
        for kind, mesh in MESHES.items():
            pieces, _ = filled(shape, mesh)
            assert pieces.keys() == wanted.keys()
            for name, (rows, shape_of_all, first) in pieces.items():
                same = tuple(wanted[name].shape) == tuple(shape_of_all)
                if not same or not torch.equal(rows, wanted[name][first : first + len(rows)]):
                    wrong.append(f"{case}, {kind}: {name}")
    return wrong


def memory(rank: int, n: int) -> list[list[int]]:
    """For each mesh: bytes of all weights here, of the largest whole one, and at the fullest moment."""
    found = []
    for mesh in (ParallelConfig(), ParallelConfig(ep=n)):
        pieces, most = filled(DEEP, mesh, with_memory=True)
        own = sum(piece.tensor.nbytes for piece in pieces.values())
        found.append([own, max(piece.size for piece in pieces.values()), most])
    return found


def test_rows_are_those_of_a_model_that_was_made_whole() -> None:
    assert in_ranks(differing, 2) == [[], []]


def test_no_process_holds_more_than_its_rows_and_one_tensor() -> None:
    everything = sum(one.nbytes for one in whole(DEEP).state_dict().values())
    for own, largest, most in [mesh for found in in_ranks(memory, 4) for mesh in found]:
        assert own < 0.3 * everything and own <= most < 1.2 * (own + 2 * largest) < 0.5 * everything


def test_a_weight_that_nobody_fills_is_named() -> None:
    with Unfilled():
        model = Transformer(DEEP, precision.build("fp32"))
        model.blocks[1].more = torch.nn.Linear(4, 4)  # whose own values are set in place, on nothing
    place(model, torch.device("cpu"))
    shards = Shards(model)
    model.initialise(7, shards.fill)
    with pytest.raises(GristmillError, match=r"blocks\.1\.more\.bias has no values: .* initialise\(generator, fill\)"):
        shards.require_filled()


def test_the_largest_preset_takes_no_memory_before_it_is_placed() -> None:
    """671 billion weights."""
    assert "deepseek-v3" in presets()
    with Unfilled():
        model = Transformer(resolve(ModelSection(preset="deepseek-v3"), 129_280), precision.build("fp32"))
    matrices, vectors = [], []
    for one in [*model.parameters(), *model.buffers()]:
        (matrices if one.is_meta else vectors).append(one)
    assert sum(one.numel() for one in matrices) > 6e11
    assert all(one.ndim == 1 and torch.isfinite(one).all() for one in vectors) and len(vectors) > 100


@given(st.integers(1, 6), st.integers(1, 5), st.data())
def test_a_piece_takes_its_rows_out_of_parts_that_are_cut_anywhere(rows: int, width: int, data: st.DataObject) -> None:
    tensor = torch.arange(rows * width, dtype=torch.float64).view(rows, width)
    first = data.draw(st.integers(0, rows))
    count = data.draw(st.integers(0, rows - first))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows * width))))
    piece = Piece(torch.full((count, width), -1.0), (rows, width), first)
    piece.take(tensor.view(-1)[begin:end] for begin, end in zip([0, *cuts], [*cuts, rows * width]))
    assert torch.equal(piece.tensor, tensor[first : first + count].float())
