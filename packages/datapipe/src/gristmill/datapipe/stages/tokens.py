"""From text to tokens: a tokenizer for the run, and each document's text as the edits leave it, tokenised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.base.errors import GristmillError
from gristmill.base.files import write_text
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.policy import Edit
from gristmill.datapipe.text import spans
from gristmill.datapipe.workflow.quarantine import marks_in
from gristmill.datapipe.workflow.stage import Inputs, Stage, Step
from gristmill.shards.manifest import numpy_dtype
from gristmill.shards.tokenizer import load_tokenizer, tokenizer_info


@dataclass(frozen=True)
class TokenizerConfig:
    vocabulary: int = 8192
    characters: int = 20_000_000
    """How much text the merges are learned from: whole documents, spread evenly over the run."""


class TrainTokenizer(Step):
    """tokenizer/tokenizer.json: byte-level BPE learned from this run's documents, for models too small for more.

    It learns the text as the edits leave it: what is masked in the shards must not stand in their vocabulary.
    """

    name, folder, version = "tokenizer", "tokenizer", 2
    libraries = ("tokenizers",)

    def __init__(self, config: TokenizerConfig, edits: Sequence[Edit] = ()) -> None:
        self.config = {"bpe": config, "edits": tuple(edits)}
        self._bpe, self._edits = config, tuple(edits)
        self.requires = ("documents", *_annotations(edits))

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self._bpe.vocabulary, special_tokens=["<|endoftext|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        tokenizer.train_from_iterator(self._texts(inputs), trainer)
        write_text(out / "tokenizer.json", tokenizer.to_str(pretty=True))
        return {"vocabulary": tokenizer.get_vocab_size()}

    def _texts(self, inputs: Inputs) -> Iterator[list[str]]:
        """Every so many-th document of the run, however it is cut into partitions."""
        parts, total, start = inputs.parts["documents"], 0, 0
        for part in parts:
            total += pc.sum(pc.utf8_length(inputs.part("documents", part, ("text",))["text"])).as_py() or 0
        step = max(1, -(-total // max(1, self._bpe.characters)))
        for part in parts:
            table = inputs.part("documents", part, ("text", "source"))
            previous = {name: inputs.part(name, part) for name in self.requires[1:]}
            rows = np.arange(-start % step, len(table), step)
            unknown = [row for other in previous.values() for row in marks_in(other.schema.metadata)]  # what to edit
            yield edited(table, previous, self._edits).take(np.setdiff1d(rows, unknown)).to_pylist()
            start += len(table)


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
        write_text(out / "tokenizer.json", tokenizer.to_str(pretty=True))
        return {"vocabulary": tokenizer.get_vocab_size()}


class Tokenise(Stage):
    """tokens: the token ids of each document as the edits leave it, their count, and the bytes of UTF-8 they stand for.

    No end-of-document token: the shard writer adds it. The edits are the policy's; nothing of them is stored elsewhere.
    """

    version = 4
    needs = ("tokenizer",)
    libraries = ("tokenizers",)

    def __init__(self, edits: Sequence[Edit] = (), name: str = "tokens") -> None:
        self.name, self.folder = name, f"annotations/{name}"
        self.config = {"edits": tuple(edits)}
        self._edits = tuple(edits)
        self.columns = ("text", "source") if any(edit.sources for edit in edits) else ("text",)
        self.requires = _annotations(edits)

    def setup(self, folders: Mapping[str, Path]) -> None:
        path = folders["tokenizer"] / "tokenizer.json"
        self._tokenizer, self._type = load_tokenizer(path), numpy_dtype(tokenizer_info(path).dtype)

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        texts = edited(table, previous, self._edits)
        pieces: list[np.ndarray] = []
        for start in range(0, len(texts), 256):
            encoded = self._tokenizer.encode_batch_fast(texts.slice(start, 256).to_pylist(), add_special_tokens=False)
            pieces += [np.array(encoding.ids, dtype=self._type) for encoding in encoded]
        counts = np.array([len(piece) for piece in pieces], np.int32)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        flat = np.concatenate(pieces) if pieces else np.zeros(0, self._type)
        tokens = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
        return pa.table({"tokens": tokens, "count": counts, "bytes": pc.binary_length(texts).cast(pa.int64())})


def _annotations(edits: Sequence[Edit]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(edit.column.partition(".")[0] for edit in edits))


def edited(table: pa.Table, previous: Mapping[str, pa.Table], edits: Sequence[Edit]) -> pa.Array:
    """The texts with each edit's spans cut or replaced, in the sources that it is for."""
    texts = table["text"].combine_chunks()
    columns = []
    for edit in edits:
        annotation, _, name = edit.column.partition(".")
        if name not in previous[annotation].column_names:
            raise GristmillError(f"edit: there is no column {edit.column}")
        found = previous[annotation][name].combine_chunks()
        if edit.sources:
            chosen = pc.is_in(table["source"], pa.array(edit.sources, pa.string())).combine_chunks()
            found = pc.if_else(chosen, found, pa.scalar([], found.type))
        columns.append((found, edit.replace))
    try:
        return spans.apply(texts, columns)
    except ValueError as error:
        raise GristmillError(f"edits: {error}") from None
