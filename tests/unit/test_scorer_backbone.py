"""Cutting a backbone changes nothing, or it is not cut; features depend on the document alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gristmill.base.errors import DataError, UsageError
from gristmill.scorer.backbone.staged import BackboneIdentity, StagedBackbone, identify
from gristmill.scorer.backbone.states import batches, head_input, pad
from gristmill.scorer.backbone.tiny import tiny_model, write_tiny

TAPS = (2, 5)
IDENTITY = BackboneIdentity("tiny", "tiny", 64, 6, 1, "none")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    return pad([generator.integers(3, 300, n) for n in (40, 17, 29, 8)])


def test_only_the_blocks_that_are_needed_run_and_are_counted() -> None:
    backbone = StagedBackbone.from_model(tiny_model("llama"), IDENTITY, TAPS)
    ids_BS, mask_BS = batch()
    backbone.counters.block_tokens = 0
    first, _ = backbone.first(ids_BS, mask_BS)
    assert backbone.counters.block_tokens == 2 * ids_BS.numel()
    backbone.second(first[:1], mask_BS[:1])
    assert backbone.counters.block_tokens == 2 * ids_BS.numel() + 3 * ids_BS.shape[1]


def test_an_architecture_that_cannot_be_resumed_runs_unstaged_and_says_so() -> None:
    model = tiny_model("gpt2")
    ids_BS, mask_BS = batch()
    with torch.inference_mode():
        whole = model(
            input_ids=ids_BS, attention_mask=mask_BS, output_hidden_states=True, use_cache=False
        ).hidden_states
    backbone = StagedBackbone.from_model(model, IDENTITY, TAPS)
    assert not backbone.staged and "gpt2" in backbone.reason
    first, last = backbone.first(ids_BS, mask_BS)
    assert last is not None
    torch.testing.assert_close(first, whole[2])
    torch.testing.assert_close(last, whole[5])
    with pytest.raises(DataError, match="no second stage"):
        backbone.second(first, mask_BS)


def test_load_leaves_out_the_blocks_above_the_judge(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", "gpt_oss")
    backbone = StagedBackbone.load(folder, (1, 3), "float32")
    assert backbone.staged and len(backbone.model.layers) == 3
    assert backbone.identity == identify(folder) and backbone.identity.layers == 6
    full = StagedBackbone.load(folder, (1, 6), "float32")
    ids_BS, mask_BS = batch()
    torch.testing.assert_close(backbone.first(ids_BS, mask_BS)[0], full.first(ids_BS, mask_BS)[0])
    with pytest.raises(UsageError, match="1 <= probe <= judge <= 6"):
        StagedBackbone.load(folder, (1, 7), "float32")


def test_identity_covers_weights_and_tokenizer(tmp_path: Path) -> None:
    one, two = write_tiny(tmp_path / "a" / "m", seed=0), write_tiny(tmp_path / "b" / "m", seed=1)
    assert identify(one).fingerprint != identify(two).fingerprint
    same = write_tiny(tmp_path / "c" / "m", seed=0)
    assert identify(one) == identify(same)
    (same / "tokenizer.json").write_text((same / "tokenizer.json").read_text() + "\n")
    assert identify(one).fingerprint != identify(same).fingerprint


def test_batches_cover_every_row_within_budget_and_repeat_exactly() -> None:
    lengths = np.random.default_rng(1).integers(0, 200, 300).tolist()
    packed = batches(lengths, 512)
    assert sorted(int(i) for batch in packed for i in batch) == [i for i in range(300) if lengths[i]]
    assert all(len(b) * max(lengths[i] for i in b) <= 512 for b in packed)
    assert [b.tolist() for b in packed] == [b.tolist() for b in batches(lengths, 512)]
    assert [b.tolist() for b in batches([9000, 1], 512)] == [[0], [1]]


def test_head_input_drops_the_first_token_and_normalises_the_rest() -> None:
    hidden_BSD = torch.randn(2, 5, 8) * 300
    mask_BS = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    x_BSD, kept_BS = head_input(hidden_BSD, mask_BS)
    assert x_BSD.shape == (2, 4, 8) and kept_BS.sum(1).tolist() == [4, 2]
    assert x_BSD[0].square().mean(-1).sqrt().allclose(torch.ones(4), atol=1e-3)
    changed = hidden_BSD.clone()
    changed[:, 0] = 1e6
    assert torch.equal(x_BSD, head_input(changed, mask_BS)[0])


def test_states_at_any_taps_come_from_one_pass() -> None:
    backbone = StagedBackbone.from_model(tiny_model("gpt_oss"), IDENTITY, TAPS)
    ids_BS, mask_BS = batch()
    first, _ = backbone.first(ids_BS, mask_BS)
    backbone.counters.block_tokens = 0
    last, one, probe = backbone.at((5, 1, 2), ids_BS, mask_BS)
    assert backbone.counters.block_tokens == 6 * ids_BS.numel()
    torch.testing.assert_close(probe, first)
    torch.testing.assert_close(last[mask_BS.bool()], backbone.second(first, mask_BS)[mask_BS.bool()])
    assert one.shape == first.shape
    assert not torch.equal(one, probe)


def test_states_do_not_depend_on_batch_mates() -> None:
    backbone = StagedBackbone.from_model(tiny_model("gpt_oss"), IDENTITY, TAPS)
    generator = np.random.default_rng(2)
    rows = [generator.integers(3, 300, n) for n in (5, 60, 31, 2, 44)]
    together = backbone.at(TAPS, *pad(rows))
    for i, row in enumerate(rows):
        for one, alone in zip(together, backbone.at(TAPS, *pad([row]))):
            torch.testing.assert_close(one[i, : len(row)], alone[0], rtol=1e-4, atol=1e-4)
