"""One vector per document from a frozen backbone: what semantic duplicates are found by.

It is the mean, over a document's tokens, of the states that a probe would read at one block, scaled to length one. Only
the blocks up to that one are loaded. Shapes: N documents, B batch, S sequence, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from gristmill.base.progress import Progress
from gristmill.scorer.backbone.hub import local_folder
from gristmill.scorer.backbone.staged import StagedBackbone
from gristmill.scorer.backbone.states import Tokens, batches, head_input, pad
from gristmill.scorer.config import PooledConfig


class Pooler:
    """A loaded backbone."""

    def __init__(self, backbone: StagedBackbone, tokens: Tokens, batch_tokens: int) -> None:
        self.backbone, self._tokens, self._batch_tokens = backbone, tokens, batch_tokens

    @classmethod
    def load(cls, backbone: str | Path, config: PooledConfig) -> Pooler:
        """Load the first blocks of a Hugging Face model: its folder, or its address on the Hub.

        Raises:
            UsageError: no model in the folder, an unknown dtype or device, or fewer blocks than `config.block`.
        """
        folder, block = local_folder(backbone), config.block
        staged = StagedBackbone.load(folder, (block, block), config.dtype, config.threads, device=config.device)
        return cls(staged, Tokens(folder, staged.identity.first_token, config.max_tokens, 1), config.batch_tokens)

    @property
    def width(self) -> int:
        return self.backbone.identity.width

    @torch.inference_mode()
    def states(self, texts: Sequence[str | None]) -> pa.FixedSizeListArray:
        """float16 [N, D] in the texts' order, each of length one; null for a text without tokens, and where a state is
        not finite."""
        rows = [own[0] if own else np.zeros(0, np.int32) for own in self._tokens(texts)]
        states_ND = np.zeros((len(rows), self.width), np.float16)
        packed = batches([len(row) for row in rows], self._batch_tokens)
        with Progress("states", total=len(packed), unit="batches") as progress:
            for done, batch in enumerate(packed, 1):
                ids_BS, mask_BS = pad([rows[i] for i in batch])
                x_BSD, kept_BS = head_input(self.backbone.first(ids_BS, mask_BS)[0], mask_BS)
                mean_BD = x_BSD.sum(1) / kept_BS.sum(1, keepdim=True)
                states_ND[batch] = torch.nn.functional.normalize(mean_BD).half().cpu().numpy()
                progress.update(done)
        none_N = np.array([len(row) == 0 for row in rows], bool) | ~np.isfinite(states_ND).all(1)
        return pa.FixedSizeListArray.from_arrays(pa.array(states_ND.reshape(-1)), self.width, mask=pa.array(none_N))
