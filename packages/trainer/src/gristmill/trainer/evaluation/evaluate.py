"""How well a model predicts held-out documents: nats per document, bits per byte per source.

Documents are cut into windows of the training length and packed, several to a row, each its own segment: scored as
if alone. Every token is scored once, the first one from EOS. B rows, S positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gristmill.base.errors import DataError
from gristmill.base.files import atomic_path, write_json
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.trainer.data import Document, find_tokenizer, held_out
from gristmill.trainer.model.segments import from_starts
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.parallel.world import ALONE, World
from gristmill.trainer.run_folder import load_model

ROWS = 16  # windows scored at once


class _Rows(NamedTuple):
    """A packed batch; document_BS names each position's document, -1 where nothing is scored: where the row is only
    filled up, or the target is not learnt from."""

    inputs_BS: np.ndarray
    targets_BS: np.ndarray
    starts_BS: np.ndarray
    document_BS: np.ndarray


def evaluate(
    run: Path,
    data: str,
    split: str = "valid",
    tokens: int | None = None,
    tokenizer: str = "",
    device: str = "auto",
    threads: int = 1,
    which: str = "latest",
) -> dict[str, Any]:
    """Score a run's checkpoint on a dataset's documents; writes RUN/evaluation.json and RUN/evaluation.parquet.

    Args:
        tokens: bounds what is read of each source; None reads the whole split.
        which: the checkpoint: latest, best, or a step's number.
    """
    torch.set_num_threads(threads)
    trained = load_model(run, device, which=which)
    dataset = open_dataset(data)
    require_same_tokenizer(trained.run, dataset, data)
    file = find_tokenizer(tokenizer, dataset) or trained.tokenizer
    documents = held_out(dataset, split, tokens, file)
    nll = score(trained.model, documents, trained.sequence, trained.bos)
    summary = {
        "format": "gristmill.evaluation/1",
        "split": split,
        "tokens_of_each": tokens,
        "data": dataset.manifest.content_id,
        "step": trained.position.step,
        "tokens_trained": trained.position.tokens,
        "documents": len(documents),
        **summarise(documents, nll),
        "per_document": "evaluation.parquet",
    }
    _write_documents(run / "evaluation.parquet", documents, nll)
    write_json(run / "evaluation.json", summary)
    return summary


def score(
    model: Transformer, documents: Sequence[Document], sequence: int, eos: int, world: World = ALONE
) -> np.ndarray:
    """Negative log-likelihood of each document in nats, summed over the tokens that are scored: float64 [documents].

    The processes of a world take batches in turn, and each answers for all documents, with the same bits.
    """
    was_training = model.training
    model.eval()  # experts have another capacity outside training, and those that choose tokens there no longer do
    total = np.zeros(len(documents))
    device = model.embedding_VD.device
    packed = _pack(documents, sequence, eos)
    while together := list(itertools.islice(packed, world.size)):
        own = together[min(world.rank, len(together) - 1)]  # nobody may stand aside, as weights are gathered from all
        inputs, targets, starts = (torch.from_numpy(array).to(device) for array in own[:3])
        nll_WBS = world.gather(model.token_nll(inputs, targets, from_starts(starts))).cpu().double().numpy()
        for rows, nll_BS in zip(together, nll_WBS):
            real = rows.document_BS >= 0
            total += np.bincount(rows.document_BS[real], weights=nll_BS[real], minlength=len(documents))
    model.train(was_training)
    return total


def summarise(documents: Sequence[Document], nll: np.ndarray) -> dict[str, Any]:
    """{"loss", "bits_per_byte", "by_source": {source: {"loss", "bits_per_byte", "tokens", "bytes", "documents"}}}."""
    by_source = {}
    for source in sorted({document.source for document in documents}):
        chosen = [index for index, document in enumerate(documents) if document.source == source]
        by_source[source] = _totals([documents[index] for index in chosen], nll[chosen])
    overall = _totals(documents, nll)
    return {"loss": overall["loss"], "bits_per_byte": overall["bits_per_byte"], "by_source": by_source}


def require_same_tokenizer(run: dict[str, Any], dataset: Dataset, data: str) -> None:
    if dataset.tokenizer.sha256 != run["tokenizer"]["sha256"]:
        raise DataError(
            f"{data}: its tokens come from the tokenizer {dataset.tokenizer.name} ({dataset.tokenizer.sha256[:12]}), "
            f"the model's from {run['tokenizer']['name']} ({run['tokenizer']['sha256'][:12]}); "
            "tokenise it with the model's"
        )


def _totals(documents: Sequence[Document], nll: np.ndarray) -> dict[str, Any]:
    tokens = sum(document.scored for document in documents)
    known = [document.bytes for document in documents if document.bytes is not None]
    size = sum(known) if len(known) == len(documents) else None
    nats = float(nll.sum())
    return {
        "loss": nats / tokens if tokens else None,
        "bits_per_byte": nats / math.log(2) / size if size else None,
        "tokens": tokens,
        "bytes": size,
        "documents": len(documents),
    }


def _pack(documents: Sequence[Document], sequence: int, eos: int) -> Iterator[_Rows]:
    """First fit: a piece goes to the first row with room; when none has, the rows are handed out and new ones begun."""
    rows, used = _empty(sequence), np.zeros(ROWS, np.int64)
    for number, document in enumerate(documents):
        targets = document.tokens.astype(np.int64)
        inputs = np.concatenate(([eos], targets[:-1]))
        for start in range(0, len(targets), sequence):
            piece = slice(start, start + sequence)
            length = len(targets[piece])
            if not (fits := used + length <= sequence).any():
                yield rows
                rows, used = _empty(sequence), np.zeros(ROWS, np.int64)
                fits = used == 0
            row = int(fits.argmax())
            place = slice(used[row], used[row] + length)
            rows.inputs_BS[row, place] = inputs[piece]
            rows.targets_BS[row, place] = targets[piece]
            learnt = slice(None) if document.learnt is None else document.learnt[piece]
            rows.document_BS[row, place][learnt] = number
            rows.starts_BS[row, used[row]] = True
            used[row] += length
            if used[row] < sequence:
                rows.starts_BS[row, used[row]] = True  # what fills the row up is a segment of its own
    if used.any():
        yield rows


def _empty(sequence: int) -> _Rows:
    shape = (ROWS, sequence)
    return _Rows(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool), np.full(shape, -1))


def _write_documents(path: Path, documents: Sequence[Document], nll: np.ndarray) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(
        {
            "source": pa.array([document.source for document in documents], pa.string()),
            "id": pa.array([document.id for document in documents], pa.string()),
            "tokens": pa.array([document.scored for document in documents], pa.int64()),
            "bytes": pa.array([document.bytes for document in documents], pa.int64()),
            "nll": pa.array(nll, pa.float64()),
        }
    )
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)
