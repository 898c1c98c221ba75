"""Fine-tuning: on the answers of conversations, from runs and from imported models, and on what a mixture has left."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.crashing import crashing_at
from tests.support.training_runs import config, events_of, same_weights
from tests.support.training_shards import write_shards

from gristmill.base.errors import UsageError
from gristmill.base.files import read_json
from gristmill.shards.reader import open_dataset
from gristmill.trainer import cli, exchange, generate, loop
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.data import resolve_data
from gristmill.trainer.finetuning import finetune
from gristmill.trainer.finetuning.finetune_config import FinetuneConfig
from gristmill.trainer.hub import load_tokenizer
from gristmill.trainer.run_folder import load_model


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    loop.train(config(shards, folder))
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    lines = [{"prompt": f"What is {n} + {n}?", "completion": f"It is {2 * n}."} for n in range(80)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def tune(place: Path, output: Path, *flags: object) -> dict[str, Any]:
    cli.finetune([str(place), "--output", str(output), *map(str, flags)])
    return read_json(output / "run.json")


def begun(place: Path, *flags: object, **settings: Any) -> TrainConfig:
    """The configuration of a fine-tuning, its data in place."""
    origin, own = finetune.find(str(place)), FinetuneConfig(**settings)
    parsed = cli.cli.parse_config(TrainConfig, [*map(str, flags)], "t", "", finetune.defaults(origin, own))
    return finetune.prepare(origin, own, parsed)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.newest(folder) / "model.safetensors")


def test_conversations_are_a_run_like_any_other(trained: Path, chats: Path, tmp_path: Path) -> None:
    record = tune(
        trained, tmp_path / "run", "--chat", chats, "--epochs", 2, "--batch.sequence", 64, "--checkpoint-every", 0
    )
    about = record["config"]
    assert record["status"] == "done" and record["initialised_from"]["place"] == str(trained)
    assert record["model"] == read_json(trained / "run.json")["model"]
    assert about["packing"] == "bestfit" and about["batch"] == {
        **read_json(trained / "run.json")["config"]["batch"],
        "sequence": 64,
    }
    assert about["optimizer"]["learning_rate"] == pytest.approx(3e-4)
    windows = read_json(tmp_path / "run" / "run.json")["plan"]["sources"][0]["windows"]
    assert about["tokens"] == windows * 2 // 4 * 4 * 64  # two epochs, in whole steps
    losses = [event["loss"] for event in events_of(tmp_path / "run", "step")]
    assert len(losses) == windows * 2 // 4 and losses[-1] < losses[0]
    assert events_of(tmp_path / "run", "validation")
    assert any(not torch.equal(value, weights(tmp_path / "run")[name]) for name, value in weights(trained).items())


def test_the_loss_is_that_of_the_answers_alone(trained: Path, chats: Path, tmp_path: Path) -> None:
    tune(trained, tmp_path / "run", "--chat", chats, "--tokens", 4 * 64, "--batch.sequence", 64, "--valid-share", 0)
    model = load_model(trained, "cpu").model
    batch = next(iter(resolved(tmp_path / "run")))
    rows = torch.from_numpy(batch.tokens_BS.astype("int64"))
    nats, count = 0.0, 0
    for row, learnt in zip(rows, torch.from_numpy(batch.learnt_BS)):
        begins = [0, *[c for r, c in zip(*batch.segments) if torch.equal(rows[r], row)], 64]
        for start, stop in itertools.pairwise(begins):
            logits = model.logits(row[None, start:stop])[0].detach()
            some = learnt[start:stop]
            nats += torch.nn.functional.cross_entropy(
                logits[some], row[start + 1 : stop + 1][some], reduction="sum"
            ).item()
            count += int(some.sum())
    assert 0 < count < 4 * 64
    assert events_of(tmp_path / "run", "step")[0]["loss"] == pytest.approx(nats / count, rel=1e-4)


def resolved(run: Path) -> Any:
    from gristmill.shards.loader import Batches

    about = loop.from_mapping(TrainConfig, read_json(run / "run.json")["config"], "run.json")
    dataset, _mixture, plan = resolve_data(about)
    return Batches(plan, dataset, about.batch.tokens, about.first_sequence, prefetch=0)


def test_a_killed_fine_tuning_goes_on_to_the_bit(
    trained: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--chat", chats, "--epochs", 1.5, "--checkpoint-every", 2]
    tune(trained, tmp_path / "whole", *flags)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", crashing_at(6))
        with pytest.raises(OSError):
            tune(trained, tmp_path / "again", *flags)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again" / "data").rglob("*") if path.is_file()}
    assert checkpoint.position(checkpoint.newest(tmp_path / "again")).step > 0
    tune(trained, tmp_path / "again", *flags)
    assert same_weights(tmp_path / "whole", tmp_path / "again")
    assert before == {path: path.stat().st_mtime_ns for path in before}  # nothing is tokenised twice


def test_other_conversations_are_refused_before_anything_is_touched(trained: Path, chats: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copy(chats, tmp_path / "chats.jsonl"))
    tune(trained, tmp_path / "run", "--chat", mine)
    manifest = (tmp_path / "run" / "data" / "manifest.json").read_bytes()
    mine.write_text(mine.read_text().replace("What", "Who"))
    with pytest.raises(UsageError, match=r"holds a run on other conversations.*trainer resume"):
        tune(trained, tmp_path / "run", "--chat", mine)
    assert (tmp_path / "run" / "data" / "manifest.json").read_bytes() == manifest
    assert loop.resume(tmp_path / "run")["status"] == "done"


def test_an_export_has_the_template_that_was_trained_on(trained: Path, chats: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tune(trained, tmp_path / "run", "--chat", chats)
    exchange.export_run(tmp_path / "run", tmp_path / "hf")
    assert f"From the weights of `{trained}`" in (tmp_path / "hf" / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    talk = [{"role": "user", "content": "What is 3 + 3?"}, {"role": "assistant", "content": "It is 6."}]
    ids = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
    source = open_dataset(tmp_path / "run" / "data").sources["chat"]
    held = {d.id: d.tokens.tolist() for split in ("train", "valid") for d in source.split(split).documents()}
    assert list(ids) == held["chats.jsonl:4"]


def test_a_question_is_answered_in_the_template_that_was_trained_on(
    trained: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(trained, tmp_path / "run", "--chat", chats)
    given: list[list[int]] = []

    def spy(model: Any, ids: list[int], *rest: Any) -> list[int]:
        given.append(ids)
        return [*ids, 300, 301]

    monkeypatch.setattr(generate, "sample", spy)
    answer = generate.generate(tmp_path / "run", "What is 3 + 3?", chat=True)
    text = load_tokenizer(trained / "tokenizer.json")
    assert text.decode(given[0], skip_special_tokens=False) == "<eos>user:\nWhat is 3 + 3?<eos>\nassistant:\n"
    assert answer == text.decode([300, 301])
    with pytest.raises(UsageError, match="no chat template"):
        generate.generate(trained, "What is 3 + 3?", chat=True)


def test_a_models_own_template_is_taken_unless_it_is_refused(trained: Path, chats: Path, tmp_path: Path) -> None:
    exchange.export_run(trained, tmp_path / "hf")
    own = "{% for m in messages %}{{ m.role }}> {{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "hf" / "chat_template.jinja").write_text(own)
    tune(tmp_path / "hf", tmp_path / "run", "--chat", chats, "--batch.sequences", 2)
    recipe = open_dataset(tmp_path / "run" / "data").sources["chat"].manifest.recipe
    assert recipe["template"] == "own" and (tmp_path / "run" / "chat_template.jinja").read_text() == own
    tune(tmp_path / "hf", tmp_path / "plain", "--chat", chats, "--batch.sequences", 2, "--chat-template", "none")
    assert open_dataset(tmp_path / "plain" / "data").sources["chat"].manifest.recipe["template"] == "plain"
    (tmp_path / "hf" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}> {{ m.content }}\n{% endfor %}"
    )
    with pytest.raises(UsageError, match=r"no token of its own.*--chat-template none"):
        tune(tmp_path / "hf", tmp_path / "other", "--chat", chats)


def test_an_imported_model_is_fine_tuned_as_its_folder_is(trained: Path, chats: Path, tmp_path: Path) -> None:
    exchange.export_run(trained, tmp_path / "hf", dtype=torch.bfloat16)
    exchange.import_model(str(tmp_path / "hf"), tmp_path / "imported")
    flags = ["--chat", chats, "--batch.sequences", 2, "--tokens", 3 * 64, "--precision", "fp32"]
    for name in ("hf", "imported"):
        record = tune(tmp_path / name, tmp_path / f"{name}-run", *flags)
        assert record["model"]["vocab"] == read_json(trained / "run.json")["model"]["vocab"]
    assert same_weights(tmp_path / "hf-run", tmp_path / "imported-run")
    with pytest.raises(UsageError, match=r"not trained here.*--chat"):
        tune(tmp_path / "imported", tmp_path / "further", "--tokens", 1024)


def test_consolidation_reads_what_the_model_has_not(shards: Path, trained: Path, tmp_path: Path) -> None:
    record = tune(trained, tmp_path / "run", "--tokens", 4 * 4 * 32, "--optimizer.schedule", "linear")
    assert record["config"]["first_sequence"] == 32 and record["config"]["optimizer"]["learning_rate"] == 3e-3
    at = checkpoint.position(checkpoint.newest(tmp_path / "run"))
    longer = resolve_data(config(shards, tmp_path / "longer", tokens=12 * 4 * 32))[2]
    assert (at.next_sequence, at.plan, at.step, at.tokens) == (48, longer.identity(48), 4, 4 * 4 * 32)
    further = tune(tmp_path / "run", tmp_path / "further", "--tokens", 4 * 32)
    assert further["config"]["first_sequence"] == 48
    early = checkpoint.find(trained, "6")
    assert begun(early, "--output", tmp_path / "early", "--tokens", 128).first_sequence == 24


def test_text_that_was_read_is_not_read_again_unasked(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"even.* would be read a second time; [\d,]+ tokens are left; give --tokens"
    ) as told:
        begun(trained, "--output", tmp_path / "run", "--tokens", 10**6)
    left = int(re.findall(r"--tokens (\d+)", str(told.value))[0])
    about = begun(trained, "--output", tmp_path / "run", "--tokens", left)
    plan = resolve_data(about)[2]
    assert all(plan.units()[source.name] <= source.windows for source in plan.sources)
    with pytest.raises(UsageError, match="second time"):
        begun(trained, "--output", tmp_path / "run", "--tokens", left + about.batch.tokens)
    assert begun(trained, "--output", tmp_path / "run", "--tokens", 10**6, reread=True).tokens == 10**6
    earlier = ["--output", tmp_path / "run", "--tokens", 128, "--first-sequence", 16]
    with pytest.raises(UsageError, match=r"--first-sequence 16: .* has read the sequences before 32; .*--reread"):
        begun(trained, *earlier)
    assert begun(trained, *earlier, reread=True).first_sequence == 16


def test_another_order_is_not_gone_on_with(shards: Path, trained: Path, tmp_path: Path) -> None:
    for flags in (["--batch.sequence", 16], ["--data-seed", 9], ["--packing", "bestfit"]):
        with pytest.raises(UsageError, match="another order"):
            begun(trained, "--output", tmp_path / "run", "--tokens", 256, *flags)
    text = (
        shards / "both.toml"
    ).read_text() + "[[mixture.phase]]\nname = 'late'\nfrom_share = 0.5\nweights = {odd = 1}\n"
    (tmp_path / "phases.toml").write_text(text)
    loop.train(config(shards, tmp_path / "phases", mixture=str(tmp_path / "phases.toml")))
    with pytest.raises(UsageError, match="from_share"):
        begun(tmp_path / "phases", "--output", tmp_path / "run", "--tokens", 1024)


def test_settings_are_the_models_then_the_files_then_the_flags(trained: Path, chats: Path, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("seed = 3\n[optimizer]\nwarmup = 0.2\nfinal = 0.5\n[batch]\nsequences = 2\n")
    flags = ["--config", tmp_path / "a.toml", "--optimizer.final", 0.3, "--output", tmp_path / "run"]
    about = begun(trained, *flags, chat=(chats,))
    assert (about.seed, about.optimizer.warmup, about.optimizer.final) == (3, 0.2, 0.3)
    assert about.batch == dataclasses.replace(config(chats, trained).batch, sequences=2)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "name the model first"),
        (("--chat", "x.jsonl"), "name the model first"),
        (("RUN", "--output", "OUT"), "--tokens is missing"),
        (("RUN", "--tokens", "1024"), "--output is missing"),
        (("RUN", "--tokens", "1024", "--output", "RUN"), "own run"),
        (("RUN", "--chat", "CHAT", "--output", "OUT", "--data", "x"), "leave --data"),
        (("RUN", "--chat", "CHAT", "--output", "OUT", "--epochs", "0.01"), "more --epochs"),
        (("RUN", "--chat", "nowhere.jsonl", "--output", "OUT"), "no such file"),
        (("nowhere", "--chat", "CHAT", "--output", "OUT"), "no such folder"),
    ],
)
def test_wrong_usage_in_one_line(trained: Path, chats: Path, tmp_path: Path, flags: tuple[str, ...], told: str) -> None:
    names = {"RUN": str(trained), "OUT": str(tmp_path / "out"), "CHAT": str(chats)}
    with pytest.raises(UsageError, match=told):
        cli.finetune([names.get(flag, flag) for flag in flags])
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize("arguments", [["finetune", "--help"], ["finetune", "RUN", "--help"], ["eval", "--help"]])
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    code = f"import sys; sys.argv = ['trainer', *{arguments!r}]\nfrom gristmill.trainer import cli\ncli.main()"
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert process.returncode == 0 and "trainer" in process.stdout
    imported = set(re.findall(r"\|\s+(\w+)$", process.stderr, re.MULTILINE))
    assert "tyro" in imported and not imported & {"torch", "transformers", "pyarrow", "jinja2"}
