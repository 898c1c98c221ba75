"""Text of any size for bench workflow: words by Zipf's law, in sentences and paragraphs, as JSON lines.

A batch of words is one take() from the forms that words have (capital, comma, full stop, end of a paragraph): its
buffer is the text of all documents, one after another, and documents are offsets into it.
"""

from __future__ import annotations

import gzip
import itertools
import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError
from gristmill.datapipe.arrow import compute as pc

TABLE = 2**20
TAILS = (" ", ", ", ". ", r".\n\n")  # as JSON spells them
SENTENCE, PARAGRAPH, COMMA = 1 / 14, 1 / 5, 1 / 12
"""Chances that a word ends a sentence, that a sentence ends a paragraph, that a comma follows another word."""
WORDS_MEDIAN, WORDS_SPREAD, WORDS_LIMITS = 350, 1.0, (60, 8000)
"""Of a document: log-normal, from several hundred bytes to tens of thousands."""
MEMBER = 2**23
"""Bytes that are made at a time."""


class Generated:
    """Files of made-up text: the same bytes for the same number, whoever writes them."""

    def __init__(self) -> None:
        words = _words()
        chance = 1 / (np.arange(len(words)) + 2.7)  # Mandelbrot's form of Zipf's law
        shares = np.searchsorted(np.cumsum(chance / chance.sum()), (np.arange(TABLE) + 0.5) / TABLE)
        self._table = np.minimum(shares, len(words) - 1).astype(np.int32)
        forms = [
            (word.capitalize() if capital else word) + tail for word in words for capital in (0, 1) for tail in TAILS
        ]
        self._forms = pa.array(forms)
        self._bytes_per_word = float((chance / chance.sum()) @ np.array([len(word) + 1.2 for word in words]))

    def write(self, path: Path, number: int, size: float, documents: int | None = None) -> None:
        """About `size` bytes, or as many documents as are asked for."""
        generator = np.random.Generator(np.random.PCG64(number))
        with path.open("wb") as file:
            for first in itertools.count(0, 10**6):
                left = size - file.tell() if documents is None else documents * 4000.0
                lines = self._lines(generator, f"{number}-{first}", min(left, MEMBER), documents)
                file.write(lines)
                if documents is not None or size - file.tell() < 10_000:
                    return

    def _lines(self, generator: np.random.Generator, name: str, size: float, documents: int | None) -> pa.Buffer:
        count = documents or max(1, int(size / (self._bytes_per_word * WORDS_MEDIAN * np.exp(WORDS_SPREAD**2 / 2))))
        lengths = np.exp(generator.normal(np.log(WORDS_MEDIAN), WORDS_SPREAD, count)).astype(np.int64)
        ends = np.cumsum(np.clip(lengths, *WORDS_LIMITS))
        draw = generator.random((3, ends[-1]), np.float32)
        stops = draw[0] < SENTENCE
        stops[ends - 1] = True
        tail = np.where(stops, np.where(draw[1] < PARAGRAPH, 3, 2), np.where(draw[1] < COMMA, 1, 0))
        capital = np.concatenate([[True], stops[:-1]])
        word = self._table[(draw[2] * TABLE).astype(np.int32)]
        flat = self._forms.take(pa.array(8 * word + 4 * capital + tail))
        _, offsets, data = flat.buffers()
        bounds = np.frombuffer(offsets, np.int32)[np.concatenate([[0], ends])]
        texts = pa.StringArray.from_buffers(count, pa.py_buffer(bounds.tobytes()), data)
        heads = pa.array([
            f'{{"id":"{name}-{row}","url":"https://{name}.example.org/{row}","text":"' for row in range(count)
        ])  # fmt: skip
        joined = pc.binary_join_element_wise(heads, texts, '"}\n', "")
        _, offsets, data = joined.buffers()
        return data.slice(0, np.frombuffer(offsets, np.int32)[count])


class Repeated:
    """Files of a corpus's documents, from the first to the last and over again."""

    def __init__(self, corpus: Path) -> None:
        """Raises DataError where there is no *.jsonl.gz in the folder."""
        paths = sorted(corpus.glob("*.jsonl.gz"))
        self._lines = [line for path in paths for line in gzip.decompress(path.read_bytes()).splitlines(keepends=True)]
        if not self._lines:
            raise DataError(f"{corpus}: no *.jsonl.gz with documents in it")

    def write(self, path: Path, number: int, size: float, documents: int | None = None) -> None:
        start = number * 997 % len(self._lines)
        with path.open("wb") as file:
            for line in itertools.islice(itertools.cycle(self._lines), start, start + documents if documents else None):
                file.write(line)
                if documents is None and file.tell() >= size:
                    return


def _words() -> list[str]:
    """Those of Python's own comments and docstrings that stand there more than once, the most frequent first."""
    found = Counter[str]()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not {"site-packages", "test"} & set(path.parts):
            text = path.read_text(encoding="utf-8", errors="ignore")
            for docstring, comment in re.findall(r'"""(.*?)"""|(#[^\n]*)', text, re.DOTALL):
                found.update(re.findall(r"\b[a-z]{1,15}\b", docstring or comment))
    return [word for word, count in sorted(found.items(), key=lambda item: (-item[1], item[0])) if count > 1]
