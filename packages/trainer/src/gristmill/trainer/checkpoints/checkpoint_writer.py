"""Checkpoints that training does not wait for: a copy is taken between two steps, and written while the next ones run.

One is on its way at a time; a second waits for it. What goes wrong with one is raised where training asks next.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch

from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.checkpoints.checkpoint import Pieces, State
from gristmill.trainer.parallel.world import ALONE, World


class CheckpointWriter:
    def __init__(self, folder: Path, keep: int, reach: int = 1, world: World = ALONE) -> None:
        """keep, reach: as of checkpoint.rotate(). Each process of the world has its own, and all save together."""
        self.folder, self.keep, self.reach, self.world = folder, keep, reach, world
        self._thread = ThreadPoolExecutor(1, "gristmill-checkpoint")
        self._pending: Future[None] | None = None
        self._copies: dict[tuple[str, str], torch.Tensor] = {}  # kept from one checkpoint to the next

    def __enter__(self) -> CheckpointWriter:
        return self

    def prepare(self, pieces: Pieces) -> None:
        """Get the memory for copies of these, in the other thread: the system gives it out slowly the first time."""

        def touch() -> None:
            for file, own in pieces.items():
                for name, piece in own.items():
                    bytes_A = self._buffer((file, name), piece.tensor).view(-1).view(torch.uint8).numpy()
                    bytes_A[:: mmap.PAGESIZE] = 0

        self._pending = self._thread.submit(touch)

    def save(self, state: State, pieces: Pieces, first: Callable[[], object], then: Callable[[], object]) -> None:
        """Copy the tensors, and begin to write. In the other thread of the first process, `first` comes before the
        files, `then` when the checkpoint stands and older ones are removed."""
        self.wait()
        copies = {
            file: {
                name: piece._replace(tensor=self._copy((file, name), piece.tensor.detach()))
                for name, piece in own.items()
            }
            for file, own in pieces.items()
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies have been asked for, not waited for

        def write() -> None:
            if self.world.is_first:
                first()
            checkpoint.write(self.folder, state, copies, self.world)
            if self.world.is_first:
                checkpoint.rotate(self.folder, self.keep, self.reach)
                then()
            self.world.wait_beside()  # where it stands for one, it stands for all

        self._pending = self._thread.submit(write)

    def check(self) -> None:
        """Raise what went wrong with a checkpoint that has come to its end."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is on its way.

        Raises:
            WriteError: the checkpoint could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._thread.shutdown()
            if kind is None:  # else that is what is told
                self.wait()
        finally:
            self._copies.clear()

    def _copy(self, key: tuple[str, str], value: torch.Tensor) -> torch.Tensor:
        return self._buffer(key, value).copy_(value, non_blocking=True)

    def _buffer(self, key: tuple[str, str], like: torch.Tensor) -> torch.Tensor:
        if key not in self._copies:
            self._copies[key] = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
        return self._copies[key]
