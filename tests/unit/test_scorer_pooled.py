"""Pooled states: the mean of what heads read, of length one; a document's own whatever its company; null if empty."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gristmill.base.errors import UsageError
from gristmill.scorer.backbone.pooled import Pooler
from gristmill.scorer.backbone.staged import StagedBackbone
from gristmill.scorer.backbone.states import Tokens, head_input, pad
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.config import PooledConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "pipelines"))
nodes: Any = pytest.importorskip("nodes")

TEXTS = [
    "The mill turns.",
    "x",
    "",
    "La meule tourne et le grain tombe. " * 9,
    "  \n",
    "\x00 \u202e漢字 </s>",
    "y" * 3000,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny")


def matrix(states: pa.FixedSizeListArray) -> np.ndarray:
    return states.flatten().to_numpy().reshape(-1, states.type.list_size)


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss", "gpt2"])
def test_states_are_the_mean_of_what_a_head_reads(architecture: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", architecture)
    backbone = StagedBackbone.load(folder, (2, 2), "float32")
    rows = Tokens(folder, backbone.identity.first_token, 100, 1)(TEXTS)
    states = Pooler.load(folder, PooledConfig(block=2, max_tokens=100)).states(TEXTS)
    assert states.type == pa.list_(pa.float16(), 64)
    assert states.is_null().to_pylist() == [False, False, True, False, True, False, False]
    for state, row in zip(states.to_pylist(), rows, strict=True):
        if state is not None:
            ids_BS, mask_BS = pad(row)
            expected = head_input(backbone.first(ids_BS, mask_BS)[0], mask_BS)[0].mean(1)[0]
            torch.testing.assert_close(torch.tensor(state).float(), expected / expected.norm(), rtol=2e-3, atol=1e-4)
    assert np.linalg.norm(matrix(states).astype(np.float64), axis=1) == pytest.approx(1, abs=2e-3)


def test_a_state_does_not_depend_on_its_company(folder: Path) -> None:
    pooler = Pooler.load(folder, PooledConfig(block=3, max_tokens=100, batch_tokens=256))
    together = matrix(pooler.states(TEXTS)).astype(np.float32)
    alone = np.concatenate([matrix(pooler.states([text])) for text in TEXTS if text.strip()]).astype(np.float32)
    assert np.abs(together - alone).max() <= 2**-11  # one step of float16 below one
    assert ((together * alone).sum(1) > 0.9999).all()


def test_only_the_blocks_that_are_needed_are_loaded(folder: Path) -> None:
    pooler = Pooler.load(folder, PooledConfig(block=2))
    assert len(pooler.backbone.model.layers) == 2 and pooler.width == 64
    with pytest.raises(UsageError, match="6"):
        Pooler.load(folder, PooledConfig(block=7))
    for name in ("block", "max_tokens", "batch_tokens", "threads"):
        wrong: dict[str, Any] = {name: 0}
        with pytest.raises(UsageError, match=name):
            PooledConfig(**wrong)


def test_a_text_whose_states_are_not_finite_has_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pooler = Pooler.load(folder, PooledConfig(block=1))
    whole = pooler.backbone.first

    def broken(ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_BSD, last = whole(ids_BS, mask_BS)
        return hidden_BSD.masked_fill((ids_BS == ids_BS.max())[..., None], torch.inf), last

    monkeypatch.setattr(pooler.backbone, "first", broken)
    assert pooler.states(["aaa", "aaz", "a"]).is_null().to_pylist() == [False, True, False]


def test_nothing_to_pool(folder: Path) -> None:
    pooler = Pooler.load(folder, PooledConfig(block=1))
    assert len(pooler.states([])) == 0
    assert pooler.states(["", None]).null_count == 2


def test_the_stage_reads_what_the_rules_keep_and_its_partitions_can_be_read(folder: Path, tmp_path: Path) -> None:
    config = PooledConfig(block=2, max_tokens=100)
    stage = nodes.States(folder, config)
    assert (stage.name, stage.dependencies) == ("states", ("documents", "unique"))
    stage.setup({})
    keep = np.array([True, False, True, True, False, False, True])
    table = stage.annotate(pa.table({"text": TEXTS}), {"unique": pa.table({"keep": keep})})
    pq.write_table(table, tmp_path / "part.parquet", compression="zstd")
    states = pq.read_table(tmp_path / "part.parquet")["state"].combine_chunks()
    assert states.is_valid().to_pylist() == [True, False, False, True, False, False, True]
    chosen = Pooler.load(folder, config).states([TEXTS[row] for row in (0, 3, 6)])
    assert (matrix(states) == matrix(chosen)).all()
    nothing = stage.annotate(pa.table({"text": TEXTS}), {"unique": pa.table({"keep": np.zeros(7, bool)})})
    assert nothing["state"].null_count == 7 and nothing.schema == table.schema
