"""From texts to the states that heads read: the same few functions in training and in scoring, so the two cannot drift.

A document's tokens are cut once; batches are packed by length; token 0 (the attention sink) never reaches a head.
Shapes: B batch, S sequence, T tokens of one document, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gristmill.base.progress import Progress
from gristmill.scorer.backbone.staged import StagedBackbone

# No text in any language needs more characters for a token, on average over a document's beginning.
CHARACTERS_PER_TOKEN = 20
EPSILON = 1e-6


class Tokens:
    """Texts to token ids with a backbone's own tokenizer, beginning with its first token."""

    def __init__(self, folder: Path, first_token: int, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True  # text that spells a control token is still text
        self.first_token = first_token
        self.max_tokens = max_tokens

    def __call__(self, texts: Sequence[str | None]) -> list[np.ndarray]:
        """int32 ids per text, at most max_tokens of the text after the first token. Empty texts give empty arrays."""
        limit = self.max_tokens * CHARACTERS_PER_TOKEN
        encoded = self._tokenizer.encode_batch_fast([(text or "")[:limit] for text in texts], add_special_tokens=False)
        result = []
        for text, encoding in zip(texts, encoded):
            if not (text or "").strip() or not encoding.ids:
                result.append(np.zeros(0, dtype=np.int32))
            else:
                result.append(np.array([self.first_token, *encoding.ids[: self.max_tokens]], dtype=np.int32))
        return result


def batches(lengths: Sequence[int], budget: int) -> list[np.ndarray]:
    """Row numbers packed longest first, so that rows x longest <= budget (a longer row goes alone); no empty rows.

    The same lengths and budget give the same batches, whatever ran before.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.lexsort((np.arange(len(sizes)), -sizes))
    packed: list[np.ndarray] = []
    start, filled = 0, int((sizes > 0).sum())
    while start < filled:
        count = max(1, budget // int(sizes[order[start]]))
        packed.append(order[start : min(start + count, filled)])
        start += count
    return packed


def pad(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, S] padded on the right with 0, and the mask [B, S] (1 for tokens), both int64."""
    width = max(len(row) for row in rows)
    ids_BS = torch.zeros((len(rows), width), dtype=torch.int64)
    mask_BS = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids_BS[index, : len(row)] = torch.from_numpy(row.astype(np.int64))
        mask_BS[index, : len(row)] = 1
    return ids_BS, mask_BS


def pad_states(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """States [T, D] of several documents as [B, S, D] with their mask [B, S]."""
    hidden_BSD = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths_B = torch.tensor([len(row) for row in rows])
    mask_BS = (torch.arange(hidden_BSD.shape[1])[None, :] < lengths_B[:, None]).long()
    return hidden_BSD, mask_BS


def head_input(hidden_BSD: torch.Tensor, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a head reads: float32, each token RMS-normalised, token 0 dropped, with the boolean mask [B, S-1].

    The first token's state is a sink with a norm a hundred times the others', and it would tell the head the length.
    """
    x_BSD = hidden_BSD[:, 1:].float()
    x_BSD = x_BSD * torch.rsqrt(x_BSD.square().mean(-1, keepdim=True) + EPSILON)
    mask_BS = mask_BS[:, 1:].bool()
    return x_BSD * mask_BS[..., None], mask_BS


@dataclass(frozen=True)
class Features:
    """Raw states of every document at both taps, [T, D] each in the backbone's dtype; empty documents have T = 0."""

    probe: list[torch.Tensor]
    judge: list[torch.Tensor]

    @property
    def lengths(self) -> list[int]:
        return [len(state) for state in self.probe]


def extract(backbone: StagedBackbone, rows: Sequence[np.ndarray], budget: int) -> Features:
    """Run every document through both stages and keep the states: training data for the heads."""
    width = backbone.identity.width
    dtype = next(backbone.model.parameters()).dtype
    probe = [torch.zeros((0, width), dtype=dtype) for _ in rows]
    judge = list(probe)
    packed = batches([len(row) for row in rows], budget)
    with Progress("extract", total=len(packed), unit="batches") as progress:
        for done, batch in enumerate(packed, 1):
            ids_BS, mask_BS = pad([rows[i] for i in batch])
            first, last = backbone.first(ids_BS, mask_BS)
            if last is None:
                last = backbone.second(first, mask_BS)
            for position, i in enumerate(batch):
                probe[i] = first[position, : len(rows[i])].clone()
                judge[i] = last[position, : len(rows[i])].clone()
            progress.update(done)
    return Features(probe, judge)
