"""Any Hugging Face sequence classifier as one number per text: the probability of one label (quality, toxicity).

Texts are cut to the model's length and run from the longest to the shortest, so that a batch pads little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.scorer.backbone.staged import DTYPES, quiet


@dataclass(frozen=True)
class SequenceClassifierConfig:
    model: str = ""
    """Folder of a model, or its id on the Hub; only safetensors are read, and no code of the model's is run."""
    label: str = ""
    """The label whose probability is the score, as in the model's id2label; may be empty where there is one output."""
    tokens: int = 512
    """How much of each text is read, at most what the model can take."""
    batch_tokens: int = 16_384
    """Texts times the longest one's tokens, in one batch."""
    dtype: str = "float32"
    device: str = "cpu"
    revision: str | None = None


class SequenceClassifier:
    """Raises UsageError where the model cannot be loaded, has no safetensors, or has no such label."""

    def __init__(self, config: SequenceClassifierConfig) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if config.dtype not in DTYPES:
            raise UsageError(f"dtype {config.dtype!r}{nearest(config.dtype, DTYPES)}")
        try:
            with quiet():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(
                    config.model, revision=config.revision, trust_remote_code=False
                )
                self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                    config.model, revision=config.revision, dtype=DTYPES[config.dtype], use_safetensors=True,
                    trust_remote_code=False,
                )  # fmt: skip
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{config.model or '(no model)'}: no classifier there ({str(error).splitlines()[0]})"
            ) from None
        self._model.to(config.device).eval().requires_grad_(False)
        self._output = self._find(config)
        positions = getattr(self._model.config, "max_position_embeddings", None) or config.tokens
        self._tokens = min(config.tokens, positions, self._tokenizer.model_max_length)
        self._config = config

    def _find(self, config: SequenceClassifierConfig) -> int:
        labels: dict[str, int] = {name: int(index) for index, name in self._model.config.id2label.items()}
        if len(labels) == 1 and not config.label:
            return 0
        if config.label not in labels:
            raise UsageError(f"{config.model}: no label {config.label!r}{nearest(config.label, labels)}")
        return labels[config.label]

    @torch.inference_mode()
    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The label's probability for each text: by softmax over the labels, by the logistic function where the model
        has one output or may give several labels at once. A model for regression gives its output as it is. NaN for a
        text without tokens."""
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._tokens)["input_ids"] if texts else []
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        scores = np.full(len(texts), np.nan, np.float32)
        rows = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        start = 0
        while start < len(rows):
            many = max(1, self._config.batch_tokens // int(lengths[rows[start]]))
            batch = rows[start : start + many]
            inputs = self._tokenizer.pad({"input_ids": [encoded[row] for row in batch]}, return_tensors="pt")
            logits = self._model(**inputs.to(self._config.device)).logits.float()
            scores[batch] = self._chances(logits)[:, self._output].cpu().numpy()
            start += many
        return scores

    def _chances(self, logits: torch.Tensor) -> torch.Tensor:
        kind = self._model.config.problem_type
        if kind == "regression":
            return logits
        if logits.shape[1] == 1 or kind == "multi_label_classification":
            return logits.sigmoid()
        return logits.softmax(dim=1)
