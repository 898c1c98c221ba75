"""Sequence classifiers by path, on tiny random models: the same scores one by one and in batches."""

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
from gristmill.scorer.scoring.encoder import SequenceClassifier, SequenceClassifierConfig

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
