"""Documents with text for bench loader, real or made up, and what is measured on them: packing, and writing shards."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from _loader_data import document_lengths, documents_table
from gristmill.base.errors import DataError
from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.packing import best_fit
from gristmill.shards.writer import SHARD_TOKENS, SourceSpec, write_source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = 32_000
END = "<|end|>"
AT_ONCE = 256  # documents in one encode_batch


@dataclass(frozen=True)
class Documents:
    """`lengths` in tokens, EOS included, of all; `texts` of some of them, and the tokenizer trained on these."""

    origin: str
    lengths: np.ndarray
    texts: list[str]
    tokenizer: Tokenizer


def corpus_files(corpus: Path | None) -> list[Path]:
    """Its *.jsonl.gz in name order; none of no corpus.

    Raises:
        DataError: a corpus that has none.
    """
    if corpus is None:
        return []
    if not (paths := sorted(corpus.glob("*.jsonl.gz"))):
        raise DataError(f"{corpus}: no *.jsonl.gz in it")
    return paths


def gather(paths: list[Path], quick: bool) -> Documents:
    """Some megabytes of each file or, without files, of made-up text.

    Raises:
        DataError: a line without text.
    """
    limit = 2**22 if quick else 2**24
    if not paths:
        texts = _made_up(limit)
        lengths = document_lengths(np.random.default_rng(9), 2**24) + 1
        return Documents("synthetic", lengths, texts, _trained(texts))
    texts = [text for path in paths for text in _texts(path, limit)]
    some = texts[:: 4 if quick else 8]
    tokenizer = _trained(some)
    firsts = range(0, len(texts), AT_ONCE)
    lengths = [len(found) + 1 for first in firsts for found in tokenizer.encode_batch(texts[first : first + AT_ONCE])]
    return Documents("real", np.array(lengths), some, tokenizer)


def _texts(path: Path, limit: int) -> Iterator[str]:
    """Texts of a file from its start, about `limit` characters of them."""
    total = 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            text = json.loads(line).get("text")
            if not isinstance(text, str):
                raise DataError(f"{path}, line {number}: no text; documents need a field `text`")
            yield text
            total += len(text)
            if total >= limit:
                return


def _made_up(characters: int) -> list[str]:
    """Words of random letters, the frequent ones as frequent as in any language (Zipf)."""
    rng = np.random.default_rng(8)
    letters = rng.integers(ord("a"), ord("z") + 1, (20_000, 12), np.uint8)
    words = [bytes(line[:size]).decode() for line, size in zip(letters, rng.integers(1, 13, len(letters)).tolist())]
    often = 1 / np.arange(1, len(words) + 1)
    lengths = document_lengths(rng, characters // 7)
    chosen = rng.choice(len(words), int(lengths.sum()), p=often / often.sum()).tolist()
    ends = np.cumsum(lengths).tolist()
    return [" ".join(words[word] for word in chosen[first:last]) for first, last in zip([0, *ends], ends)]


def _trained(texts: list[str]) -> Tokenizer:
    """A byte-level BPE like GPT-2's, trained on about four megabytes from all over the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    step = max(sum(map(len, texts)) // 2**22, 1)
    tokenizer.train_from_iterator(texts[::step], trainer)
    return tokenizer


def packing_fill(lengths: np.ndarray, length: int) -> float:
    """The part of best-fit rows that holds tokens, all documents in one shard."""
    rows = best_fit(np.cumsum(lengths), length)
    return int(lengths.sum()) / ((len(rows.bounds) - 1) * length)


def fit_rows(rounds: int, length: int) -> list[float]:
    """CPU milliseconds of best_fit on a full shard of documents of made-up lengths, one number a round."""
    ends = np.cumsum(document_lengths(np.random.default_rng(7), SHARD_TOKENS) + 1).astype("<u4")
    taken = []
    for _ in range(rounds + 1):
        started = time.process_time()
        best_fit(ends, length)
        taken.append(1000 * (time.process_time() - started))
    return taken[1:]


def writer_rounds(documents: Documents, folder: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Millions of tokens per CPU second: of write_source, and of encode_batch on the text of those tokens."""
    info = TokenizerInfo(name="bench", sha256="0" * 64, vocab_size=VOCABULARY, eos_id=0)
    pa.set_cpu_count(1)
    written, tokenised = [], []
    for turn in range(rounds + 1):
        tables, tokens, encoding = [], 0, 0.0
        for first in range(0, len(documents.texts), AT_ONCE):
            texts = documents.texts[first : first + AT_ONCE]
            started = time.process_time()
            found = documents.tokenizer.encode_batch(texts)
            encoding += time.process_time() - started
            ids = [np.asarray(one.ids, np.uint16) for one in found]
            lengths = np.array([len(one) for one in ids])
            tables.append(documents_table(f"text-{first}", np.concatenate(ids), lengths))
            tokens += int(lengths.sum()) + len(ids)
        started = time.process_time()
        write_source(folder, SourceSpec("text", info), tables)
        writing = time.process_time() - started
        shutil.rmtree(folder)
        if turn:
            written.append(tokens / writing / 1e6)
            tokenised.append(tokens / encoding / 1e6)
    return written, tokenised
