"""From texts to the states that heads read: the same few functions in training and in scoring, so the two cannot drift.

A document is read in windows, cut once; batches are packed by length; token 0 (the attention sink) never reaches a
head. Shapes: N documents, M windows, B batch, S sequence, T tokens of one window, D width (of states, or of scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from gristmill.base.errors import UsageError
from gristmill.base.files import read_object

# No text in any language needs more characters for a token, on average over a window.
CHARACTERS_PER_TOKEN = 20
EPSILON = 1e-6
MUCH_SHORTER = 0.97  # of a batch's longest row


class Tokens:
    """Texts to windows of token ids with a backbone's own tokenizer; every window begins with its first token.

    Raises:
        UsageError: the model has no positions for so many tokens.
    """

    def __init__(self, folder: Path, first_token: int, window_tokens: int, windows: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True  # text that spells a control token is still text
        # Some files carry what another program set: a model's maximum length, or a length to fill up to.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        positions = read_object(folder / "config.json").get("max_position_embeddings")
        if positions is not None and window_tokens >= positions:
            raise UsageError(
                f"window_tokens: {window_tokens} and a first token are more than the {positions} positions of {folder}"
            )
        self.first_token = first_token
        self.window_tokens = window_tokens
        self.windows = windows

    def __call__(self, texts: Sequence[str | None]) -> list[list[np.ndarray]]:
        """int32 windows per text; none for an empty one. See cut()."""
        return self.cut(texts)[0]

    def cut(self, texts: Sequence[str | None]) -> tuple[list[list[np.ndarray]], list[bool]]:
        """The same, and for each text whether part of it is in no window.

        A text of up to windows x window_tokens tokens is read whole, in as few windows as hold it, of equal length (but
        for one token). Of a longer one windows of window_tokens are read, evenly spaced from its beginning to its end.
        Where it has over CHARACTERS_PER_TOKEN characters for each of those tokens they are found by characters, so
        that a text of any size costs the same.
        """
        span = self.window_tokens * CHARACTERS_PER_TOKEN
        places = [place / max(self.windows - 1, 1) for place in range(self.windows)]
        read = ["" if text is None or text.isspace() else text for text in texts]
        long = [len(text) > span * self.windows for text in read]
        parts = [
            [text[start : start + span] for start in (int(place * (len(text) - span)) for place in places)]
            if spans
            else [text]
            for text, spans in zip(read, long)
        ]
        encoded = self._tokenizer.encode_batch_fast([part for own in parts for part in own], add_special_tokens=False)
        ids = iter(np.array(encoding.ids, dtype=np.int32) for encoding in encoded)
        windows: list[list[np.ndarray]] = []
        truncated: list[bool] = []
        for spans in long:
            if spans:
                found = [self._at(place, next(ids)) for place in places]
            else:
                found, spans = self._whole(next(ids), places)
            windows.append([np.append(np.int32(self.first_token), row) for row in found if len(row)])
            truncated.append(spans)
        return windows, truncated

    def _whole(self, ids_T: np.ndarray, places: list[float]) -> tuple[list[np.ndarray], bool]:
        if len(ids_T) > self.windows * self.window_tokens:
            return [self._at(place, ids_T) for place in places], True
        count = -(-len(ids_T) // self.window_tokens)
        bounds = [len(ids_T) * i // count for i in range(count + 1)] if count else []
        return [ids_T[start:end] for start, end in pairwise(bounds)], False

    def _at(self, place: float, ids_T: np.ndarray) -> np.ndarray:
        """The window at a place from 0, the beginning, to 1, the end."""
        start = int(place * max(len(ids_T) - self.window_tokens, 0))
        return ids_T[start : start + self.window_tokens]


def flatten(windows: Sequence[Sequence[np.ndarray]]) -> tuple[list[np.ndarray], np.ndarray]:
    """All windows one after the other, and the number of the document that each belongs to, int64 [M]."""
    rows = [row for own in windows for row in own]
    return rows, np.repeat(np.arange(len(windows)), [len(own) for own in windows])


def average_windows(values_MD: np.ndarray, tokens_M: np.ndarray, documents_M: np.ndarray, count: int) -> np.ndarray:
    """Scores of documents from those of their windows: the mean by tokens [N, D]; NaN where there is no window.

    tokens_M: of each window. documents_M: the document of each, below `count`, as flatten() gives them.
    """
    total_N = np.bincount(documents_M, weights=tokens_M, minlength=count)
    sums = [np.bincount(documents_M, weights=values_M * tokens_M, minlength=count) for values_M in values_MD.T]
    with np.errstate(invalid="ignore"):
        return np.stack(sums, axis=1) / total_N[:, None]


def batches(lengths: Sequence[int], budget: int, counts: Sequence[int] | None = None) -> list[np.ndarray]:
    """Row numbers packed longest first, so that rows x longest <= budget (a longer row goes alone); no empty rows. A
    batch that is half full takes none that is much shorter than its longest.

    counts: how many rows of this length each entry stands for, such as a document for its windows; they stay together.
    The same lengths and budget give the same batches, whatever ran before.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.lexsort((np.arange(len(sizes)), -sizes))[: int((sizes > 0).sum())]
    packed: list[np.ndarray] = []
    start, rows = 0, 0
    for end, entry in enumerate(order):
        rows += 1 if counts is None else int(counts[entry])
        padded, longest = rows * int(sizes[order[start]]), int(sizes[order[start]])
        wasteful = 2 * padded > budget and sizes[entry] < MUCH_SHORTER * longest
        if end > start and (padded > budget or wasteful):
            packed.append(order[start:end])
            start, rows = end, 1 if counts is None else int(counts[entry])
    return [*packed, order[start:]] if len(order) else []


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
    """What a head reads: float32, each token RMS-normalised, token 0 dropped, zero where the boolean mask [B, S-1] is.

    The first token's state is a sink with a norm a hundred times the others', and it would tell the head the length.
    """
    x_BSD = hidden_BSD[:, 1:].float()
    x_BSD = x_BSD * torch.rsqrt(x_BSD.square().mean(-1, keepdim=True) + EPSILON)
    mask_BS = mask_BS[:, 1:].bool().to(x_BSD.device)
    return x_BSD * mask_BS[..., None], mask_BS
