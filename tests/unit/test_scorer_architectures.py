"""An architecture is cut without a difference, or not at all and says so; what cannot be loaded is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gristmill.base.errors import DataError, UsageError
from gristmill.base.hub import origin
from gristmill.scorer.backbone import cut, staged
from gristmill.scorer.backbone.cut import PARITY, parity_failure
from gristmill.scorer.backbone.hub import local_folder
from gristmill.scorer.backbone.staged import BackboneIdentity, StagedBackbone, identify
from gristmill.scorer.backbone.states import pad
from gristmill.scorer.backbone.tiny import STAGED, tiny_model, write_tiny
from gristmill.scorer.config import TrainConfig

IDENTITY = BackboneIdentity("tiny", "tiny", 64, 6, 1, "none")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    return pad([generator.integers(3, 300, n) for n in (40, 17, 29, 8)])


def difference(found: torch.Tensor, expected: torch.Tensor, mask_BS: torch.Tensor) -> float:
    valid = mask_BS.bool()
    return float((found[valid] - expected[valid]).norm() / expected[valid].norm())


def check_cut(model: Any, taps: tuple[int, int]) -> None:
    """Against transformers' own hidden states, with two of four rows going on and their padding trimmed."""
    ids_BS, mask_BS = batch()
    with torch.inference_mode():
        whole = model(
            input_ids=ids_BS, attention_mask=mask_BS, output_hidden_states=True, use_cache=False
        ).hidden_states
    backbone = StagedBackbone.from_model(model, IDENTITY, taps)
    assert backbone.staged, backbone.reason
    first, last = backbone.first(ids_BS, mask_BS)
    assert last is None
    assert difference(first, whole[taps[0]], mask_BS) <= PARITY
    keep = [1, 3]
    second = backbone.second(first[keep][:, :17], mask_BS[keep][:, :17])
    assert difference(second, whole[taps[1]][keep][:, :17], mask_BS[keep][:, :17]) <= PARITY


@pytest.mark.parametrize("architecture", STAGED)
@pytest.mark.parametrize("taps", [(2, 5), (3, 4)])
def test_staged_equals_unsliced(architecture: str, taps: tuple[int, int]) -> None:
    check_cut(tiny_model(architecture), taps)


@pytest.mark.parametrize("taps", [(18, 23), (17, 22)])
def test_gpt_oss_is_cut_where_its_sliding_blocks_begin_and_where_they_end(taps: tuple[int, int]) -> None:
    model = tiny_model("gpt_oss", layers=24, width=32)
    assert model.config.layer_types[:4] == ["sliding_attention", "full_attention"] * 2
    check_cut(model, taps)


def test_gpt_oss_20b_is_a_matter_of_configuration(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "gpt-oss-20b", "gpt_oss", layers=24, width=32)
    config = TrainConfig(taps=(18, 24), dtype="float32", attention="eager")
    backbone = StagedBackbone.load(folder, config.chosen_taps, config.dtype, device="cpu", attention=config.attention)
    assert backbone.staged and backbone.identity.layers == 24, backbone.reason
    ids_BS, mask_BS = batch()
    first, _ = backbone.first(ids_BS, mask_BS)
    uncut = backbone.at((18, 24), ids_BS, mask_BS)
    assert difference(first, uncut[0], mask_BS) <= PARITY
    assert difference(backbone.second(first, mask_BS), uncut[1], mask_BS) <= PARITY


def test_gpt_oss_in_four_bits_is_unpacked_where_its_kernels_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    monkeypatch.setattr(staged, "MXFP4_NEEDS", ("no_such_module",))
    plain, packed = (write_tiny(tmp_path / name, "gpt_oss", layers=2) for name in ("plain", "packed"))
    tensors = load_file(plain / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    quantised = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, rows, columns = tensors[name].shape
        blocks = torch.randint(0, 256, (experts, columns, rows // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(122, 126, (experts, columns, rows // 32), dtype=torch.uint8, generator=generator)
        quantised |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        del quantised[name]
        tensors[name] = convert_moe_packed_tensors(blocks, scales).float().contiguous()
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(quantised, packed / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (packed / "config.json").write_text(json.dumps(config))
    ids_BS, mask_BS = batch()
    states = [StagedBackbone.load(folder, (1, 2), "float32").at((1, 2), ids_BS, mask_BS) for folder in (plain, packed)]
    for one, other in zip(*states):
        assert difference(other, one, mask_BS) <= PARITY


def test_an_error_in_the_cut_of_sliding_blocks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt_oss")
    model.config.sliding_window = 128  # longer than the batch that is checked

    def without_types(config: Any, start: int, end: int) -> None:
        config.num_hidden_layers = end - start

    assert parity_failure(model, (3, 6)) == ""
    monkeypatch.setattr(cut, "cut_config", without_types)
    assert "judge's state differs" in parity_failure(model, (3, 6))
    assert model.config.sliding_window == 128


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss", "gpt2"])
def test_a_model_too_large_for_a_float32_copy_is_checked_as_it_is(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "PARITY_COPY_PARAMETERS", 0)
    failure = parity_failure(tiny_model(architecture).bfloat16(), (2, 5))
    assert ("state differs" in failure) == (architecture == "gpt2")


def test_attention_kinds_agree_and_one_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", "llama")
    ids_BS, mask_BS = batch()
    eager, sdpa = (
        StagedBackbone.load(folder, (2, 4), "float32", attention=kind).at((4,), ids_BS, mask_BS)[0]
        for kind in ("eager", "sdpa")
    )
    assert difference(eager, sdpa, mask_BS) <= PARITY
    sinks = write_tiny(tmp_path / "sinks", "gpt_oss", layers=2)
    for kind in ("sdpa", "flash_attention_2", "fast"):
        with pytest.raises(UsageError, match=f"cannot be loaded with attention '{kind}'"):
            StagedBackbone.load(sinks, (1, 2), "float32", attention=kind)


@pytest.mark.parametrize("device", ["cuda:63", "abacus"])
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(UsageError, match=f"device '{device}': not to be had"):
        StagedBackbone.load(write_tiny(tmp_path / "tiny"), (1, 2), device=device)


def test_weights_that_give_no_finite_states_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[3, 3] = torch.nan
    with pytest.raises(DataError, match=r"llama: its states at the probe's tap are not finite"):
        StagedBackbone.from_model(model, IDENTITY, (2, 5))
    assert StagedBackbone.from_model(model, IDENTITY, (1, 1)).staged, "blocks above the taps do not matter"


def test_a_model_of_more_than_text_and_one_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny")
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": {}, "vision_config": {}}))
    with pytest.raises(UsageError, match="gemma3 reads more than text"):
        identify(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    with pytest.raises(UsageError, match=r"config\.json: not of a model that is known here"):
        identify(folder)


def test_a_folder_of_the_hubs_cache_is_named_for_its_repository_and_commit(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "models--mill--tiny-lm" / "snapshots" / ("c" * 40), layers=2)
    assert origin(folder) == ("mill/tiny-lm", "c" * 40)
    named = identify(folder)
    assert (named.name, named.revision) == ("mill/tiny-lm", "c" * 40)
    elsewhere = identify(write_tiny(tmp_path / "tiny-lm", layers=2))
    assert (elsewhere.name, elsewhere.revision) == ("tiny-lm", "")
    assert named.fingerprint == elsewhere.fingerprint
    assert local_folder(str(folder)) == folder


@pytest.mark.parametrize("address", ["hf://tiny", "hf://a/b/c", "hf://a/b@", "hf:///b"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="hf://org/name"):
        local_folder(address)
