"""Training runs: accumulation, kill and resume to the bit, refusals, evaluation, and the command line."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from tests.support.crashing import crashing_at
from tests.support.training_runs import SMALL, config, events_of, same_weights
from tests.support.training_shards import write_shards

from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.base.files import read_json, write_json
from gristmill.shards import reader
from gristmill.shards.loader import Batches
from gristmill.trainer import cli, data, generate, loop
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import BatchConfig
from gristmill.trainer.data import Document, Example
from gristmill.trainer.evaluation import evaluate
from gristmill.trainer.lock import alone
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.segments import from_starts
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.config import GroupConfig, OptimizerConfig
from gristmill.trainer.step import accumulate, train_step


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def finished(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    loop.train(config(shards, folder))
    return folder


def small_model(**changes) -> Transformer:
    shape = {
        field: value for field, value in dataclasses.asdict(SMALL).items() if value is not None and field != "preset"
    }
    model = Transformer(ModelConfig(vocab=50, **shape | changes), precision.build("fp32"))
    model.initialise(0)
    return model


def random_example(rows: int, length: int, vocab: int = 50) -> Example:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, vocab, (rows, length + 1), generator=generator)
    return Example(ids[:, :-1], ids[:, 1:], torch.rand(rows, length, generator=generator) < 0.1)


def test_each_step_tells_what_it_read_of_each_source(finished, shards):
    """And all of them together what the order says in closed form."""
    plan = data.open_training(config(shards, finished)).plan
    steps = events_of(finished, "step")
    assert [sum(event["tokens_by_source"].values()) for event in steps] == [4 * 32] * 8
    read = {name: sum(event["tokens_by_source"][name] for event in steps) for name in ("even", "odd")}
    assert read == plan.token_counts() and read["odd"] > 0


@pytest.mark.parametrize("router", ["softmax", "sigmoid", "expert_choice"])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(micro, router):
    example = random_example(5, 24)  # 5 rows: the last micro-batch is smaller
    whole, parts = (small_model(sequence_loss=1.0, z_loss=1.0, router=router) for _ in range(2))
    expected, got = accumulate(whole, example, 5), accumulate(parts, example, micro)
    balance_apart = torch.tensor([0.0, 1, 1, 1])  # that one is of a micro-batch, and not linear in rows
    expected, got = (part._replace(losses_L4=part.losses_L4 * balance_apart) for part in (expected, got))
    for a, b in zip(expected, got):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    for (name, a), b in zip(whole.named_parameters(), parts.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=2e-7, rtol=1e-4, msg=name)


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_only_learnt_tokens_count_however_they_are_spread(micro):
    """Each learnt token weighs the same, wherever it stands; a micro-batch may have none."""
    generator = torch.Generator().manual_seed(4)
    example = random_example(5, 24)
    learnt_BS = torch.rand(5, 24, generator=generator) < torch.tensor([0.9, 0.5, 0.1, 0.0, 1.0])[:, None]
    model, other = small_model(sequence_loss=1.0, z_loss=1.0), small_model(sequence_loss=1.0, z_loss=1.0)
    got = accumulate(model, example._replace(learnt_BS=learnt_BS), micro)
    nll_BS = other.token_nll(*example[:2], from_starts(example.starts_BS))
    torch.testing.assert_close(got.nll, nll_BS[learnt_BS].mean(), atol=1e-5, rtol=1e-5)
    accumulate(other, example._replace(learnt_BS=learnt_BS), 5)
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=2e-7, rtol=1e-4, msg=name)


def test_every_expert_and_the_router_move_in_a_step():
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = train_step(model, optimizer.build(model, OptimizerConfig()), random_example(8, 32), 4, 1.0)
    assert result.router is not None and all(sum(layer) == pytest.approx(1, abs=1e-3) for layer in result.router.load)
    for name, value in model.state_dict().items():
        moved = (value != before[name]).flatten(1).any(1) if ".experts." in name else (value != before[name]).any()
        assert moved.all(), name


def test_segments_begin_at_the_eos_before_a_document(shards):
    opened = data.open_training(config(shards, Path("unused")))
    example = data.to_example(Batches(opened.plan, opened.dataset, 16 * 32).batch(0), torch.device("cpu"))
    assert example.inputs_BS.dtype == torch.int64 and example.inputs_BS.shape == (16, 32)
    assert torch.equal(example.inputs_BS[:, 1:], example.targets_BS[:, :-1])
    assert torch.equal(example.starts_BS, example.inputs_BS == 0)  # 0 is EOS, and ends nothing but documents here
    assert example.starts_BS.any()


def test_run_folder(finished):
    run = read_json(finished / "run.json")
    assert (run["format"], run["status"], run["step"], run["tokens"]) == ("gristmill.train/2", "done", 8, 1024)
    assert run["parameters"] > run["active_parameters"] > 0 and run["data"]["content_id"] and run["plan"]
    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["type"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 9))
    assert steps[0]["loss"] == pytest.approx(math.log(400), rel=0.02)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert np.array(steps[0]["router"]["load"]).shape == (2, 4) and len(steps[0]["router"]["entropy"]) == 2
    validations = [event for event in events if event["type"] == "validation"]
    assert [event["step"] for event in validations] == [4, 8]
    assert set(validations[0]["by_source"]) == {"even", "odd"} and validations[0]["bits_per_byte"] > 0
    assert [path.name for path in checkpoint.checkpoints(finished)] == ["step-00000006", "step-00000008"]


def test_a_crash_between_checkpoints_resumes_to_the_same_bits(shards, tmp_path, finished, monkeypatch):
    folder = tmp_path / "crashed"
    monkeypatch.setattr(loop, "train_step", crashing_at(5))
    with pytest.raises(OSError):
        loop.train(config(shards, folder))
    assert read_json(folder / "run.json")["status"] == "failed"
    with (folder / "events.jsonl").open("ab") as file:
        file.write('{"type": "samples", "text": "é'.encode()[:-1])  # a line cut short, within a character
    torch.manual_seed(999)  # resume must bring back the random state itself
    loop.resume(folder)
    assert same_weights(folder, finished)
    assert events_of(folder) == events_of(finished) and not events_of(finished, "resume")
    (resume,) = events_of(folder, "resume")
    assert resume == {"type": "resume", "step": 3, "device": "cpu", "processes": 1}


def test_what_a_run_goes_on_with(shards, tmp_path, monkeypatch):
    """Its run.json, without which nothing says what it is; its own tokenizer; the time of steps that were lost; and
    nobody else in its folder."""
    folder = tmp_path / "run"
    about = config(shards, folder, tokenizer=str(folder / "tokenizer.json"))
    monkeypatch.setattr(loop, "train_step", crashing_at(5))
    with pytest.raises(OSError):
        loop.train(dataclasses.replace(about, tokenizer=""))
    run = read_json(folder / "run.json")
    for content, told in ((None, "no such file, and checkpoints stand beside it"), ("{", "not JSON")):
        (folder / "run.json").unlink(missing_ok=True)
        if content:
            (folder / "run.json").write_text(content)
        with pytest.raises(DataError, match=rf"run\.json: {told}.*bring it back from a copy"):
            loop.train(about)
    write_json(folder / "run.json", run | {"seconds": run["seconds"] + 1000})
    with alone(folder), pytest.raises(GristmillError, match="another process trains here"):
        loop.train(about)
    record = loop.train(about)
    assert record["status"] == "done" and record["seconds"] > 1000


def test_routers_and_coefficients_that_adapt_resume_to_the_same_bits(shards, tmp_path, monkeypatch):
    options = {"sigmoid.rate": 0.01, "adapt.load": 1.1, "adapt.norm": 100.0}
    changes: dict = {"router": "sigmoid", "layers": 3, "dense_layers": 1, "pyramid": (4, 6), "capacity": 1.0}
    model = dataclasses.replace(SMALL, **changes, adapt=True, bungee=2.0, options=options)
    about = config(shards, tmp_path / "whole", model=model, validate_tokens=0)
    loop.train(about)
    events = events_of(about.folder, "step")
    assert [len(row) for row in events[-1]["router"]["load"]] == [4, 6]  # layers of unlike experts, dense ones left out
    assert all(0.0 < spread < 0.2 for spread in events[-1]["router"]["bias_range"])
    assert all(0.0 < share < 1.0 for share in events[-1]["router"]["dropped"])
    newest = checkpoint.latest(about.folder)
    assert newest is not None
    weights = load_file(newest / "model.safetensors")
    assert weights["coefficients.factors"][0] > 1 and weights["coefficients.factors"][1] == 1
    assert all(weights[f"blocks.{layer}.ffn.router.bias_E"].abs().max() > 0 for layer in (1, 2))

    again = dataclasses.replace(about, output=str(tmp_path / "again"))
    monkeypatch.setattr(loop, "train_step", crashing_at(5))
    with pytest.raises(OSError):
        loop.train(again)
    loop.resume(again.folder)
    assert same_weights(again.folder, about.folder)
    assert events_of(again.folder, "step") == events


def test_a_model_without_experts_trains_and_reports_no_router(shards, tmp_path):
    model = dataclasses.replace(SMALL, dense_layers=2)
    loop.train(config(shards, tmp_path / "dense", model=model, tokens=2 * 4 * 32))
    steps = [event for event in events_of(tmp_path / "dense") if event["type"] == "step"]
    assert len(steps) == 2 and all(event["router"] is None for event in steps)


def test_a_step_that_is_not_finite_moves_no_bias():
    model = small_model(router="sigmoid")
    with torch.no_grad():
        model.norm.weight.fill_(float("inf"))
    result = train_step(model, optimizer.build(model, OptimizerConfig()), random_example(4, 8), 4, 1.0)
    assert not math.isfinite(result.nll) and result.router is not None
    assert result.router.bias_range == [0.0, 0.0]


@pytest.mark.parametrize("rate", [None, 0.0])
def test_the_biases_of_frozen_routers_stay(rate):
    model = small_model(router="sigmoid")
    about = OptimizerConfig(router=GroupConfig(learning_rate=rate))
    train_step(model, optimizer.build(model, about), random_example(4, 8), 4, 1.0)
    biases = [value for name, value in model.state_dict().items() if name.endswith("bias_E")]
    assert len(biases) == 2 and all(bool(bias.any()) == (rate is None) for bias in biases)


def test_scores_are_of_the_model_outside_training():
    """Where experts choose tokens, or drop some, in training; the training mode is as before afterwards."""
    documents = [Document("s", str(i), np.arange(1, 17, dtype=np.uint16), 16) for i in range(3)]
    for changes in ({"router": "expert_choice"}, {"capacity": 0.3}):
        model = small_model(**changes)
        in_training = evaluate.score(model, documents, sequence=16, eos=0)
        assert model.training
        assert np.array_equal(in_training, evaluate.score(model.eval(), documents, sequence=16, eos=0))
        assert not model.training


def test_phases_of_longer_sequences_and_best_fit_resume_to_the_same_bits(shards, tmp_path, monkeypatch):
    phases = tmp_path / "phases.toml"
    text = (shards / "both.toml").read_text()
    late = '[[mixture.phase]]\nname = "late"\nfrom_share = 0.5\nweights = { odd = 1 }\n'
    phases.write_text(text + late + "sequence_length = 8\n")
    plans = ({"mixture": str(phases), "tokens": 8 * 4 * 32 + 4 * 256 * 32}, {"packing": "bestfit"})
    real, calls = loop.train_step, []

    def stop_at_fifth(*args):
        calls.append(args[2].inputs_BS.shape)
        if len(calls) == 5:
            raise OSError("the machine is gone")
        return real(*args)

    for number, changes in enumerate(plans):
        folder = tmp_path / f"whole-{number}"
        about = config(shards, folder, checkpoint_every=3, validate_tokens=0, **changes)
        about = dataclasses.replace(about, tokens=min(about.tokens, 8 * 4 * 32) if number else about.tokens)
        monkeypatch.setattr(loop, "train_step", real)
        loop.train(about)
        calls.clear()
        monkeypatch.setattr(loop, "train_step", stop_at_fifth)
        again = dataclasses.replace(about, output=str(tmp_path / f"stopped-{number}"))
        with pytest.raises(OSError):
            loop.train(again)
        loop.resume(again.folder)
        assert same_weights(folder, again.folder)
        assert len(set(calls)) == (1 if number else 2)


def test_a_phase_may_be_added_to_a_run_that_stands(shards, tmp_path, monkeypatch):
    """Stop, append a phase behind where the run stands, go on; one before it is refused."""
    own = tmp_path / "own.toml"
    text = (shards / "both.toml").read_text()
    own.write_text(text)
    folder = tmp_path / "run"
    about = config(shards, folder, mixture=str(own), validate_tokens=0)
    monkeypatch.setattr(loop, "train_step", crashing_at(5))
    with pytest.raises(OSError):
        loop.train(about)  # stands at its checkpoint after step 3: 12 sequences
    late = text + '[[mixture.phase]]\nname = "late"\nweights = {{ odd = 1 }}\nfrom_tokens = {}\n'
    own.write_text(late.format(11 * 32))
    with pytest.raises(DataError, match="before where it stood"):
        loop.resume(folder)
    own.write_text(late.format(12 * 32))
    assert loop.resume(folder)["status"] == "done"
    recorded = read_json(folder / "run.json")["plan"]["phases"]
    assert [(phase["name"], phase["first_sequence"]) for phase in recorded] == [("pretrain", 0), ("late", 12)]


def test_a_step_must_hold_whole_sequences_of_every_phase(shards, tmp_path):
    own = tmp_path / "own.toml"
    late = '[[mixture.phase]]\nname = "late"\nfrom_share = 0.1\nsequence_length = 64\n'
    own.write_text((shards / "both.toml").read_text() + late)
    batch = BatchConfig(sequence=32, sequences=3, micro=3)
    with pytest.raises(UsageError, match="'late' has sequences of 64 tokens, and a step of 96"):
        loop.train(config(shards, tmp_path / "run", mixture=str(own), batch=batch, tokens=200_000))
    assert not (tmp_path / "run").exists()


def test_the_order_has_the_seed_of_the_mixture_unless_the_run_has_one(shards, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text((shards / "both.toml").read_text().replace('name = "both"', 'name = "both"\nseed = 7'))
    for changes, seed in (({}, 7), ({"data_seed": 3}, 3), ({"seed": 5}, 7)):
        opened = data.open_training(config(shards, tmp_path / "run", mixture=str(own), **changes))
        assert opened.plan.seed == seed


def test_a_flipped_byte_is_named_before_training(shards, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    path = next(copy.glob("sources/odd/tokens/**/*.u16"))
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: altered"):
        loop.train(config(copy, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_left_alone_and_another_configuration_refused(shards, finished):
    before = (finished / "run.json").read_bytes()
    loop.train(config(shards, finished))
    assert (finished / "run.json").read_bytes() == before
    other = config(shards, finished, optimizer=OptimizerConfig(learning_rate=0.5))
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate = 0\.003, now 0\.5"):
        loop.train(other)


def test_a_damaged_checkpoint_is_named(shards, tmp_path):
    folder = tmp_path / "run"
    loop.train(config(shards, folder, validate_tokens=0))
    run = read_json(folder / "run.json")
    write_json(folder / "run.json", run | {"status": "interrupted"})
    newest = checkpoint.latest(folder)
    assert newest is not None
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors: its sha256"):
        loop.resume(folder)


def test_divergence_stops_with_the_mend(shards, tmp_path):
    wild = OptimizerConfig(learning_rate=1e9, warmup=0.0, clip=0.0)
    with pytest.raises(GristmillError, match=r"step \d: loss .*lower --optimizer.learning-rate"):
        loop.train(config(shards, tmp_path / "wild", optimizer=wild))
    assert read_json(tmp_path / "wild" / "run.json")["status"] == "failed"


def test_packed_scores_equal_documents_scored_alone():
    model = small_model()
    generator = np.random.default_rng(0)
    lengths = [1, 5, 16, 17, 40, 3, 16, 7] * 9  # more than one batch of rows; some longer than a window
    documents = [
        Document("s", str(i), generator.integers(1, 50, n).astype(np.uint16), n) for i, n in enumerate(lengths)
    ]
    got = evaluate.score(model, documents, sequence=16, eos=0)
    for document, nll in zip(documents, got):
        wanted = 0.0
        inputs = np.concatenate(([0], document.tokens[:-1])).astype(np.int64)
        for start in range(0, len(inputs), 16):
            x = torch.from_numpy(inputs[None, start : start + 16])
            y = torch.from_numpy(document.tokens[None, start : start + 16].astype(np.int64))
            wanted += torch.nn.functional.cross_entropy(model.logits(x)[0], y[0], reduction="sum").item()
        assert nll == pytest.approx(wanted, rel=1e-5)


def test_evaluate_counts_bytes_and_sums_per_document(shards, finished):
    summary = evaluate.evaluate(finished, str(shards))
    rows = parquet.read_table(finished / "evaluation.parquet").to_pylist()
    assert summary["documents"] == len(rows) and {row["source"] for row in rows} == {"even", "odd"}
    nats, size = sum(row["nll"] for row in rows), sum(row["bytes"] for row in rows)
    assert summary["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert read_json(finished / "evaluation.json") == summary
    from pydoc_data.topics import topics

    texts = [text.strip() for topic in sorted(topics)[:30] for text in topics[topic].split("\n\n") if text.strip()]
    by_id = {f"{'odd' if i % 2 else 'even'}-{i // 2}": text for i, text in enumerate(texts)}
    assert all(row["bytes"] == len(by_id[row["id"]].encode()) for row in rows)


def test_generate_is_seeded_and_export_loads(finished, tmp_path, capsys):
    text = generate.generate(finished, "The", tokens=12, seed=1)
    assert text.startswith("The") and text == generate.generate(finished, "The", tokens=12, seed=1)
    cli.export(finished, tmp_path / "hf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("The return").input_ids) == "The return" and tokenizer.eos_token_id == 0
    ids = torch.tensor([[0, *tokenizer("The return").input_ids]])
    from gristmill.trainer.run_folder import load_model

    with torch.no_grad():
        torch.testing.assert_close(load_model(finished).model.logits(ids), model(ids).logits, atol=1e-5, rtol=1e-4)


def test_wrong_tokenizer_and_wrong_keys_are_refused(shards, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="not the tokenizer"):
        data.find_tokenizer(str(tmp_path / "other.json"), reader.open_dataset(shards))
    (tmp_path / "run.toml").write_text("[optimizer]\nlearning_rat = 0.1\n")
    with pytest.raises(UsageError, match=r"optimizer\.learning_rat.*did you mean 'learning_rate'"):
        cli.run(["--config", str(tmp_path / "run.toml")])
    for wrong, named in (({"tokens": 5}, "batch"), ({"seed": 2**65}, "seed")):
        with pytest.raises(UsageError, match=named):
            config(shards, tmp_path, **wrong)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["compare", "--help"]])
def test_help_does_not_import_torch(arguments):
    code = f"import sys; sys.argv = ['trainer', *{arguments!r}]\nfrom gristmill.trainer import cli\ncli.main()"
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert process.returncode == 0 and "trainer" in process.stdout
    imported = set(re.findall(r"\|\s+(\w+)$", process.stderr, re.MULTILINE))
    assert "tyro" in imported and not imported & {"torch", "transformers", "pyarrow"}
