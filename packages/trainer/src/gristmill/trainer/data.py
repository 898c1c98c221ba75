"""From published shards to tensors: the training order, the held-out documents, and how many bytes a document has.

B sequences, S positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import sha256_file
from gristmill.base.progress import Progress
from gristmill.shards import mixture, reader, resolve
from gristmill.shards.loader import Batch
from gristmill.shards.mixture import Mixture
from gristmill.shards.plan import Plan
from gristmill.shards.reader import Dataset
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.hub import load_tokenizer


class Example(NamedTuple):
    """inputs and targets int64; starts bool, true where a segment begins among the inputs; learnt bool, true where the
    target counts (None: everywhere)."""

    inputs_BS: torch.Tensor
    targets_BS: torch.Tensor
    starts_BS: torch.Tensor
    learnt_BS: torch.Tensor | None = None

    def rows(self, start: int, stop: int) -> Example:
        some = slice(start, stop)
        learnt_BS = None if self.learnt_BS is None else self.learnt_BS[some]
        return Example(self.inputs_BS[some], self.targets_BS[some], self.starts_BS[some], learnt_BS)


class Document(NamedTuple):
    """A held-out document: its tokens end in EOS; bytes of the text that is scored in UTF-8, None where that is not
    known; `learnt` is bool, true where a token is scored (None: everywhere)."""

    source: str
    id: str
    tokens: np.ndarray
    bytes: int | None
    learnt: np.ndarray | None = None

    @property
    def scored(self) -> int:
        """Tokens."""
        return len(self.tokens) if self.learnt is None else int(self.learnt.sum())


class TrainingData(NamedTuple):
    dataset: Dataset
    plan: Plan
    tokenizer: Path | None


def open_training(config: TrainConfig) -> TrainingData:
    """The dataset, the training order for the whole budget, and the tokenizer's file if there is one.

    What the order reads of a dataset elsewhere is fetched now, before anything starts.

    Raises:
        UsageError: no such mixture, or one that the dataset cannot fill.
        DataError: shards that are missing, or not what their manifest says.
    """
    dataset, _mixture, plan = resolve_data(config)
    if not (config.disk_gb and dataset.files.partial):  # else they come, checked, as the run goes
        with Progress("check shards", total=0, unit="files") as progress:
            dataset.require(plan.touched(config.first_sequence), progress.of, config.check_shards)
    return TrainingData(dataset, plan, find_tokenizer(config.tokenizer, dataset))


def resolve_data(config: TrainConfig) -> tuple[Dataset, Mixture, Plan]:
    """What a run would read. Of a dataset elsewhere only the manifests are fetched."""
    dataset = reader.open_dataset(config.data)
    chosen = mixture.load_mixture(config.mixture, search=[dataset.root / "mixtures"])
    plan = resolve.plan(
        chosen,
        dataset,
        config.batch.sequence,
        config.data_seed,
        config.first_sequence * config.batch.sequence + config.trained_tokens,
        pack=config.packing,
        match_repetition=config.match_repetition,
        unique_tokens=config.unique_tokens,
        align=config.batch.tokens,
    )
    smallest = min(stage.windows for stage in config.stages) * config.batch.sequence
    if odd := [phase for phase in plan.phases if smallest % phase.length]:
        raise UsageError(
            f"mixture {plan.mixture}: phase {odd[0].name!r} has sequences of {odd[0].length} tokens, and a step of "
            f"{smallest} (batch.sequence x batch.sequences, or x batch.ramp_from) is no multiple of that"
        )
    if config.first_sequence and any(phase.length != config.batch.sequence for phase in plan.phases):
        raise UsageError(
            f"mixture {plan.mixture}: first_sequence counts windows of batch.sequence "
            f"({config.batch.sequence}) tokens, and a phase has others; begin at 0"
        )
    return dataset, chosen, plan


def find_tokenizer(given: str, dataset: Dataset) -> Path | None:
    """The tokenizer.json given, or the data folder's own; None where there is neither.

    Raises:
        UsageError: the file given is not there.
        DataError: the file is not the tokenizer that the shards were written with.
    """
    if given and not Path(given).is_file():
        raise UsageError(f"--tokenizer {given}: no such file")
    path = Path(given) if given else dataset.root / "tokenizer.json"
    if not path.is_file():
        return None
    if sha256_file(path) != dataset.tokenizer.sha256:
        raise DataError(
            f"{path}: not the tokenizer of {dataset.root} (sha256 {dataset.tokenizer.sha256}); give --tokenizer FILE"
        )
    return path


def to_example(batch: Batch, device: torch.device) -> Example:
    """A loader's batch as tensors; tokens travel in the shards' narrow type and widen on the device."""
    tokens_BS = torch.from_numpy(batch.tokens_BS).to(device).long()
    starts_BS = torch.zeros(tokens_BS.shape[0], tokens_BS.shape[1] - 1, dtype=torch.bool)
    row, column = (torch.from_numpy(part) for part in batch.segments)
    starts_BS[row, column] = True
    learnt_BS = None if batch.learnt_BS is None else torch.from_numpy(batch.learnt_BS).to(device)
    return Example(tokens_BS[:, :-1], tokens_BS[:, 1:], starts_BS.to(device), learnt_BS)


def held_out(
    dataset: Dataset, split: str, tokens: int | None, tokenizer: Path | None, sources: Iterable[str] = ()
) -> list[Document]:
    """Whole documents of each source, in the published order (which is a hash's, so any prefix is a fair sample).

    Reads each source until it has `tokens` tokens (None: all of it). `sources`: all of them, if empty.
    """
    documents: list[Document] = []
    for name in sorted(sources or dataset.sources):
        taken, part = 0, dataset.sources[name].split(split)
        masks = (mask.tokens.astype(bool) for mask in part.documents("loss")) if part.masked else itertools.repeat(None)
        for (id, ids, meta), learnt in zip(part.documents(), masks):
            if tokens is not None and taken >= tokens:
                break
            taken += len(ids)
            size = meta.get("bytes") if learnt is None else None
            documents.append(Document(name, id, np.asarray(ids), size, learnt))
    return documents if tokenizer is None else count_bytes(documents, tokenizer)


def count_bytes(documents: list[Document], tokenizer: Path) -> list[Document]:
    """The documents with the UTF-8 length of their decoded text, EOS and what is not scored left out."""
    decoder = load_tokenizer(tokenizer)
    kept = [slice(None) if one.learnt is None else one.learnt[:-1] for one in documents]
    ids = [document.tokens[:-1][some].tolist() for document, some in zip(documents, kept)]
    texts = decoder.decode_batch(ids, skip_special_tokens=False)
    return [document._replace(bytes=len(text.encode("utf-8"))) for document, text in zip(documents, texts)]
