"""What a file or a setting may hold is refused before any work is done, in one line that names it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.support.tiny_heads import rubric

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json, write_json
from gristmill.scorer.backbone.states import Tokens
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.commands.evaluate import evaluate
from gristmill.scorer.commands.oracle import label
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads.distil import train_bundle
from gristmill.scorer.heads.evaluation import retest_reliabilities
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.tables import read_documents, read_parquet, write_parquet

GOOD = json.dumps({"id": "a", "text": "flour"}).encode() + b"\n"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=2)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("docs.jsonl", GOOD + b'{"text": "\xff"}\n', "not UTF-8"),
        ("docs.jsonl.gz", gzip.compress(GOOD * 1000)[:-20], "damaged, or not gzipped"),
        ("docs.jsonl.gz", GOOD, "damaged, or not gzipped"),
        ("docs.jsonl.gz", gzip.compress(GOOD)[:12] + b"\0" * 40, "damaged, or not gzipped"),
        ("docs.parquet", b"PAR1 and no more", "not readable as Parquet"),
    ],
    ids=["no UTF-8", "cut", "plain", "garbled", "no Parquet"],
)
def test_damaged_documents_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {said}"):
        read_documents(tmp_path / name)


def test_no_document_shares_the_id_that_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "web.crawl.jsonl"
    rows: list[dict[str, Any]] = [{"id": None, "source": None}, {}, {"id": 7, "source": "x"}]
    path.write_text("".join(json.dumps({"text": "flour", **row}) + "\n" for row in rows))
    documents = read_documents(path)
    assert documents["id"].to_pylist() == ["web.crawl.jsonl:1", "web.crawl.jsonl:2", "7"]
    assert documents["source"].to_pylist() == ["", "web", "x"]
    table = pa.table({"text": ["flour"] * 2, "id": pa.array([None, 7]), "source": pa.array([None, "x"])})
    write_parquet(table, tmp_path / "docs.parquet")
    documents = read_documents(tmp_path / "docs.parquet")
    assert documents["id"].to_pylist() == ["docs.parquet:0", "7"] and documents["source"].to_pylist() == ["", "x"]


@pytest.mark.parametrize(("column", "values"), [("text", [1, 2]), ("id", [["a"], ["b"]]), ("source", [b"\xff", b"a"])])
def test_columns_of_another_type_are_named(tmp_path: Path, column: str, values: list[Any]) -> None:
    write_parquet(pa.table({"text": ["a", "b"], column: values}), tmp_path / "docs.parquet")
    with pytest.raises(DataError, match=f"column {column} holds"):
        read_documents(tmp_path / "docs.parquet")


def test_grades_that_are_no_numbers_are_named() -> None:
    table = pa.table({"id": ["a"], "text": ["flour"], "vowels": ["good"], "noise": [1.0]})
    with pytest.raises(DataError, match="column 'vowels' holds string"):
        Labels.of(table, rubric())


def test_text_may_be_dictionary_encoded(tmp_path: Path) -> None:
    write_parquet(pa.table({"text": pa.array(["a", "b"]).dictionary_encode()}), tmp_path / "docs.parquet")
    assert read_parquet(tmp_path / "docs.parquet")["text"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("patience", 0), ("judge_epochs", 0), ("judge_width", 130), ("judge_width", 0), ("huber", 0.0),
        ("learning_rate", 0.0), ("learning_rate", float("inf")), ("judge_learning_rate", float("nan")),
        ("weight_decay", -1.0), ("judge_gain", float("nan")),
    ],
)  # fmt: skip
def test_settings_that_train_nothing_are_refused(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=name):
        TrainConfig(**settings)


def test_a_tokenizer_that_cuts_and_pads_reads_whole_documents(backbone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cuts"
    folder.mkdir()
    tokenizer = read_json(backbone / "tokenizer.json")
    tokenizer["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    tokenizer["padding"] = {
        "strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<pad>",
    }  # fmt: skip
    write_json(folder / "tokenizer.json", tokenizer)
    (folder / "config.json").write_bytes((backbone / "config.json").read_bytes())
    texts = ["flour and salt and water", "oats"]
    for given, plain in zip(Tokens(folder, 1, 64, 3)(texts), Tokens(backbone, 1, 64, 3)(texts)):
        np.testing.assert_array_equal(np.concatenate(given), np.concatenate(plain))


def test_windows_longer_than_the_model_has_positions(backbone: Path) -> None:
    positions = read_json(backbone / "config.json")["max_position_embeddings"]
    Tokens(backbone, 1, positions - 1, 3)
    with pytest.raises(UsageError, match=f"window_tokens: {positions} and a first token are more than the {positions}"):
        Tokens(backbone, 1, positions, 3)


def test_the_place_of_heads_is_looked_at_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    labels, nowhere = pa.table({"text": ["a"]}), tmp_path / "no backbone"
    with pytest.raises(UsageError, match=r"holds notes\.txt"):
        train_bundle(labels, rubric(), nowhere, tmp_path, TrainConfig())
    with pytest.raises(UsageError, match="is a file"):
        train_bundle(labels, rubric(), nowhere, tmp_path / "notes.txt", TrainConfig())


def test_a_file_is_not_written_over_a_folder(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UsageError, match="name a file to write"):
        evaluate(heads=nowhere, backbone=nowhere, labels=nowhere, output=tmp_path)
    with pytest.raises(UsageError, match="name a file to write"):
        evaluate(heads=nowhere, backbone=nowhere, labels=nowhere, output=nowhere, curve=tmp_path)
    with pytest.raises(UsageError, match="name a file to write"):
        label(input=nowhere, rubric=("general.toml",), model="none", output=tmp_path)


@pytest.mark.parametrize("section", [[], {"retest": ["r"]}, {"retest": {"dimensions": {"vowels": {"r": "high"}}}}])
def test_an_audit_of_another_form_is_refused(section: Any) -> None:
    if isinstance(section, dict):
        section |= {"rubric_sha": rubric().sha}
    with pytest.raises(DataError, match="not what `scorer audit-oracle` writes"):
        retest_reliabilities({"rubrics": {"planted": section}}, rubric())
