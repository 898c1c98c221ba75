"""A backbone by its folder, or by its address on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from gristmill.base.hub import download, is_address

FILES = ("*.json", "*.safetensors")
"""All that a backbone is made of."""


def local_folder(place: str | Path) -> Path:
    """The folder of a backbone; an hf:// address is downloaded first, unless it has been already.

    Raises:
        UsageError: no such repository or revision, none that may be read, or no connection.
    """
    return download(place, FILES) if is_address(place) else Path(place)
