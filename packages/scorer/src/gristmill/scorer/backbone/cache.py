"""What heads read of windows, kept on disk: labels run through a backbone once, whatever is then trained on them.

CACHE/KEY/pools-3-6-8/part-SHA.safetensors   the mean over a window's tokens at each of these taps, float16
CACHE/KEY/states-12/part-SHA.safetensors     every token at this tap in the backbone's dtype, and their mean in float32

KEY stands for the backbone, its dtype, attention and kind of device, and the libraries that run it; a window is known
by the hash of its tokens. A part is written whole and named by the hash of its bytes, so a run that was killed leaves
parts that the next one goes on from. States are read through the file system's memory, so they need not fit in this
process's. In bfloat16 a window's states round as in the batch that it was first in: a cache that grew in steps may
differ from one filled at once in the last bits.
Shapes: M windows, K taps, B batch, S sequence, T tokens of one window, D width.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gristmill.base.errors import DataError
from gristmill.base.files import atomic_path, fingerprint, sha256_file
from gristmill.base.progress import Progress
from gristmill.scorer.backbone.staged import DTYPES, BackboneIdentity, StagedBackbone
from gristmill.scorer.backbone.states import batches, head_input, pad
from gristmill.scorer.config import TrainConfig

FORMAT = "gristmill.features/1"
PART_BYTES = 64 * 2**20


@dataclass(frozen=True)
class States:
    """What a head reads of each window at one tap: [T, D] views of files, and their means, which are not finite where
    a state is not."""

    rows: list[torch.Tensor]
    means_MD: torch.Tensor

    @property
    def tokens_M(self) -> np.ndarray:
        return np.array([len(row) for row in self.rows], dtype=np.int64)


class FeatureCache:
    """Features of one backbone's windows. `extracted` counts the windows that had to be run through it.

    load: gives the backbone with all blocks up to a tap; called where something is missing.
    """

    def __init__(
        self, folder: Path, identity: BackboneIdentity, config: TrainConfig, load: Callable[[int], StagedBackbone]
    ) -> None:
        device = config.device.partition(":")[0]
        key = [FORMAT, identity.fingerprint, config.dtype, config.attention, device, *_versions()]
        self.folder = folder / fingerprint(key)[:16]
        self.extracted = 0
        self._dtype, self._budget, self._load = DTYPES[config.dtype], config.batch_tokens, load

    def pools(self, rows: Sequence[np.ndarray], taps: Sequence[int]) -> torch.Tensor:
        """Means over tokens of what a head would read of each window at each tap, float32 [M, K, D].

        Raises:
            DataError: a file of the cache is damaged.
        """
        names = [_name(row) for row in rows]
        shelf = _Shelf(self.folder / f"pools-{'-'.join(map(str, taps))}")

        def keep(name: bytes, read: list[torch.Tensor]) -> None:
            means_KD = torch.stack([x_TD.mean(0) for x_TD in read]).half()
            shelf.add(name, means_KD, means_KD[:0])

        self._extract(rows, names, taps, [shelf], keep)
        return torch.stack([shelf[name][0] for name in names]).float()

    def states(self, rows: Sequence[np.ndarray], taps: Sequence[int]) -> dict[int, States]:
        """What a head reads of each window, by tap.

        Raises:
            DataError: a file of the cache is damaged.
        """
        names = [_name(row) for row in rows]
        shelves = {tap: _Shelf(self.folder / f"states-{tap}") for tap in sorted(set(taps))}

        def keep(name: bytes, read: list[torch.Tensor]) -> None:
            for shelf, x_TD in zip(shelves.values(), read):
                shelf.add(name, x_TD.mean(0, keepdim=True), x_TD.to(self._dtype))

        self._extract(rows, names, list(shelves), list(shelves.values()), keep)
        return {
            tap: States([shelf[name][1] for name in names], torch.cat([shelf[name][0] for name in names]))
            for tap, shelf in shelves.items()
        }

    def _extract(
        self,
        rows: Sequence[np.ndarray],
        names: Sequence[bytes],
        taps: Sequence[int],
        shelves: Sequence[_Shelf],
        keep: Callable[[bytes, list[torch.Tensor]], None],
    ) -> None:
        """Run the windows that one of the shelves lacks, and keep what a head reads of each: [T, D] float32 by tap."""
        missing = {name: row for name, row in zip(names, rows) if not all(name in shelf for shelf in shelves)}
        if not missing:
            return
        backbone = self._load(max(taps))
        named = list(missing.items())
        packed = batches([len(row) for _, row in named], self._budget)
        with Progress("extract", total=len(packed), unit="batches") as progress, torch.inference_mode():
            for done, batch in enumerate(packed, 1):
                ids_BS, mask_BS = pad([named[i][1] for i in batch])
                read = [head_input(hidden, mask_BS)[0].cpu() for hidden in backbone.at(taps, ids_BS, mask_BS)]
                for position, i in enumerate(batch):
                    name, row = named[i]
                    keep(name, [x_BSD[position, : len(row) - 1] for x_BSD in read])
                self.extracted += len(batch)
                progress.update(done)
        for shelf in shelves:
            shelf.flush()


class _Shelf:
    """Parts of one folder: of each window its means [K, D] and its states [T, D], memory-mapped once they are written.

    Raises:
        DataError: a part is not what was written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}
        self._waiting: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}
        self._bytes = 0
        for path in sorted(folder.glob("part-*.safetensors")):
            if sha256_file(path)[:16] != path.stem.removeprefix("part-"):
                raise DataError(f"{path}: damaged; delete it, and the windows that it held are extracted again")
            self._open(path)

    def __contains__(self, name: bytes) -> bool:
        return name in self._found or name in self._waiting

    def __getitem__(self, name: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        return self._found[name]

    def add(self, name: bytes, means_KD: torch.Tensor, states_TD: torch.Tensor) -> None:
        if name in self:
            return
        # A batch's other windows and float32 states would stay in memory through a view.
        self._waiting[name] = means_KD.clone(), states_TD.clone()
        self._bytes += means_KD.nbytes + states_TD.nbytes
        if self._bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as one part."""
        from safetensors.torch import save

        if not self._waiting:
            return
        means, states = zip(*self._waiting.values())
        tensors = {
            "windows": torch.frombuffer(bytearray(b"".join(self._waiting)), dtype=torch.uint8).view(-1, 32),
            "lengths": torch.tensor([len(states_TD) for states_TD in states]),
            "means": torch.stack(means),
            "states": torch.cat(states),
        }
        data = save(tensors)
        path = self._folder / f"part-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        self._waiting, self._bytes = {}, 0
        self._open(path)

    def _open(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            windows, lengths, means, states = (
                file.get_tensor(name) for name in ("windows", "lengths", "means", "states")
            )
        names = windows.numpy().tobytes()
        for i, (means_KD, states_TD) in enumerate(zip(means, states.split(lengths.tolist()))):
            self._found[names[32 * i : 32 * i + 32]] = means_KD, states_TD


def _versions() -> list[str]:
    return [importlib.metadata.version(name) for name in ("torch", "transformers")]


def _name(row: np.ndarray) -> bytes:
    return hashlib.sha256(np.asarray(row, dtype="<i4").tobytes()).digest()
