"""Models in and out: folders, shards, the Hub, tokenizers, cards; what is refused, and how little memory it takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.hub_server import Hub
from tests.support.tiny_checkpoints import VOCAB, ours, preset, run_of, write_huggingface

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json, write_json
from gristmill.trainer import cli, exchange, loop
from gristmill.trainer.checkpoints import checkpoint, tensor_file
from gristmill.trainer.checkpoints.tensor_file import OnDisk, Unwritten
from gristmill.trainer.evaluation.evaluate import score
from gristmill.trainer.model import huggingface
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.huggingface import _config
from gristmill.trainer.run_folder import load_model


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder in several files, with a tokenizer. Tests copy what they alter."""
    folder = tmp_path_factory.mktemp("source") / "model"
    write_huggingface(ours(preset("debug-deepseek-v3")), folder, shard_bytes=60_000)
    byte_tokenizer(folder / "tokenizer.json")
    return folder


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def altered(folder: Path, to: Path, **values: Any) -> Path:
    """A copy whose config.json says other things."""
    copy(folder, to)
    config = read_json(to / "config.json")
    write_json(to / "config.json", {key: value for key, value in (config | values).items() if value != "gone"})
    return to


def test_the_commands_there_and_back(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, back = tmp_path / "run", tmp_path / "back"
    assert cli.import_(str(source), run) == 0
    assert "deepseek_v3, " in capsys.readouterr().out
    assert cli.export(run, back, shard_gb=60_000 / 1e9) == 0
    for name, tensor in tensor_file.read_folder(source).items():
        assert torch.equal(tensor.read(), tensor_file.read_folder(back)[name].read())
    assert read_json(back / "config.json") == read_json(source / "config.json")
    assert (back / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert read_json(back / "tokenizer_config.json")["eos_token"] == "<|endoftext|>"
    assert read_json(run / "run.json")["status"] == "imported"
    assert [path.name for path in tmp_path.iterdir()] == ["run", "back"] or len(list(tmp_path.iterdir())) == 2
    for command in (lambda: cli.import_(str(source), run), lambda: cli.export(run, back)):
        with pytest.raises(UsageError, match="there is something already"):
            command()
    with pytest.raises(UsageError, match="--mixture is missing"):
        loop.resume(run)


def test_an_imported_model_can_be_evaluated_and_its_window_chosen(source: Path, tmp_path: Path) -> None:
    from gristmill.trainer.data import Document

    exchange.import_model(str(source), tmp_path / "run", sequence=16)
    trained = load_model(tmp_path / "run", "cpu")
    assert (trained.sequence, trained.bos, trained.eos) == (16, VOCAB - 1, VOCAB - 1)
    ids = torch.arange(40, 50)
    (nll,) = score(trained.model, [Document("s", "d", ids.numpy(), 10)], 16, trained.bos)
    seen = torch.cat((torch.tensor([VOCAB - 1]), ids[:-1]))[None]
    wanted = torch.nn.functional.cross_entropy(trained.model.logits(seen)[0].detach(), ids, reduction="sum")
    assert nll == pytest.approx(wanted.item(), rel=1e-5)


def test_shards_are_no_larger_than_asked_and_the_index_is_right(tmp_path: Path) -> None:
    model = ours(preset("debug-qwen3"))
    whole, cut = (write_huggingface(model, tmp_path / name, size) for name, size in (("whole", 10**9), ("cut", 50_000)))
    assert [file.name for file in whole.glob("*.safetensors")] == ["model.safetensors"]
    index = read_json(cut / tensor_file.INDEX)
    files = sorted(file.name for file in cut.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values())) and files[0].endswith(f"-of-{len(files):05d}.safetensors")
    everything = load_file(whole / "model.safetensors")
    total = 0
    for file in files:
        tensors = load_file(cut / file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 50_000 or len(tensors) == 1
        total += size
        for name, tensor in tensors.items():
            assert index["weight_map"][name] == file and torch.equal(tensor, everything.pop(name))
    assert not everything and index["metadata"]["total_size"] == total


def test_one_tensor_at_a_time_is_in_memory(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, no more is held than the largest tensor of theirs, twice: the part that is written and the next."""
    alive: dict[int, int] = {}
    peak, largest = [0], max(tensor.read().nbytes for tensor in tensor_file.read_folder(source).values())
    real = OnDisk.read

    def read(self: OnDisk, *index: int | slice) -> torch.Tensor:
        part = real(self, *index)
        alive[id(part)] = part.nbytes
        peak[0] = max(peak[0], sum(alive.values()))
        weakref.finalize(part, alive.pop, id(part))
        return part

    monkeypatch.setattr(OnDisk, "read", read)
    exchange.import_model(str(source), tmp_path / "run")
    exchange.export_run(tmp_path / "run", tmp_path / "back")
    model = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    assert 0 < peak[0] <= 2 * largest < model / 5


def test_export_in_another_number_format(source: Path, tmp_path: Path) -> None:
    exchange.import_model(str(source), tmp_path / "run")
    cli.export(tmp_path / "run", tmp_path / "half", dtype="bfloat16")
    assert read_json(tmp_path / "half" / "config.json")["dtype"] == "bfloat16"
    before = tensor_file.read_folder(source)
    for name, tensor in tensor_file.read_folder(tmp_path / "half").items():
        kept = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16), name
        assert torch.equal(tensor.read(), before[name].read().to(tensor.dtype))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model_type": "llama"}, r"no family 'llama'; known: deepseek_v3, dots1, mixtral, qwen3_moe"),
        ({"attention_bias": True}, r"attention_bias = True"),
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config = \{'quant_method': 'fp8'\}"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, r"rope_parameters = \{'rope_type': 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters\.factor = None"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, r"original_max_position_embeddings = None"),
        ({"scoring_func": "softmax", "topk_method": "greedy"}, r"scoring_func = 'softmax', topk_method = 'greedy'"),
        ({"n_shared_experts": None}, r"n_shared_experts = None"),
        ({"moe_layer_freq": 2}, r"moe_layer_freq = 2"),
        ({"hidden_size": "gone"}, r"'hidden_size' is missing"),
        ({"topk_group": 1, "num_experts_per_tok": 5}, r"a shape that this model cannot have"),
        ({"num_hidden_layers": 4}, r"tensor 'model\.layers\.3\..*' is missing"),
        ({"q_lora_rank": None}, r"tensor 'model\.layers\.0\.self_attn\.q_proj\.weight' is missing"),
        ({"moe_intermediate_size": 40}, r"has the shape \[32, 64\], where config.json asks for \[40, 64\]"),
        ({"eos_token_id": "gone"}, r"eos_token_id is None"),
    ],
)
def test_what_cannot_be_read_is_named(source: Path, tmp_path: Path, values: dict[str, Any], told: str) -> None:
    folder = altered(source, tmp_path / "other", **values)
    (folder / "generation_config.json").unlink()
    with pytest.raises(DataError, match=told):
        exchange.import_model(str(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, r"max_window_layers = 1"),
        ({"num_hidden_layers": 4, "mlp_only_layers": [1]}, r"mlp_only_layers = \[1\]"),
        ({"decoder_sparse_step": 0}, r"config\.json: decoder_sparse_step is 0"),
        ({"mlp_only_layers": 5}, r"config\.json: mlp_only_layers is 5"),
        ({"num_experts": 0}, r"config\.json: num_experts is 0"),
        ({"sliding_window": "5"}, r"config\.json: sliding_window is '5'"),
        ({"num_key_value_heads": 3}, r"config\.json: a shape that this model cannot have: model\.heads"),
    ],
)
def test_what_qwen3_has_and_this_model_has_not(tmp_path: Path, values: dict[str, Any], told: str) -> None:
    write_huggingface(ours(preset("debug-qwen3")), tmp_path / "model")
    folder = altered(tmp_path / "model", tmp_path / "other", **values)
    with pytest.raises(DataError, match=told):
        huggingface.read(folder)


def test_files_that_are_not_whole_are_named(source: Path, tmp_path: Path) -> None:
    shard = sorted(source.glob("*.safetensors"))[1].name
    cut = copy(source, tmp_path / "cut")
    (cut / shard).write_bytes((source / shard).read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{shard}: not a whole safetensors file"):
        huggingface.read(cut)
    (cut / shard).unlink()
    with pytest.raises(DataError, match=rf"{shard}: no such file, though model\.safetensors\.index\.json names it"):
        huggingface.read(cut)
    for name in ("../outside.safetensors", "..", ".", "", 3):
        write_json(cut / tensor_file.INDEX, {"weight_map": {"model.norm.weight": name}})
        with pytest.raises(DataError, match=rf"index\.json: {re.escape(repr(name))} names no file of this folder"):
            huggingface.read(cut)
    (cut / "folder").mkdir()
    write_json(cut / tensor_file.INDEX, {"weight_map": {"model.norm.weight": "folder"}})
    with pytest.raises(DataError, match="folder: no such file"):
        huggingface.read(cut)
    (cut / "folder").rmdir()
    for file in (*cut.glob("*.safetensors"), cut / tensor_file.INDEX):
        file.unlink()
    (cut / "pytest_model.bin").write_bytes(b"a pickle")
    with pytest.raises(DataError, match="only safetensors are read, never pickles"):
        huggingface.read(cut)
    with pytest.raises(UsageError, match="no such folder"):
        exchange.import_model(str(tmp_path / "nowhere"), tmp_path / "run")


def test_tensors_that_have_no_place_are_named_and_a_second_tokens_layer_is_left_out(tmp_path: Path) -> None:
    model = ours(preset("debug-deepseek-v3"))
    folder = write_huggingface(model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    more = {
        "model.layers.3.eh_proj.weight": torch.zeros(64, 128),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    }
    save_file(tensors | more, folder / "model.safetensors")
    exchange.import_model(str(folder), tmp_path / "run")
    state = load_model(tmp_path / "run", "cpu").model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    save_file(tensors | {"model.layers.2.self_attn.q_b_proj.bias": torch.zeros(96)}, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"q_b_proj\.bias' belongs to nothing"):
        huggingface.read(folder)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"output_norm": True}, "model.output_norm"),
        ({"residual": True}, "model.residual"),
        ({"capacity_eval": 1.5}, "model.capacity_eval"),
        ({"pyramid": (8, 8)}, "model.pyramid"),
        ({"embedding_scale": 2.0, "tie_embeddings": True}, "model.embedding_scale with tie_embeddings"),
        ({"attention": ("gqa", "swa")}, "model.attention"),
        ({"router": "expert_choice"}, "model.router"),
        ({"shared_experts": 1}, "model.shared_experts"),
        ({"options": {"softmax.scale": 2.0}}, "model.softmax.scale"),
        ({"options": {"softmax.groups": 4}}, "model.softmax.groups_kept"),
    ],
)
def test_what_cannot_be_written_is_named_for_each_family(values: dict[str, Any], told: str) -> None:
    config = preset("debug-qwen3", **values)
    with pytest.raises(UsageError, match=rf"deepseek_v3: .*mixtral: .*qwen3_moe: .*{re.escape(told)}"):
        huggingface.family_of(config)


def test_what_transformers_would_run_otherwise_or_not_at_all_is_not_written() -> None:
    """YaRN without its temperature, which it applies where either weight is 0; groups too small for their two best."""
    both, one = {"mla.yarn_mscale": 0.0, "mla.yarn_mscale_all_dim": 0.0}, {"mla.yarn_mscale_all_dim": 0.5}
    for options in (both, one | {"mla.yarn_mscale": 0.0}, {"mla.yarn_mscale": 0.5, "mla.yarn_mscale_all_dim": 0.0}):
        config = preset("debug-deepseek-v3", options={"mla.yarn_factor": 4.0, **options})
        with pytest.raises(UsageError, match=r"deepseek_v3: model\.mla\.yarn_mscale;"):
            huggingface.family_of(config)
    sigmoid = {"router": "sigmoid", "shared_experts": 1}
    for experts, groups, refused in ((8, 8, True), (8, 4, False), (2, 1, False)):
        options = {"sigmoid.groups": groups, "sigmoid.groups_kept": groups}
        config = preset("debug-qwen3", **sigmoid, experts=experts, top_k=2, options=options)
        if not refused:
            assert huggingface.family_of(config).ARCHITECTURE == "Dots1ForCausalLM"
            continue
        with pytest.raises(UsageError, match=r"dots1: model\.sigmoid\.groups of one expert;"):
            huggingface.family_of(config)


def test_the_card_tells_where_a_model_is_from(source: Path, tmp_path: Path) -> None:
    record = exchange.import_model(str(source), tmp_path / "run")
    exchange.export_run(tmp_path / "run", tmp_path / "back")
    card = (tmp_path / "back" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert f"{record['parameters']:,} parameters" in card and f"imported from `{source}`" in card
    run = record | {
        "imported": None, "seed": 0,
        "data": {"mixture": "a`b", "content_id": "c0ffee" * 8, "sources": {"web": {}, "code": {}}},
    }  # fmt: skip
    write_json(tmp_path / "run" / "run.json", run)
    state = tmp_path / "run" / "checkpoints" / "step-00000000" / "state.json"
    write_json(state, read_json(state) | {"step": 8, "tokens": 1024})
    exchange.export_run(tmp_path / "run", tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text()
    assert "on 1,024 tokens in 8 steps: mixture `a'b` of `web`, `code`, shards `c0ffeec0ffeec0ff`" in card


def test_a_tokenizer_given_takes_the_place_of_the_runs_own(source: Path, tmp_path: Path) -> None:
    exchange.import_model(str(source), tmp_path / "run")
    other = byte_tokenizer(tmp_path / "other.json", special=("<end>",))
    (tmp_path / "run" / "chat_template.jinja").write_text("{{ messages }}")
    exchange.export_run(tmp_path / "run", tmp_path / "back", str(other))
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == "{{ messages }}"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<end>", 256)
    assert tokenizer.decode(tokenizer("a river").input_ids) == "a river"
    with pytest.raises(UsageError, match=r"nowhere\.json: no such file"):
        exchange.export_run(tmp_path / "run", tmp_path / "more", "nowhere.json")
    for size in (0.0, -1.0, float("nan"), float("inf"), 1e300):
        with pytest.raises(UsageError, match="--shard-gb"):
            exchange.export_run(tmp_path / "run", tmp_path / "more", shard_gb=size)
    (tmp_path / "no.json").write_text("neither")
    with pytest.raises(DataError, match=r"/no\.json: not a tokenizer\.json"):
        exchange.export_run(tmp_path / "run", tmp_path / "more", str(tmp_path / "no.json"))
    assert not (tmp_path / "more").exists()


def test_nothing_is_left_of_an_import_that_fails(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_weights", full)
    with pytest.raises(OSError):
        exchange.import_model(str(source), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_file_written_in_parts_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    """Narrow formats of odd lengths before wide ones, scalars, nothing, parts of another format, not contiguous."""
    wanted = {
        "bits": torch.tensor([True, False, True]),
        "half": torch.arange(5).to(torch.bfloat16),
        "wide": torch.arange(6, dtype=torch.float64).view(2, 3).t(),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 4),
    }
    parts = {
        name: Unwritten(tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: iter([tensor.double()]))
        for name, tensor in wanted.items()
    }
    parts["joined"] = Unwritten(torch.float32, (3, 2), lambda: iter([torch.ones(1, 2), torch.zeros(2, 2)]))
    tensor_file.write(tmp_path / "a.safetensors", parts, {"format": "pt"})
    got = load_file(tmp_path / "a.safetensors")
    assert got.keys() == parts.keys() and got["joined"].tolist() == [[1, 1], [0, 0], [0, 0]]
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)
        assert torch.equal(tensor_file.read_file(tmp_path / "a.safetensors")[name].read(), tensor)
    short = {"short": Unwritten(torch.float32, (3, 2), lambda: iter([torch.ones(1, 2)]))}
    with pytest.raises(ValueError, match="the parts of short are not of its size"):
        tensor_file.write(tmp_path / "b.safetensors", short, {})
    assert not (tmp_path / "b.safetensors").exists()


def test_a_run_of_ours_becomes_the_family_that_it_is_like(tmp_path: Path) -> None:
    for name, kind in (
        ("debug-qwen3", "qwen3_moe"),
        ("debug-mixtral", "mixtral"),
        ("debug-moonlight", "deepseek_v3"),
        ("stable", "dots1"),
    ):
        run = run_of(ours(preset(name)), tmp_path / name)
        exchange.export_run(run, tmp_path / f"{name}-out")
        assert read_json(tmp_path / f"{name}-out" / "config.json")["model_type"] == kind
        assert (
            read_json(run / "run.json")["model"]["options"] == json.loads(json.dumps(preset(name).options))
            or kind != "mixtral"
        )


def test_import_from_the_hub(source: Path, tmp_path: Path) -> None:
    """By commit; only what is read is fetched, and what cannot be fetched is one line."""
    code = """
import sys
from pathlib import Path
from gristmill.base.errors import GristmillError
from gristmill.trainer.exchange import import_model
for address in sys.argv[2:]:
    try:
        print(import_model(address, Path(sys.argv[1]))["imported"]["commit"])
    except GristmillError as error:
        print(f"refused: {error}")
"""
    with Hub() as hub:
        strange = {"pytorch_model.bin": b"a pickle \0", "consolidated.safetensors": b"other \0", "code.py": b"1"}
        files = {file.name: file.read_bytes() for file in source.iterdir()}
        commit = hub.put("mill/tiny", files | strange)
        hub.put("mill/tiny", {"config.json": b"{}"})
        addresses = ["hf://mill/other", "hf://mill", f"hf://mill/tiny@{commit}"]
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run"), *addresses],
            env=hub.environment(tmp_path / "hf"), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        other, no_name, tiny = done.stdout.splitlines()
        assert other.startswith("refused: hf://mill/other: cannot be downloaded")
        assert no_name.startswith("refused: hf://mill: an address on the Hub is")
        assert tiny == commit
        asked = {request.path.rpartition("/")[2] for request in hub.seen(r"/mill/tiny/resolve/")}
        assert asked == files.keys()
    state = load_model(tmp_path / "run", "cpu").model.state_dict()
    assert torch.equal(state["embedding_VD"], ours(preset("debug-deepseek-v3")).state_dict()["embedding_VD"])


def test_configs_go_there_and_back() -> None:
    """What a family can say of a model, it says without loss; losses' coefficients and defaults aside."""
    for name in ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "moonlight-16b-a3b", "moonlet-7b-a2b"):
        config = preset(name)
        family = huggingface.family_of(config)
        back = ModelConfig(**family.from_config(_config.checked(family.to_config(config, 4096), Path("config.json"))))
        assert huggingface.family_of(back) is family
        shape = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "experts", "top_k", "expert_width")
        rest = ("attention", "router", "rope_theta", "tie_embeddings", "norm_eps", "shared_experts", "dense_layers")
        for field in (*shape, *rest):
            assert getattr(back, field) == getattr(config, field), (name, field)
        assert back.moe_layers == config.moe_layers
        assert {key: back.options[key] for key in config.options if key in back.options and "rate" not in key} == {
            key: value for key, value in config.options.items() if key in back.options and "rate" not in key
        }


def test_quantised_weights_are_refused_even_where_config_does_not_tell(tmp_path: Path) -> None:
    folder = write_huggingface(ours(preset("debug-qwen3")), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    for kind in (torch.float8_e4m3fn, torch.int8):
        save_file(tensors | {name: tensors[name].to(kind)}, folder / "model.safetensors")
        with pytest.raises(DataError, match=rf"tensor '{re.escape(name)}' is of {kind}.*; write the model in bf16"):
            huggingface.read(folder)
