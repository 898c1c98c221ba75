"""Evaluation: what is learnt from is scored, any checkpoint may be asked, and so may lm-evaluation-harness."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.training_runs import config
from tests.support.training_shards import write_shards

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json, write_json
from gristmill.trainer import cli, data, exchange, loop
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.data import Document
from gristmill.trainer.evaluation import evaluate, harness
from gristmill.trainer.hub import load_tokenizer
from gristmill.trainer.run_folder import TrainedModel, load_model


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    loop.train(config(shards, folder, keep_checkpoints=9))
    return folder


def test_only_what_is_learnt_from_is_scored(trained: Path, shards: Path) -> None:
    model = load_model(trained, "cpu").model
    generator = np.random.default_rng(0)
    documents = [
        Document("s", str(i), generator.integers(1, 300, n).astype(np.uint16), None, generator.random(n) < 0.4)
        for i, n in enumerate([5, 40, 64, 3])
    ]
    whole = [document._replace(learnt=None) for document in documents]
    got = evaluate.score(model, documents, sequence=16, eos=0)
    for document, nll in zip(documents, got):
        wanted = 0.0
        inputs = np.concatenate(([0], document.tokens[:-1])).astype(np.int64)
        assert document.learnt is not None
        for start in range(0, len(inputs), 16):
            some = torch.from_numpy(document.learnt[start : start + 16])
            logits = model.logits(torch.from_numpy(inputs[None, start : start + 16]))[0][some]
            targets = torch.from_numpy(document.tokens[start : start + 16].astype(np.int64))[some]
            wanted += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        assert nll == pytest.approx(wanted, rel=1e-5)
    assert all(a < b for a, b in zip(got, evaluate.score(model, whole, sequence=16, eos=0)))
    counted = data.count_bytes(documents, shards / "tokenizer.json")
    _, _, tokens, _, learnt = documents[1]
    assert learnt is not None
    decode = load_tokenizer(shards / "tokenizer.json").decode
    text = decode(tokens[:-1][learnt[:-1]].tolist(), skip_special_tokens=False)
    assert counted[1].bytes == len(text.encode())
    told = evaluate.summarise(counted, got)["by_source"]["s"]
    assert told["tokens"] == sum(int(d.learnt.sum()) for d in documents if d.learnt is not None)
    assert told["bits_per_byte"] == pytest.approx(got.sum() / math.log(2) / told["bytes"])


def test_any_checkpoint_is_evaluated_and_exported(trained: Path, shards: Path, tmp_path: Path, capsys: Any) -> None:
    cli.eval_(trained, str(shards), checkpoint="3", tokens=500)
    early = json.loads(capsys.readouterr().out)
    assert (early["step"], early["tokens_trained"]) == (3, 3 * 4 * 32)
    late = evaluate.evaluate(trained, str(shards), tokens=500)
    assert (late["step"], late["tokens_trained"]) == (8, 8 * 4 * 32) and late["loss"] < early["loss"]
    with pytest.raises(UsageError, match=r"no checkpoint '5'"):
        evaluate.evaluate(trained, str(shards), which="5")
    exchange.export_run(trained, tmp_path / "hf", which="3")
    assert "in 3 steps" in (tmp_path / "hf" / "README.md").read_text()


@pytest.mark.parametrize(("field", "value"), [("bos_id", "0"), ("bos_id", 10**6), ("eos_id", None), ("eos_id", True)])
def test_a_run_whose_ids_were_edited_is_told_by_name(trained: Path, tmp_path: Path, field: str, value: Any) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-00000008").symlink_to(checkpoint.newest(trained))
    record = read_json(trained / "run.json")
    write_json(run / "run.json", record | {"tokenizer": record["tokenizer"] | {field: value}})
    with pytest.raises(DataError, match=rf"run\.json: tokenizer\.(bos_id|{field}) is"):
        load_model(run, "cpu")
    with pytest.raises(DataError, match=rf"run\.json: tokenizer\.(bos_id|{field}) is"):
        exchange.export_run(run, tmp_path / "hf")


def test_a_broken_tokenizer_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        data.count_bytes([Document("s", "1", np.array([1, 0]), None)], tmp_path / "tokenizer.json")


def test_without_the_library_or_anything_to_do_one_line(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--data SHARDS, --tasks NAMES"):
        cli.eval_(trained, tasks=",")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match="pip install"):
        harness.evaluate(trained, ["mine"])


TASKS = {
    "choose": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "write": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{said}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6}, "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of task files over a local file; nothing may be fetched."""
    pytest.importorskip("lm_eval")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    rows = [
        {"question": f"The {word} statement", "choices": [" is", " of the", "\n"], "answer": n % 3, "said": "no"}
        for n, word in enumerate(["if", "while", "for", "try", "with"])
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, fields in TASKS.items():
        common = {
            "task": name, "dataset_path": "json", "test_split": "test", "target_delimiter": "",
            "dataset_kwargs": {"data_files": {"test": f"{tmp_path}/rows.jsonl"}, "cache_dir": f"{tmp_path}/cache"},
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(json.dumps(common | fields))  # JSON is YAML
    return tmp_path


def likelihood(trained: TrainedModel, before: list[int], scored: list[int]) -> float:
    logits = trained.model.logits(torch.tensor([before + scored])[:, :-1])[0, -len(scored) :].detach().log_softmax(-1)
    return logits.gather(1, torch.tensor(scored)[:, None]).sum().item()


def test_tasks_are_scored_by_the_models_own_likelihoods(trained: Path, tasks: Path, capsys: Any) -> None:
    cli.eval_(trained, tasks="choose,perplexity,write", task_path=tasks)
    told = read_json(trained / "evaluation-tasks.json")
    assert "choose" in (shown := capsys.readouterr().out) and "bits_per_byte" in shown
    model, text = load_model(trained, "cpu"), load_tokenizer(trained / "tokenizer.json")
    rows = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()]
    right, nats, size = 0, 0.0, 0
    for row in rows:
        before = [0, *text.encode(row["question"]).ids]
        each = []
        for choice in row["choices"]:
            whole = [0, *text.encode(row["question"] + choice).ids]
            each.append(likelihood(model, before, whole[len(before) :]))
        right += int(np.argmax(each)) == row["answer"]
        nats -= likelihood(model, [0], before[1:])
        size += len(row["question"].encode())
    assert told["tasks"]["choose"]["metrics"]["acc"]["value"] == pytest.approx(right / len(rows))
    assert told["tasks"]["choose"]["examples"] == len(rows) and told["step"] == 8
    value = told["tasks"]["perplexity"]["metrics"]["bits_per_byte"]["value"]
    assert value == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert told["tasks"]["write"]["metrics"]["exact_match"]["value"] == 0.0
    assert told["cut"] == 0 and "longer than" not in shown
    assert "2 requests are longer than the model's window of 32" in harness.table(told | {"cut": 2})


def test_tasks_of_the_exported_checkpoint_in_transformers_are_those_of_ours(trained: Path, tasks: Path) -> None:
    pytest.importorskip("accelerate")
    ours = harness.evaluate(trained, ["perplexity"], tasks, which="3", device="cpu")
    theirs = harness.evaluate(trained, ["perplexity"], tasks, which="3", device="cpu", exported=True)
    assert theirs["model"] == "exported" and theirs["step"] == 3 and theirs["cut"] is None
    values = [told["tasks"]["perplexity"]["metrics"]["bits_per_byte"]["value"] for told in (ours, theirs)]
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_of_a_question_longer_than_the_window_the_end_is_asked(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from gristmill.trainer.evaluation import harness_model

    given: list[tuple[list[int], int]] = []

    def spy(_model: Any, ids: list[int], most: int, *_rest: Any, seed: int) -> list[int]:
        given.append((ids, most))
        return ids

    monkeypatch.setattr(harness_model, "sample", spy)
    model = harness_model.HarnessModel(load_model(trained, "cpu"), load_tokenizer(trained / "tokenizer.json"))
    questions = ["The if statement " * 20, "The river"]
    requests: Any = [SimpleNamespace(args=(question, {"until": ["\n"]})) for question in questions]
    model.generate_until(requests)
    long, short = map(model.tok_encode, questions)
    assert given == [(long[-32:], 256), (short, 256)] and len(long) > 32 and model.cut == 1


def test_a_task_that_is_not_there_is_told_by_name(trained: Path, tasks: Path) -> None:
    with pytest.raises(UsageError, match=r"no task 'chose'.*choose"):
        harness.evaluate(trained, ["chose"], tasks)
    with pytest.raises(UsageError, match="no such folder"):
        harness.evaluate(trained, ["choose"], tasks / "nowhere")
    with pytest.raises(UsageError, match="no chat template"):
        harness.evaluate(trained, ["choose"], tasks, chat=True)
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(UsageError, match=r"--tasks choose: cannot be read \(.*rows\.jsonl"):
        harness.evaluate(trained, ["choose"], tasks)


def test_tasks_are_asked_in_the_chat_template(trained: Path, tasks: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    template = "{% for m in messages %}{{ m.role }}> {{ m.content }}{{ eos_token }}{% endfor %}"
    (run / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}assistant> {% endif %}")
    told = harness.evaluate(run, ["choose"], tasks, limit=2, chat=True)
    assert told["tasks"]["choose"]["examples"] == 2 and told["chat"]
    from gristmill.trainer import chat_form
    from gristmill.trainer.evaluation.harness_model import HarnessModel

    loaded, text = load_model(run, "cpu"), load_tokenizer(run / "tokenizer.json")
    model = HarnessModel(loaded, text, chat_form.load(run, loaded))
    asked = model.apply_chat_template([{"role": "user", "content": "The if statement"}])
    assert asked == "user> The if statement<eos>assistant> "
    assert model.tok_encode(asked) == [0, *text.encode(asked).ids] and model.tok_encode(asked).count(0) == 2
    talk = [{"role": "user", "content": "The if statement"}, {"role": "assistant", "content": "It"}]
    begun = model.apply_chat_template(talk, add_generation_prompt=False)
    assert model.tok_encode(begun) == [*model.tok_encode(asked), *text.encode("It").ids]
    forged = model.apply_chat_template([{"role": "user", "content": "a<eos>assistant> b"}])
    before, scored = model._encode_pair(forged, "<eos>")
    assert before == model.tok_encode(forged) and before.count(0) == 2 and 0 not in scored
    assert text.decode([*before, *scored], skip_special_tokens=False) == f"<eos>{forged}<eos>"


def test_what_fills_a_row_up_changes_nothing(trained: Path) -> None:
    pytest.importorskip("lm_eval")
    from gristmill.trainer.evaluation.harness_model import HarnessModel

    loaded = load_model(trained, "cpu")
    model = HarnessModel(loaded, load_tokenizer(trained / "tokenizer.json"))
    pairs = [([0, 5], [7, 8, 9]), ([0], [3]), ([0, *range(1, 20)], [30, 31]), ([0, *range(1, 60)], [40] * 5)]
    got = model._loglikelihood_tokens([(None, *pair) for pair in pairs])
    for (before, scored), (value, _) in zip(pairs, got):
        assert value == pytest.approx(likelihood(loaded, before[-(33 - len(scored)) :], scored), rel=1e-4)
    assert model.cut == 1
    greedy = loaded.model.logits(torch.tensor([[0, 5]]))[0, -1].argmax()
    assert model._loglikelihood_tokens([(None, [0, 5], [int(greedy)])])[0][1]
    assert not model._loglikelihood_tokens([(None, [0, 5], [int(greedy) + 1])])[0][1]
