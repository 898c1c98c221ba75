"""A model by its address on the Hugging Face Hub: hf://org/name@revision. Only what is read of it is fetched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.base.errors import DataError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
)  # fmt: skip
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
# What is left of the two slashes where an address went through a Path is one.
ADDRESS = re.compile(r"hf:/{1,2}(?P<name>[\w.-]+/[\w.-]+?)(@(?P<revision>[^@]+))?/?")


def local_folder(place: str) -> Path:
    """The folder of a model; one at an hf:// address is downloaded into the Hub's cache first, unless it is there.

    The Hub's own settings hold: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.

    Raises:
        UsageError: no such folder, repository or revision, none that may be read, or no connection.
    """
    if not place.startswith("hf:"):
        if not Path(place).is_dir():
            raise UsageError(
                f"{place}: no such folder; a model on the Hub is named hf://org/name or hf://org/name@revision"
            )
        return Path(place)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    found = ADDRESS.fullmatch(place)
    if not found:
        raise UsageError(f"{place}: an address on the Hub is hf://org/name or hf://org/name@revision")
    try:
        folder = snapshot_download(
            found["name"], revision=found["revision"], allow_patterns=[*MODEL_FILES, *TOKENIZER_FILES],
            ignore_patterns=["*/*"], library_name="gristmill",
        )  # fmt: skip
    except (OSError, HFValidationError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"hf://{found['name']}: cannot be downloaded ({told})") from None
    return Path(folder)


def commit(folder: Path) -> str:
    """The commit that a folder of the Hub's cache holds; "" of any other folder."""
    folder = folder.resolve()
    return folder.name if folder.parent.name == "snapshots" else ""


def tokenizer_files(folder: Path) -> list[Path]:
    """What belongs to the tokenizer, among a folder's files.

    Raises:
        DataError: a link to a file elsewhere, which is none of the model's; those of the Hub's cache go to its blobs.
    """
    found = sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
    inside = [folder.resolve()]
    if commit(folder):
        inside.append(inside[0].parents[1] / "blobs")
    for path in found:
        if not any(path.resolve().is_relative_to(place) for place in inside):
            raise DataError(
                f"{path}: a link to {path.resolve()}, outside the model's folder; put the file itself there"
            )
    return found


def load_tokenizer(file: Path) -> Tokenizer:
    """Raises DataError where it is no tokenizer's file."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - of no narrower class
        raise DataError(f"{file}: not a tokenizer.json ({error}); give the file that tokenizers wrote") from None
