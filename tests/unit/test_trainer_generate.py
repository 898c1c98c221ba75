"""Text: what is remembered changes nothing, and neither do experts that stay on disk."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.tiny_checkpoints import VOCAB, ours, preset, run_of

from gristmill.base.config import to_mapping
from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json, write_json
from gristmill.trainer import cli
from gristmill.trainer.checkpoints import checkpoint, tensor_file
from gristmill.trainer.generate import generate, sample, window_start
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.expert_store import ExpertStore, StoredExperts
from gristmill.trainer.run_folder import load_model

MODELS: dict[str, ModelConfig] = {
    **{name: preset(name) for name in ("debug-qwen3", "debug-deepseek-v3", "debug-moonlight", "debug-deepseek-v2")},
    "swa": preset("debug-qwen3", attention=("swa", "gqa"), options={"swa.window": 4}),
    "kda": preset("debug-qwen3", attention=("kda", "gqa")),
    "nsa": preset(
        "debug-qwen3",
        attention=("nsa",),
        options={"nsa.block": 4, "nsa.stride": 2, "nsa.selected_block": 6, "nsa.selected": 3, "nsa.window": 5},
    ),
}
EOS = VOCAB - 1


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(ours(preset("debug-deepseek-v3")), tmp_path_factory.mktemp("runs") / "run")


def likeliest(model, ids: list[int], tokens: int, window: int) -> list[int]:
    """Greedy, reading the whole window anew for every token."""
    ids = list(ids)
    for _ in range(tokens):
        seen = torch.tensor([ids[window_start(len(ids), window) :]])
        with torch.no_grad():
            ids.append(int(model.logits(seen)[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("window", [200, 16, 1])
def test_memory_changes_nothing_within_a_window_and_over_its_end(name: str, window: int) -> None:
    model = ours(MODELS[name])
    start = [EOS, 3, 17, 99, 4, 200, 31]
    assert sample(model, start, 30, window, -1, 0.0, 1, 0) == likeliest(model, start, 30, window)


def test_a_window_moves_by_halves_and_is_never_too_long() -> None:
    for window in (1, 2, 3, 8, 9):
        starts = [window_start(length, window) for length in range(1, 50)]
        assert starts == sorted(starts) and starts[:window] == [0] * window
        assert all(0 < length - start <= window for length, start in enumerate(starts, 1))
        assert len(set(starts)) <= 2 + 50 // max(window // 2, 1)


def test_draws_are_seeded_and_end_with_the_document() -> None:
    model = ours(preset("debug-qwen3"))
    drawn = [sample(model, [EOS], 40, 64, -1, 1.0, 50, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    ending = drawn[0][5]
    stopped = sample(model, [EOS], 40, 64, ending, 1.0, 50, 1)
    assert stopped == drawn[0][: drawn[0].index(ending) + 1]


@pytest.mark.parametrize("temperature", [1e-6, 1e-45, 1e-300, 5e-324])
def test_a_temperature_near_0_takes_the_likeliest(temperature: float) -> None:
    model = ours(preset("debug-qwen3"))
    assert sample(model, [EOS], 20, 64, -1, temperature, 50, 0) == sample(model, [EOS], 20, 64, -1, 0.0, 50, 0)


def test_experts_on_disk_give_the_same_text(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cache for three experts of sixteen; and one for all, which reads each once."""
    whole = generate(run, "the river", tokens=40, temperature=0.0)
    one = 3 * 64 * 32 * 4
    with caplog.at_level(logging.INFO, "gristmill.trainer"):
        assert generate(run, "the river", tokens=40, temperature=0.0, expert_cache_gb=3.5 * one / 1e9) == whole
    assert "from memory" in caplog.text and "GB held" in caplog.text

    stored, memory = load_model(run, "cpu", 3 * one), load_model(run, "cpu")
    ids = torch.randint(0, VOCAB, (2, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(stored.model.logits(ids), memory.model.logits(ids), atol=1e-5, rtol=1e-5)
    assert stored.experts is not None and stored.experts.bytes_held <= 3 * one
    assert not any(name.endswith(("gate_up_EFD", "down_EDF")) for name in stored.model.state_dict())
    assert sum(isinstance(module, StoredExperts) for module in stored.model.modules()) == 2


def test_the_store_holds_what_was_used_last(run: Path) -> None:
    weights = tensor_file.read_file(checkpoint.weights_file(checkpoint.newest(run)))
    name, cpu = "blocks.1.ffn.experts", torch.device("cpu")
    one = 3 * 64 * 32 * 4
    store = ExpertStore(weights, 2 * one)
    store.add(name)
    stack = weights[f"{name}.gate_up_EFD"].read()
    for expert, hits in ((0, 0), (1, 0), (0, 1), (2, 1), (0, 2), (1, 2)):  # 2 drops 1, then 1 drops 2
        gate_up_FD, down_DF = store.get(name, expert, cpu)
        assert torch.equal(gate_up_FD, stack[expert]) and down_DF.shape == (64, 32)
        assert store.hits == hits and store.bytes_held <= 2 * one
    assert (store.misses, store.bytes_read) == (4, 4 * one)
    with pytest.raises(UsageError, match=r"holds no expert: one takes 2\.46e-05 GB"):
        ExpertStore(weights, one - 1).add(name)


def test_the_command_says_what_is_wrong(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.generate(run, "ab", tokens=3, temperature=0.0) == 0
    assert capsys.readouterr().out.startswith("ab")
    with pytest.raises(UsageError, match="--top-k"):
        generate(run, top_k=0)
    with pytest.raises(UsageError, match="--tokens"):
        generate(run, tokens=-1)
    with pytest.raises(UsageError, match="--prompt: not UTF-8"):
        generate(run, "\udcff")
    for temperature in (float("nan"), float("inf"), -0.5):
        with pytest.raises(UsageError, match="--temperature"):
            generate(run, temperature=temperature)
    with pytest.raises(UsageError, match="--seed"):
        generate(run, seed=2**70)
    (tmp_path / "no.json").write_text("no tokenizer")
    with pytest.raises(DataError, match=r"no\.json: not a tokenizer\.json"):
        generate(run, tokenizer=str(tmp_path / "no.json"))
    with pytest.raises(UsageError, match="--tokenizer nowhere: no such file"):
        generate(run, tokenizer="nowhere")
    other = byte_tokenizer(tmp_path / "other.json", special=("<end>", "<more>"))
    with pytest.raises(UsageError, match=r"other\.json: not the model's tokenizer, which is"):
        generate(run, "<more>", tokenizer=str(other))
    with pytest.raises(UsageError, match="expert-cache-gb"):
        generate(run, expert_cache_gb=-1.0)
    with pytest.raises(UsageError, match="holds no expert"):
        generate(run, expert_cache_gb=1e-9)
    with pytest.raises(UsageError, match="no training run here"):
        generate(tmp_path)
    record = read_json(run / "run.json")
    for broken in ([], {"format": record["format"]}, record | {"model": None}):
        write_json(tmp_path / "run.json", broken)
        with pytest.raises(DataError, match=r"run\.json: .*bring it back from a copy"):
            generate(tmp_path)
    file = checkpoint.newest(run) / "model.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(DataError, match="its sha256 is not the one"):
        generate(run)
    file.write_bytes(kept)


@pytest.mark.parametrize("capacities", [(0.25, 0.0), (0.0, 0.5)], ids=["in training", "outside it"])
def test_experts_on_disk_have_the_capacity_of_those_in_memory(tmp_path: Path, capacities: tuple[float, float]) -> None:
    """That of training is not theirs; that outside it is."""
    config = preset("debug-qwen3", capacity=capacities[0], capacity_eval=capacities[1])
    run = run_of(ours(preset("debug-qwen3")), tmp_path / "run")  # a family has no word for capacity: it is put in here
    write_json(run / "run.json", read_json(run / "run.json") | {"model": to_mapping(config)})
    stored, memory = load_model(run, "cpu", 10**6).model, load_model(run, "cpu").model
    ids = torch.randint(0, VOCAB, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = memory.logits(ids)
        torch.testing.assert_close(stored.logits(ids), wanted, atol=1e-5, rtol=1e-5)
        dropless = ours(preset("debug-qwen3")).logits(ids)
    assert torch.allclose(dropless, wanted, atol=1e-4) == (not capacities[1])
