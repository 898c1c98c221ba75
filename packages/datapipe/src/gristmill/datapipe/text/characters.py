"""A class and a case-folded form for every Unicode code point, as two arrays that compiled kernels index."""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

OTHER, LETTER, DIGIT, IDEOGRAPH, SPACE, NEWLINE, SYMBOL = range(7)
"""IDEOGRAPH: a character that is a word by itself, in scripts written without spaces."""

# Han, kana, and the South-East Asian scripts without word spaces (Unicode 15 blocks).
_WORD_PER_CHARACTER = (
    (0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x323AF),
)  # fmt: skip


@functools.cache
def tables() -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """(class, folded) by code point. Folding is the lower case where that is one character; marks count as letters."""
    size = 0x110000
    classes = np.zeros(size, np.uint8)
    folded = np.arange(size, dtype=np.uint32)
    for code in range(0x32400):  # all assigned planes but the private ones and the variation selectors
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "LM":
            classes[code] = LETTER
            lower = character.lower()
            if len(lower) == 1:
                folded[code] = ord(lower)
        elif category == "Nd":
            classes[code] = DIGIT
        elif category[0] == "N":
            classes[code] = LETTER
        elif category[0] == "S":
            classes[code] = SYMBOL
        elif character.isspace():
            classes[code] = SPACE
    for first, last in _WORD_PER_CHARACTER:
        block = classes[first : last + 1]
        block[block == LETTER] = IDEOGRAPH
    classes[[0x0A, 0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029]] = NEWLINE
    return classes, folded
