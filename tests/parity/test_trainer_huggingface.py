"""Logits equal to those of transformers, both ways, for every family: plain, padded, and with documents packed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_checkpoints import MODELS, VOCAB, ours, preset, transformers_model, write_huggingface

from gristmill.trainer import exchange
from gristmill.trainer.checkpoints import tensor_file
from gristmill.trainer.model.segments import from_starts
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.run_folder import load_model

RELATIVE = 1e-5  # of the greatest logit, in fp32
PRESETS = ("debug-qwen3", "debug-mixtral", "debug-deepseek-v3", "debug-moonlight")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def assert_equal(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.std() > 0.3, "logits that differ from one another: equality means something"
    assert (got - wanted).abs().max() <= RELATIVE * wanted.abs().max()


def compare(model: Transformer, theirs: Any) -> None:
    """Whole rows; rows padded on the right and on the left; rows of several documents."""
    with torch.no_grad():
        ids = tokens(3, 33)
        assert_equal(model.logits(ids), theirs(ids).logits)

        real = torch.ones(3, 33, dtype=torch.long)
        real[0, 20:] = real[2, 1:] = 0
        padded = theirs(ids, attention_mask=real).logits
        assert_equal(model.logits(ids)[real.bool()], padded[real.bool()])

        real = real.flip(1)
        positions = (real.cumsum(1) - 1).clamp(min=0)
        padded = theirs(ids, attention_mask=real, position_ids=positions).logits
        starts = (real == 1) & (positions == 0)
        assert_equal(model.logits(ids, from_starts(starts))[real.bool()], padded[real.bool()])

        starts = torch.zeros(3, 33, dtype=torch.bool)
        for row, places in enumerate(((0, 7, 8, 30), (0, 32), (0,))):
            starts[row, list(places)] = True
        segments = from_starts(starts)
        packed = theirs(ids, position_ids=segments.positions_BS, use_cache=False).logits
        together = model.logits(ids, segments)
        assert_equal(together, packed)
        assert_equal(together[0, 8:30], theirs(ids[:1, 8:30]).logits[0])


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_theirs_there_and_back(tmp_path: Path, name: str) -> None:
    """In, from several files: the same logits. Out again: the same weights and logits to the bit."""
    theirs = transformers_model(name)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    exchange.import_model(str(tmp_path / "theirs"), tmp_path / "run")
    compare(load_model(tmp_path / "run", "cpu").model, theirs)

    exchange.export_run(tmp_path / "run", tmp_path / "back")
    before, after = (tensor_file.read_folder(tmp_path / folder) for folder in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].read(), after[key].read()) for key in before)
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    with torch.no_grad():
        ids = tokens(2, 60)
        assert torch.equal(again(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("name", PRESETS)
def test_a_model_of_ours_loads_there(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    model = ours(preset(name, tie_embeddings=name == "debug-qwen3"))
    write_huggingface(model, tmp_path, shard_bytes=100_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    theirs, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    compare(model, theirs.eval())


@pytest.mark.parametrize("name", ["stable", "debug-qwen3", "debug-deepseek-v3"])
def test_scales_that_they_have_not_go_into_the_weights(tmp_path: Path, name: str) -> None:
    """Embedding and logit scales, the experts' scalar: what comes out has none of them, and equal logits."""
    from transformers import AutoModelForCausalLM

    config = preset(name, tie_embeddings=False, layers=2, embedding_scale=10.667, logit_scale=0.125, bungee=2.0)
    model = ours(config)
    write_huggingface(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        ids = tokens(2, 17)
        wanted = model.logits(ids)
        assert (theirs(ids).logits - wanted).abs().max() <= RELATIVE * wanted.abs().max()
        untouched = ours(dataclasses.replace(config, embedding_scale=1.0, logit_scale=1.0, bungee=0.0))
        assert not torch.allclose(untouched.logits(ids), wanted, rtol=0.1)


def test_bf16_weights_stay_bf16(tmp_path: Path) -> None:
    """Read, kept and written in the format they came in; the router's bias stays in fp32 as theirs does."""
    theirs = transformers_model("deepseek_v3").bfloat16()
    theirs.save_pretrained(tmp_path / "theirs")
    record = exchange.import_model(str(tmp_path / "theirs"), tmp_path / "run")
    assert record["config"]["precision"] == "bf16"
    model = load_model(tmp_path / "run", "cpu").model
    assert model.embedding_VD.dtype == torch.bfloat16
    exchange.export_run(tmp_path / "run", tmp_path / "back")
    before, after = (tensor_file.read_folder(tmp_path / folder) for folder in ("theirs", "back"))
    assert {key: tensor.dtype for key, tensor in before.items()} == {key: tensor.dtype for key, tensor in after.items()}
    assert all(torch.equal(before[key].read(), after[key].read()) for key in before)
    ids = tokens(2, 33)
    with torch.no_grad():
        reference = transformers_model("deepseek_v3")
        reference.load_state_dict(theirs.float().state_dict())
        wanted = reference(ids).logits
        assert (model.logits(ids).float() - wanted).norm() < 0.05 * wanted.norm()
