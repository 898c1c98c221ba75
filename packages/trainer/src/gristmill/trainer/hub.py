"""A model by its address on the Hugging Face Hub: hf://org/name@revision. Only what is read of it is fetched."""

from __future__ import annotations

import re
from pathlib import Path

from gristmill.base.errors import UsageError

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
    """What belongs to the tokenizer, among a folder's files."""
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
