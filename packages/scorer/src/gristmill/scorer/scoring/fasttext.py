"""A supervised fastText model as one number per text, the probability of one label: how DCLM chose its documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError

LABEL = "__label__"


class FastTextScorer:
    """Raises UsageError where the model cannot be read, or has no such label."""

    def __init__(self, model: Path, label: str) -> None:
        import fasttext

        if not model.is_file():
            raise UsageError(f"{model}: no such classifier; give a fastText .bin or .ftz")
        try:
            self._model: Any = fasttext.load_model(str(model))
        except ValueError as error:
            raise UsageError(f"{model}: no fastText model ({error})") from None
        labels = [name.removeprefix(LABEL) for name in self._model.get_labels()]
        if label not in labels:
            raise UsageError(f"{model}: no label {label!r}{nearest(label, labels)}")
        self._label, self._labels = LABEL + label, len(labels)

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The label's probability for each text, read as one line; NaN for a text without words."""
        scores = np.full(len(texts), np.nan, np.float32)
        for i, text in enumerate(texts):
            line = " ".join(text.replace("\0", " ").split())
            if line:
                labels, chances = self._model.predict(line, k=self._labels, on_unicode_error="replace")
                # A label whose chance rounds to nothing is not listed.
                scores[i] = dict(zip(labels, chances)).get(self._label, 0.0)
        return scores
