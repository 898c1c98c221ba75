"""Compressed files as streams: gzip members or zstd frames one after the other, all that comes before any damage."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

import zstandard

ZSTD_MAX_WINDOW = 2**27  # 128 MiB: `zstd --long=27`, the largest that the command line tool opens unasked
FEED_BYTES = 2**12
CORRUPT = (EOFError, zlib.error, zstandard.ZstdError)
"""What reading from decompressed() raises where the content is damaged."""


def is_compressed(name: str) -> bool:
    return name.lower().endswith((".gz", ".zst"))


def decompressed(raw: io.BufferedIOBase, name: str) -> io.BufferedIOBase:
    """The content of `raw`, which the suffix of `name` says how to decompress, if at all."""
    lower = name.lower()
    stream: Any = raw
    if lower.endswith(".gz"):
        stream = _Frames(raw, lambda: zlib.decompressobj(wbits=31))
    elif lower.endswith(".zst"):
        stream = _Frames(raw, lambda: zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW).decompressobj())
    return io.BufferedReader(stream, 2**20)


class _Frames(io.RawIOBase):
    """Raises EOFError when the last frame is cut off, which zstandard's own reader does not. Input is fed in small
    pieces, so that a bomb (zstd packs 128 KiB into 4 bytes) cannot fill the memory before the line limit stops it.
    """

    def __init__(self, raw: io.BufferedIOBase, start: Callable[[], Any]) -> None:
        self._raw, self._start = raw, start
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._raw.read(FEED_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the last compressed frame is cut off")
                return 0
            if self._frame is None:
                self._input = self._input.lstrip(b"\0")  # tapes and some writers pad with zeros
                if not self._input:
                    continue
                self._frame = self._start()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size
