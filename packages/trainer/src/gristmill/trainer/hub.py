"""A model by its address on the Hugging Face Hub: hf://org/name@revision. Only what is read of it is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.base.errors import DataError, UsageError
from gristmill.base.hub import download, is_address, origin

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
)  # fmt: skip
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")


def local_folder(place: str) -> Path:
    """The folder of a model; one at an hf:// address is downloaded into the Hub's cache first, unless it is there.

    Raises:
        UsageError: no such folder, repository or revision, none that may be read, or no connection.
    """
    if not is_address(place):
        if not Path(place).is_dir():
            raise UsageError(
                f"{place}: no such folder; a model on the Hub is named hf://org/name or hf://org/name@revision"
            )
        return Path(place)
    return download(place, MODEL_FILES + TOKENIZER_FILES)


def commit(folder: Path) -> str:
    """The commit that a folder of the Hub's cache holds; "" of any other folder."""
    return origin(folder)[1]


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
