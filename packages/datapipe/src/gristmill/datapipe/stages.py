"""The stages and steps of the data side, one small class each: what it reads, what it writes, which kernel does it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.files import atomic_path
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.dedup import clusters, minhash
from gristmill.datapipe.dedup.minhash import MinHashConfig
from gristmill.datapipe.filters.language import LanguageConfig, LanguageIdentifier, model_path
from gristmill.datapipe.filters.length import length
from gristmill.datapipe.filters.repetition import repetition
from gristmill.datapipe.text.features import featurise
from gristmill.datapipe.workflow.stage import Inputs, Stage, Step
from gristmill.shards.manifest import numpy_dtype
from gristmill.shards.tokenizer import load_tokenizer, tokenizer_info

# Character classes come from Python's Unicode tables and normal forms from pyarrow's: another version, other words.
UNICODE = {"unicode": unicodedata.unidata_version}


class Language(Stage):
    """language: label, score."""

    name, folder, version = "language", "annotations/language", 1
    libraries = ("fasttext-community",)

    def __init__(self, config: LanguageConfig) -> None:
        self.config = {"characters": config.characters}  # the model counts by its content, not by its path
        self._language = config

    def files(self) -> Sequence[Path]:
        return (model_path(self._language),)

    def setup(self, folders: Mapping[str, Path]) -> None:
        self._identifier = LanguageIdentifier(model_path(self._language), self._language.characters)

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        labels, scores = self._identifier.identify(table["text"])
        return pa.table({"label": pa.array(labels, pa.string()), "score": pa.array(scores, pa.float32())})


class Heuristics(Stage):
    """heuristics: length and repetition measurements, from one featurisation."""

    name, folder, version = "heuristics", "annotations/heuristics", 1
    libraries = ("pyarrow",)
    config = UNICODE

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        features = featurise(table["text"])
        return pa.table({**length(features), **repetition(features)})


class Sketch(Stage):
    """sketch: the 128-bit identity of the words and the MinHash signature."""

    name, folder, version = "sketch", "annotations/sketch", 1
    libraries = ("pyarrow",)

    def __init__(self, config: MinHashConfig) -> None:
        self.config = {"minhash": config, **UNICODE}
        self._minhash = config

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        features = featurise(table["text"])
        signature = minhash.signatures(features, self._minhash)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(signature.reshape(-1)), self._minhash.permutations)
        identity = features.identity
        return pa.table({"identity_high": identity[:, 0], "identity_low": identity[:, 1], "signature": flat})


class ExactDuplicates(Step):
    """exact: cluster (global row of its first member), size."""

    name, folder, version = "exact", "annotations/exact", 1
    requires = ("sketch",)
    config: None = None

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        table = inputs.table("sketch", ("identity_high", "identity_low"))
        identity = np.stack([table["identity_high"].to_numpy(), table["identity_low"].to_numpy()], axis=1)
        cluster = clusters.exact_clusters(identity)
        write_aligned(inputs, "sketch", out, {"cluster": cluster, "size": clusters.sizes(cluster)})
        return {"documents": len(cluster), "duplicates": int((cluster != np.arange(len(cluster))).sum())}


@dataclass(frozen=True)
class NearConfig:
    minhash: MinHashConfig = field(default_factory=MinHashConfig)
    threshold: float = 0.7
    """Estimated Jaccard similarity from which two candidates count as near-duplicates."""


class NearDuplicates(Step):
    """near: cluster, size, similarity (with the cluster's first member)."""

    name, folder, version = "near", "annotations/near", 1
    requires = ("sketch",)
    libraries = ("scipy",)

    def __init__(self, config: NearConfig) -> None:
        self.config = config

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        column = inputs.table("sketch", ("signature",))["signature"].combine_chunks()
        signature = column.flatten().to_numpy().reshape(-1, self.config.minhash.permutations)
        keys = minhash.band_keys(signature, self.config.minhash)
        cluster, similarity = clusters.near_clusters(signature, keys, self.config.threshold)
        columns = {"cluster": cluster, "size": clusters.sizes(cluster), "similarity": similarity}
        write_aligned(inputs, "sketch", out, columns)
        return {"documents": len(cluster), "duplicates": int((cluster != np.arange(len(cluster))).sum())}


@dataclass(frozen=True)
class TokenizerConfig:
    vocabulary: int = 8192
    characters: int = 20_000_000
    """How much text the merges are learned from: whole documents, spread evenly over the run."""


class TrainTokenizer(Step):
    """tokenizer/tokenizer.json: byte-level BPE learned from this run's documents, for models too small for more."""

    name, folder, version = "tokenizer", "tokenizer", 1
    requires = ("documents",)
    libraries = ("tokenizers",)

    def __init__(self, config: TokenizerConfig) -> None:
        self.config = config

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.config.vocabulary, special_tokens=["<|endoftext|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        tokenizer.train_from_iterator(self._texts(inputs), trainer)
        with atomic_path(out / "tokenizer.json") as temporary:
            tokenizer.save(str(temporary))
        return {"vocabulary": tokenizer.get_vocab_size()}

    def _texts(self, inputs: Inputs) -> Iterator[list[str]]:
        share = self.config.characters // max(1, len(inputs.parts["documents"]))
        for part in inputs.parts["documents"]:
            texts = inputs.part("documents", part, ("text",))["text"]
            lengths = pc.utf8_length(texts).to_numpy()
            step = max(1, int(np.ceil(lengths.sum() / max(1, share))))
            yield texts.take(np.arange(0, len(texts), step)).to_pylist()


class Tokenise(Stage):
    """tokens: the token ids of each document (no end-of-document token: the shard writer adds it), and their count."""

    name, folder, version = "tokens", "annotations/tokens", 3
    needs = ("tokenizer",)
    libraries = ("tokenizers",)
    config: None = None

    def setup(self, folders: Mapping[str, Path]) -> None:
        path = folders["tokenizer"] / "tokenizer.json"
        self._tokenizer, self._type = load_tokenizer(path), numpy_dtype(tokenizer_info(path).dtype)

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        pieces: list[np.ndarray] = []
        for batch in table.to_batches(max_chunksize=256):
            encoded = self._tokenizer.encode_batch_fast(batch["text"].to_pylist(), add_special_tokens=False)
            pieces += [np.array(encoding.ids, dtype=self._type) for encoding in encoded]
        counts = np.array([len(piece) for piece in pieces], np.int32)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        flat = np.concatenate(pieces) if pieces else np.zeros(0, self._type)
        tokens = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
        return pa.table({"tokens": tokens, "count": counts})


class CopyTokenizer(Step):
    """tokenizer/tokenizer.json: the tokenizer that the user named, kept with the run."""

    name, folder, version = "tokenizer", "tokenizer", 1
    config: None = None

    def __init__(self, path: Path) -> None:
        self._path = path

    def files(self) -> Sequence[Path]:
        return (self._path,)

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._path))
        with atomic_path(out / "tokenizer.json") as temporary:
            tokenizer.save(str(temporary))
        return {"vocabulary": tokenizer.get_vocab_size()}


def write_aligned(inputs: Inputs, over: str, out: Path, columns: Mapping[str, Any]) -> None:
    """Whole-run columns cut into the partitions of `over`."""
    table, start = pa.table(dict(columns)), 0
    for part in inputs.parts[over]:
        with pq.ParquetFile(inputs.folders[over] / part) as file:
            rows = file.metadata.num_rows
        with atomic_path(out / part) as temporary:
            pq.write_table(table.slice(start, rows), temporary, compression="zstd")
        start += rows
