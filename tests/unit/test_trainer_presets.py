"""Presets: their published numbers of parameters, those that transformers counts, and what `trainer params` prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tests.support.tiny_checkpoints import VOCAB, ours, preset

from gristmill.base.errors import UsageError
from gristmill.trainer import cli
from gristmill.trainer.model.config import ModelSection, presets, resolve
from gristmill.trainer.model.counts import count

# As the Hub's pages of their safetensors and the papers have them; the biases of DeepSeek-V3's routers are counted.
PUBLISHED = {
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200,
    "moonlight-16b-a3b": 15_960_110_208,
}
# Total and active in billions, as their papers round them. moonlet: reference/nmoe, section 3.
ROUNDED = {
    "mixtral-8x7b": (46.7, 12.9), "qwen3-30b-a3b": (30.5, 3.3), "deepseek-v2": (236, 21), "deepseek-v3": (671, 37),
    "moonlight-16b-a3b": (16.0, 3.0), "moonlet-7b-a2b": (7.36, 1.84),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_is_the_published_one(name: str) -> None:
    assert count(resolve(ModelSection(preset=name))).total == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_total_and_active_round_to_what_the_papers_say(name: str) -> None:
    counts, (total, active) = count(resolve(ModelSection(preset=name))), ROUNDED[name]
    assert counts.total == pytest.approx(total * 1e9, rel=0.005)
    # Papers differ in whether the table of embeddings is active; for the smaller models that is a tenth.
    assert active * 0.93 < counts.active / 1e9 < active * 1.1


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "moonlight-16b-a3b"])
def test_transformers_counts_the_same_for_the_config_that_we_write(name: str) -> None:
    import transformers

    from gristmill.trainer.model import huggingface

    config = resolve(ModelSection(preset=name))
    family = huggingface.family_of(config)
    values = family.to_config(config, 4096)
    cls = getattr(transformers, family.ARCHITECTURE)
    with torch.device("meta"):
        model = cls(cls.config_class(**values))
    state = {key: tensor.numel() for key, tensor in model.state_dict().items() if "mtp" not in key}
    assert sum(state.values()) == count(config).total


@pytest.mark.parametrize("name", presets())
def test_every_preset_can_be_built_and_the_small_ones_learn(name: str) -> None:
    config = preset(name)
    assert count(config).total > count(config).active > 0
    if count(config).total > 3e6:
        return
    model = ours(config).train()
    ids = torch.randint(0, VOCAB, (2, 17), generator=torch.Generator().manual_seed(0))
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    (loss.nll + loss.auxiliary).backward()
    assert loss.nll.isfinite()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), key


def test_the_small_model_recipe() -> None:
    config = preset("stable")
    assert (config.embedding_scale, config.logit_scale, config.bungee) == (10.667, 0.125, 2.0)


def test_the_data_decide_the_vocabulary_only_where_a_preset_has_none() -> None:
    assert resolve(ModelSection(preset="mixtral-8x7b"), 50_000).vocab == 32_000
    assert resolve(ModelSection(preset="small"), 50_000).vocab == 50_000
    assert resolve(ModelSection(preset="small", vocab=60_000), 50_000).vocab == 60_000
    with pytest.raises(UsageError, match=r"takes its vocabulary from the data; give --model.vocab"):
        resolve(ModelSection(preset="small"))


def test_options_of_a_preset_and_of_a_run_are_joined() -> None:
    config = resolve(ModelSection(preset="deepseek-v3", options={"sigmoid.scale": 1.5}))
    assert config.options["sigmoid.scale"] == 1.5 and config.options["mla.q_lora"] == 1536


def test_params_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    from gristmill.base.cli import typed

    command = typed(cli.params, "trainer params")
    assert command(["mixtral-8x7b"]) == 0
    shown = capsys.readouterr().out
    assert "46,702,792,704" in shown and "experts" in shown and "MFLOP per token, in windows of 4,096" in shown

    given = [
        "mixtral-8x7b",
        "--model.layers",
        "2",
        "--model.options",
        "gqa.qk_norm",
        "True",
        "--sequence",
        "128",
        "--json",
    ]
    assert command(given) == 0
    told = json.loads(capsys.readouterr().out)
    config = resolve(ModelSection(preset="mixtral-8x7b", layers=2, options={"gqa.qk_norm": True}))
    counts = count(config)
    assert told["total"] == counts.total == sum(part["total"] for part in told["parts"].values())
    assert told["active"] == counts.active == sum(part["active"] for part in told["parts"].values())
    assert (told["sequence"], told["flops_per_token"]) == (128, counts.flops_per_token(128))
    with pytest.raises(UsageError, match="did you mean 'mixtral-8x7b'"):
        command(["mixtral-8x7"])
    for sequence in ("0", "-5"):
        with pytest.raises(UsageError, match=rf"--sequence: {sequence} is not from 1"):
            command(["mixtral-8x7b", "--model.layers", "2", "--sequence", sequence])


def test_flops_by_hand() -> None:
    """Mixtral: 6 per weight that a token is multiplied with, and 12 * heads * head_dim * S / 2 per layer of scores."""
    counts = count(resolve(ModelSection(preset="mixtral-8x7b")))
    per_layer = 4096 * 4096 * 2 + 2 * 4096 * 1024 + 4096 * 8 + 2 * 3 * 4096 * 14336
    weights = 32 * per_layer + 32_000 * 4096
    scores = 32 * 12 * 4096 * 2048 / 2
    assert counts.flops_per_token(2048) == pytest.approx(6 * weights + scores, rel=1e-3)


def test_the_page_names_every_preset_and_its_numbers() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    section = page.partition("## Presets")[2].partition("\n## ")[0]
    for name in presets():
        assert f"`{name}`" in section
    for name, total, active in re.findall(r"^\| `([\w-]+)` \| ([\d,]{10,}) \| ([\d,]{10,}) \|", section, re.MULTILINE):
        counts = count(resolve(ModelSection(preset=name)))
        assert (f"{counts.total:,}", f"{counts.active:,}") == (total, active)
    for name, total, active in (("tiny", 5.2, 3.9), ("small", 47.2, 14.2), ("stable", 55.9, 22.9)):
        counts = count(resolve(ModelSection(preset=name), 16_384))
        assert (round(counts.total / 1e6, 1), round(counts.active / 1e6, 1)) == (total, active)
