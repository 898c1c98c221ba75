"""How long a document is and what it is made of: characters, words, lines, and shares of character classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gristmill.datapipe.text.characters import DIGIT, IDEOGRAPH, LETTER, NEWLINE, SPACE, SYMBOL
from gristmill.datapipe.text.features import Features


def length(features: Features) -> dict[str, NDArray[np.float32] | NDArray[np.int32]]:
    """Columns characters, words, lines (counts), mean_word_length (characters), alphabetic, digits, symbols (shares of
    the characters that are not white space)."""
    counts = features.class_counts
    total = counts.sum(axis=1)
    visible = np.maximum(total - counts[:, SPACE] - counts[:, NEWLINE], 1)
    words = np.diff(features.word_offsets)
    in_words = counts[:, LETTER] + counts[:, DIGIT] + counts[:, IDEOGRAPH]
    return {
        "characters": total.astype(np.int32),
        "words": words.astype(np.int32),
        "lines": np.diff(features.line_offsets).astype(np.int32),
        "mean_word_length": (in_words / np.maximum(words, 1)).astype(np.float32),
        "alphabetic": ((counts[:, LETTER] + counts[:, IDEOGRAPH]) / visible).astype(np.float32),
        "digits": (counts[:, DIGIT] / visible).astype(np.float32),
        "symbols": (counts[:, SYMBOL] / visible).astype(np.float32),
    }
