"""Models by their address on the Hugging Face Hub: hf://ORG/NAME[@REVISION].

Downloads go through the Hub's own cache, whose folders say which repository and commit they hold. The Hub's own
settings hold: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gristmill.base.errors import UsageError

# What is left of the two slashes where an address went through a Path is one.
ADDRESS = re.compile(r"hf:/{1,2}(?P<name>[\w.-]+/[\w.-]+?)(@(?P<revision>[^@]+))?/?")


def is_address(place: str | Path) -> bool:
    return str(place).startswith("hf:")


def download(address: str | Path, files: Sequence[str]) -> Path:
    """The folder, in the Hub's cache, of a model's files of such names; what is there is not fetched again.

    Folders of a repository, which hold the same model in other formats, are left out.

    Raises:
        UsageError: no address, no such repository or revision, none that may be read, or no connection.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    found = ADDRESS.fullmatch(str(address))
    if not found:
        raise UsageError(f"{address}: an address on the Hub is hf://org/name or hf://org/name@revision")
    try:
        folder = snapshot_download(
            found["name"], revision=found["revision"], allow_patterns=list(files), ignore_patterns=["*/*"],
            library_name="gristmill",
        )  # fmt: skip
    except (OSError, HFValidationError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"hf://{found['name']}: cannot be downloaded ({told})") from None
    return Path(folder)


def origin(folder: Path) -> tuple[str, str]:
    """The name of the model in a folder of the Hub's cache, and its commit; of one elsewhere the folder's own name, and
    none."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name
    return folder.name, ""
