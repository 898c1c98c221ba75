"""Scorers of other makers: encoder classifiers and fastText, the same one by one and in batches, and ensembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from gristmill.base.errors import UsageError
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.scoring import others
from gristmill.scorer.scoring.encoder import SequenceClassifier, SequenceClassifierConfig
from gristmill.scorer.scoring.fasttext import FastTextScorer

TEXTS = ["short", "a longer text " * 30, "", "mittel länge 漢字 " * 4, "x" * 5000, "\0\ud7ff", "short"]


def write_classifier(folder: Path, labels: tuple[str, ...] = ("clean", "toxic"), **more: Any) -> Path:
    write_tiny(folder)  # for its byte-level tokenizer
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, id2label=dict(enumerate(labels)), pad_token_id=0,
        initializer_range=0.5, **more,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_batches_score_as_single_texts_do(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "m")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    classifier = SequenceClassifier(SequenceClassifierConfig(str(folder), "toxic", batch_tokens=256))
    scores = classifier.score(TEXTS)
    for text, score in zip(TEXTS, scores, strict=True):
        if not text:
            assert np.isnan(score)
            continue
        inputs = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            expected = float(model(**inputs).logits.softmax(1)[0, 1])
        assert score == pytest.approx(expected, abs=1e-5), text
    assert scores.dtype == np.float32 and scores[0] == pytest.approx(scores[6], abs=1e-6)
    assert len(classifier.score([])) == 0


def test_one_output_and_several_labels_at_once(tmp_path: Path) -> None:
    several = write_classifier(tmp_path / "several", ("a", "b", "c"), problem_type="multi_label_classification")
    sums = sum(SequenceClassifier(SequenceClassifierConfig(str(several), label)).score(["text"])[0] for label in "abc")
    assert sums != pytest.approx(1, abs=1e-3)
    single = write_classifier(tmp_path / "single", ("quality",))
    assert 0 < SequenceClassifier(SequenceClassifierConfig(str(single))).score(["text"])[0] < 1
    regression = write_classifier(tmp_path / "regression", ("grade",), problem_type="regression")
    grades = SequenceClassifier(SequenceClassifierConfig(str(regression))).score([f"text {n}" * n for n in range(1, 9)])
    assert np.isfinite(grades).all() and (grades < 0).any() | (grades > 1).any()


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "m")
    with pytest.raises(UsageError, match=r"no label 'toxik'.*'toxic'"):
        SequenceClassifier(SequenceClassifierConfig(str(folder), "toxik"))
    with pytest.raises(UsageError, match="dtype 'int8'"):
        SequenceClassifier(SequenceClassifierConfig(str(folder), "toxic", dtype="int8"))
    state = BertForSequenceClassification.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="no classifier there"):
        SequenceClassifier(SequenceClassifierConfig(str(folder), "toxic"))
    with pytest.raises(UsageError, match="nowhere"):
        SequenceClassifier(SequenceClassifierConfig(str(tmp_path / "nowhere"), "toxic"))


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fasttext = pytest.importorskip("fasttext")
    folder = tmp_path_factory.mktemp("fasttext")
    (folder / "train.txt").write_text("__label__hq flour bread mill\n__label__lq salt night\n" * 60)
    model = fasttext.train_supervised(str(folder / "train.txt"), dim=4, thread=1, verbose=0)
    model.save_model(str(folder / "quality.bin"))
    return folder / "quality.bin"


def test_fasttext_gives_the_labels_probability_of_the_text_as_one_line(quality: Path) -> None:
    scorer = FastTextScorer(quality, "hq")
    texts = ["flour bread", "salt\nnight\0salt", "", " \n", "flour\nbread", "unheard-of"]
    scores = scorer.score(texts)
    assert scores.dtype == np.float32 and scores[0] > 0.5 > scores[1] and scores[0] == scores[4]
    assert np.isnan(scores).tolist() == [False, False, True, True, False, False]
    other = FastTextScorer(quality, "lq").score(texts)
    assert scores[0] + other[0] == pytest.approx(1, abs=1e-3)


def test_others_are_opened_by_kind_and_place(quality: Path, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "m")
    given = others.parse([f"toxic=encoder:{folder}:toxic", f"hq=fasttext:{quality}:hq", "edu=encoder:org/model"])
    assert given[2] == ("edu", "encoder", Path("org/model"), "")
    opened = others.open_scorers(given[:2], ["vowels"])
    assert list(opened) == ["toxic", "hq"]
    for other in opened.values():
        assert np.isfinite(other.score(["flour"])).all() and np.isnan(other.score([""])).all()
    for one, said in (
        ("hq", "write NAME=encoder"),
        ("hq=bert:x", "write NAME=encoder"),
        ("two words=encoder:x", "write NAME=encoder"),
        ("vowels=encoder:x", "a column 'vowels' already"),
        ("judge=encoder:x", "a column 'judge' already"),
        ("edu=encoder:org/model", "org/model: no such folder"),
        (f"hq=fasttext:{quality}:high", "no label 'high'"),
        ("hq=fasttext:nowhere.bin:hq", "no such classifier"),
        (f"hq=fasttext:{folder / 'config.json'}:hq", "no fastText model"),
        (f"toxic=encoder:{folder}:nice", "no label 'nice'"),
    ):
        with pytest.raises(UsageError, match=said):
            others.open_scorers(others.parse([one]), ["vowels"])


def test_an_ensemble_speaks_of_ranks() -> None:
    columns = {"a": np.array([0.1, 0.2, 0.3, 0.4, np.nan]), "b": np.array([900.0, 900.0, -5.0, 1e9, 7.0])}
    mean, most = others.ensemble(columns, "mean"), others.ensemble(columns, "max")
    a, b = np.array([1, 3, 5, 7]) / 8, np.array([6, 6, 1, 9]) / 10
    np.testing.assert_allclose(mean, [*(a + b) / 2, np.nan])
    np.testing.assert_allclose(most, [*np.maximum(a, b), np.nan])


def test_an_ensemble_of_some_documents_speaks_of_ranks_in_a_sample() -> None:
    generator = np.random.default_rng(0)
    reference = {"a": generator.random(500), "b": np.append(generator.normal(size=500), np.nan)}
    columns = {"a": generator.random(90), "b": generator.normal(size=90)}
    whole = others.ensemble(columns, "mean", reference)
    parts = [
        others.ensemble({name: values[rows] for name, values in columns.items()}, "mean", reference)
        for rows in (slice(0, 7), slice(7, 90))
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert 0.4 < whole.mean() < 0.6 and (whole >= 0).all() and (whole <= 1).all()
