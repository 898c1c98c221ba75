"""safetensors files larger than memory: read one part at a time, and written as the parts come.

One idea: in a file as in a stack, or in a join by rows, the bytes of the parts simply follow one another.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open

from gristmill.base.errors import DataError
from gristmill.base.files import atomic_path, read_object, writing

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _TYPES.items()}
INDEX = "model.safetensors.index.json"


class Source(Protocol):
    """A tensor, wherever it is."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, *index: int | slice) -> torch.Tensor:
        """All of it, or the part at an index, in memory."""
        ...


class OnDisk(NamedTuple):
    """A tensor of a safetensors file. The file is mapped only while a part of it is in use."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, *index: int | slice) -> torch.Tensor:
        with safe_open(self.file, framework="pt") as handle:
            return handle.get_slice(self.name)[index] if index else handle.get_tensor(self.name)


class InMemory(NamedTuple):
    tensor: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def read(self, *index: int | slice) -> torch.Tensor:
        return self.tensor[index] if index else self.tensor


class Unwritten(NamedTuple):
    """A tensor that is made as it is written: `parts` answers pieces whose bytes, one after another, are its own."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[torch.Tensor]]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Piece(NamedTuple):
    """What a process has of a tensor: of its first dimension, rows [first, first + len(tensor))."""

    tensor: torch.Tensor
    shape: tuple[int, ...]
    first: int

    @property
    def is_whole(self) -> bool:
        return tuple(self.tensor.shape) == self.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def size(self) -> int:
        """Of the whole tensor, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def take(self, parts: Iterable[torch.Tensor]) -> None:
        """The rows out of a tensor that comes in parts, of any number format: see Unwritten."""
        rows, at = self.tensor.view(-1), -self.first * math.prod(self.shape[1:])  # where in the rows a part begins
        for part in parts:
            begin, end = max(at, 0), min(at + part.numel(), len(rows))
            if begin < end:
                rows[begin:end] = part.reshape(-1)[begin - at : end - at].to(rows)
            at += part.numel()

    def read(self, source: Source) -> None:
        """Take the rows out of a tensor of the same shape."""
        self.tensor.copy_(
            source.read() if self.is_whole else source.read(slice(self.first, self.first + len(self.tensor)))
        )


def read_file(file: Path) -> dict[str, OnDisk]:
    """What a file holds; its header alone is read.

    Raises:
        DataError: not a safetensors file, or one cut short; a number format that torch has not.
    """
    found: dict[str, OnDisk] = {}
    try:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - the handle is no mapping
                part = handle.get_slice(name)
                if part.get_dtype() not in _TYPES:
                    raise DataError(f"{file}: tensor {name!r} has the number format {part.get_dtype()}, unknown here")
                found[name] = OnDisk(file, name, _TYPES[part.get_dtype()], tuple(part.get_shape()))
    except SafetensorError as error:
        raise DataError(f"{file}: not a whole safetensors file ({error}); fetch it again") from None
    return found


def read_folder(folder: Path) -> dict[str, OnDisk]:
    """What model.safetensors holds, or the files that model.safetensors.index.json names.

    Raises:
        DataError: neither is there, a file is missing, or one is damaged.
    """
    if not (folder / INDEX).exists():
        if not (folder / "model.safetensors").is_file():
            raise DataError(f"{folder}: no model.safetensors and no {INDEX}; only safetensors are read, never pickles")
        return read_file(folder / "model.safetensors")
    named = read_object(folder / INDEX, "fetch it again", weight_map=dict)["weight_map"]
    if strange := [name for name in named.values() if not _is_file_name(name)]:
        raise DataError(f"{folder / INDEX}: {strange[0]!r} names no file of this folder; fetch it again")
    files = [folder / name for name in sorted(set(named.values()))]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"{missing[0]}: no such file, though {INDEX} names it; fetch the model again")
    return {name: tensor for file in files for name, tensor in read_file(file).items()}


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name


def write(path: Path, tensors: Mapping[str, Unwritten], metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or absent, of which one part at a time is in memory.

    Wider number formats come first, as in safetensors' own files: then each tensor is aligned to its elements.
    """
    head, starts = _head(tensors, metadata)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(head)
        for name, start in starts.items():
            for part in tensors[name].parts():
                file.write(_bytes(part.to(tensors[name].dtype)))
            if file.tell() != start + tensors[name].size:
                raise ValueError(f"{path}: the parts of {name} are not of its size")


def write_pieces(path: Path, pieces: Mapping[str, Piece], is_first: bool, wait: Callable[[], object]) -> None:
    """A safetensors file to which each process of several brings its pieces; rows that several have are the same.

    Args:
        is_first: of one process, which makes the file, and brings what is whole.
        wait: until all processes have come here.

    Raises:
        WriteError: as of files.writing().
    """
    head, starts = _head(pieces, {})
    if is_first:
        with writing(path), path.open("wb") as file:
            file.write(head)
            file.truncate(max(start + pieces[name].size for name, start in starts.items()))
    wait()
    with writing(path), path.open("r+b") as file:
        for name, start in starts.items():
            piece = pieces[name]
            if is_first or not piece.is_whole:
                row = piece.size // piece.shape[0] if piece.shape and piece.shape[0] else 0
                file.seek(start + piece.first * row)
                file.write(_bytes(piece.tensor))
        file.flush()
        os.fsync(file.fileno())
    wait()


def _head(
    tensors: Mapping[str, Unwritten] | Mapping[str, Piece], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """What a file begins with, and where in it each tensor begins, in their order."""
    order = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, tensor in order:
        offsets = [at, at + tensor.size]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
        at += tensor.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    ends = accumulate((tensor.size for _, tensor in order), initial=len(head))
    return head, dict(zip((name for name, _ in order), ends))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
