"""Folders of Hugging Face's that are not what they should be: one line that names file and field, and nothing left."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.tiny_checkpoints import VOCAB, ours, preset, write_huggingface

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json, write_json
from gristmill.trainer import exchange
from gristmill.trainer.model import huggingface


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer, and without a generation_config.json. Tests copy what they alter."""
    folder = write_huggingface(ours(preset("debug-deepseek-v3")), tmp_path_factory.mktemp("source") / "model")
    byte_tokenizer(folder / "tokenizer.json")
    (folder / "generation_config.json").unlink()
    return folder


def altered(folder: Path, to: Path, **values: Any) -> Path:
    """A copy whose config.json says other things."""
    shutil.copytree(folder, to)
    (to / "config.json").write_text(json.dumps(read_json(to / "config.json") | values))
    return to


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eos_token_id", VOCAB), ("eos_token_id", -1), ("eos_token_id", True), ("eos_token_id", []),
        ("bos_token_id", 10**9), ("bos_token_id", "a"), ("hidden_size", "48"), ("hidden_size", 48.0),
        ("hidden_size", True), ("num_hidden_layers", "4"), ("num_hidden_layers", -1), ("num_attention_heads", 0),
        ("rms_norm_eps", "1e-6"), ("rms_norm_eps", float("inf")), ("rms_norm_eps", 10**40),
        ("rope_parameters", [1]), ("rope_parameters", "x"),
        ("rope_scaling", 2), ("rope_theta", 0), ("tie_word_embeddings", "false"), ("max_position_embeddings", "x"),
        ("n_group", "4"), ("first_k_dense_replace", -1), ("first_k_dense_replace", "a"), ("q_lora_rank", -3),
        ("n_shared_experts", "2"), ("routed_scaling_factor", 0), ("aux_loss_alpha", "0"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_out_of_range(source: Path, tmp_path: Path, field: str, value: Any) -> None:
    folder = altered(source, tmp_path / "other", **{field: value})
    with pytest.raises(DataError, match=rf"config\.json: {field} is {re.escape(repr(value))}"):
        exchange.import_model(str(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"vocab_size": None}, r"'vocab_size' is missing"),
        ({"rms_norm_eps": None}, r"'rms_norm_eps' is missing"),
        ({"rope_parameters": {"rope_theta": "x"}}, r"rope_parameters\.rope_theta is 'x'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, r"rope_parameters\.factor is '4'"),
        ({"qk_rope_head_dim": 7}, r"a shape that this model cannot have: model\."),
    ],
)
def test_a_value_that_is_not_there_or_does_not_fit(
    source: Path, tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    folder = altered(source, tmp_path / "other", **values)
    with pytest.raises(DataError, match=rf"config\.json: {told}"):
        exchange.import_model(str(folder), tmp_path / "run")


def test_what_is_null_is_as_if_it_were_not_there(source: Path, tmp_path: Path) -> None:
    write_huggingface(ours(preset("debug-qwen3")), tmp_path / "qwen3")
    config = read_json(tmp_path / "qwen3" / "config.json") | {"router_aux_loss_coef": None, "rope_scaling": None}
    write_json(tmp_path / "qwen3" / "config.json", config)
    assert huggingface.read(tmp_path / "qwen3").config.balance_loss == 0.001
    folder = altered(source, tmp_path / "other", max_position_embeddings=None, aux_loss_alpha=None, bos_token_id=None)
    record = exchange.import_model(str(folder), tmp_path / "run")
    assert record["config"]["batch"]["sequence"] == exchange.WINDOW
    assert (record["model"]["sequence_loss"], record["tokenizer"]["bos_id"]) == (0.0001, VOCAB - 1)


def test_a_generation_config_that_is_none_is_named(source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "other")
    said = {"[1]": "holds no JSON object", "{": "not JSON", '{"eos_token_id": 999}': "eos_token_id is 999"}
    for text, told in said.items():
        (folder / "generation_config.json").write_text(text)
        with pytest.raises(DataError, match=rf"generation_config\.json: {told}"):
            exchange.import_model(str(folder), tmp_path / "run")


def test_a_tied_head_that_is_stored_too(tmp_path: Path) -> None:
    """As transformers has it: one equal to the embedding is no other; an unlike one is, whatever config.json says."""
    folder = write_huggingface(ours(preset("debug-qwen3", tie_embeddings=True)), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    assert "head_VD" not in huggingface.read(folder).weights
    head[-1, -1] += 1
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"'lm_head\.weight' differs from 'model\.embed_tokens\.weight'"):
        huggingface.read(folder)


def test_links_of_the_hubs_cache_are_followed_and_no_others(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("not the model's")
    plain = shutil.copytree(source, tmp_path / "plain")
    (plain / "tokenizer_more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(DataError, match=r"tokenizer_more\.json: a link to .*secret\.json, outside the model's folder"):
        exchange.import_model(str(plain), tmp_path / "run")
    assert not (tmp_path / "run").exists()

    cache = tmp_path / "models--mill--tiny"
    (cache / "snapshots").mkdir(parents=True)
    snapshot = shutil.copytree(source, cache / "snapshots" / "c0ffee")
    (cache / "blobs").mkdir()
    (snapshot / "tokenizer.json").rename(cache / "blobs" / "b10b")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/b10b")
    exchange.import_model(str(snapshot), tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert not (tmp_path / "run" / "tokenizer.json").is_symlink()
    for place in ("../../../secret.json", "../other/tokenizer.json"):
        (snapshot / "merges.txt").symlink_to(place)
        (cache / "snapshots" / "other").mkdir(exist_ok=True)
        (cache / "snapshots" / "other" / "tokenizer.json").write_text("{}")
        with pytest.raises(DataError, match=r"merges\.txt: a link to"):
            exchange.import_model(str(snapshot), tmp_path / "again")
        (snapshot / "merges.txt").unlink()


def test_where_an_import_may_not_go(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path(), Path("../here"), tmp_path / "here"):
        with pytest.raises(UsageError, match="the folder that the command runs in cannot be replaced"):
            exchange.import_model(str(source), out)
    assert not list((tmp_path / "here").iterdir())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    for out in (tmp_path / "notes", Path(".."), tmp_path / "notes" / "mine.txt"):
        with pytest.raises(UsageError, match="there is something already"):
            exchange.import_model(str(source), out)
    assert [file.name for file in (tmp_path / "notes").iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="--sequence: -5 is not from 0"):
        exchange.import_model(str(source), tmp_path / "run", sequence=-5)


@pytest.mark.parametrize("family", ["deepseek_v3", "dots1"])
def test_what_a_config_does_not_say_is_what_transformers_takes(family: str) -> None:
    """A key that is left out must not quietly mean another router."""
    from transformers import AutoConfig

    from gristmill.trainer.model.huggingface import deepseek_v3, dots1

    theirs = AutoConfig.for_model(family)
    silent = {"deepseek_v3": deepseek_v3, "dots1": dots1}[family].SILENT
    assert silent == {name: getattr(theirs, name) for name in silent}
