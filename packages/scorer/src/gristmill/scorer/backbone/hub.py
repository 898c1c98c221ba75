"""A backbone by its name on the Hugging Face Hub: hf://org/model@revision.

Downloads go through the Hub's own cache, whose folders say which repository and commit they hold.
"""

from __future__ import annotations

import re
from pathlib import Path

from gristmill.base.errors import UsageError

# All that a backbone is made of. Folders of a repository hold the same model in other formats.
FILES = ["*.json", "*.safetensors"]
# What is left of the two slashes where an address went through a Path is one.
ADDRESS = re.compile(r"hf:/{1,2}(?P<name>[\w.-]+/[\w.-]+?)(@(?P<revision>[^@]+))?/?")


def local_folder(place: str | Path) -> Path:
    """The folder of a backbone; an hf:// address is downloaded first, unless it has been already.

    The Hub's own settings hold: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.

    Raises:
        UsageError: no such repository or revision, none that may be read, or no connection.
    """
    if not str(place).startswith("hf:"):
        return Path(place)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    found = ADDRESS.fullmatch(str(place))
    if not found:
        raise UsageError(f"{place}: an address on the Hub is hf://org/model or hf://org/model@revision")
    try:
        folder = snapshot_download(
            found["name"], revision=found["revision"], allow_patterns=FILES, ignore_patterns=["*/*"],
            library_name="gristmill",
        )  # fmt: skip
    except (OSError, HFValidationError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"hf://{found['name']}: cannot be downloaded ({told})") from None
    return Path(folder)


def origin(folder: Path) -> tuple[str, str]:
    """The name of a model in a folder, and its commit on the Hub; of one elsewhere the folder's own name, and none."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name
    return folder.name, ""
