"""Heads on the Hugging Face Hub: a model repository whose commit is a whole heads/ folder. hf://ORG/NAME[@REVISION]."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.base.hub import ADDRESS, is_address
from gristmill.scorer.heads.files import FILES, MANIFEST, check_files, replaced

NAMES = (*FILES, MANIFEST)
# Heads on the widest backbones are some ten million numbers; a repository that says more is no heads folder.
LARGEST = 2**30


class Address(NamedTuple):
    """A model repository; without a revision its newest commit."""

    repository: str
    revision: str | None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def parse(address: str | Path) -> Address:
    """Raises UsageError where it is none."""
    found = ADDRESS.fullmatch(str(address))
    if not found:
        raise UsageError(f"{address}: heads on the Hub are named hf://ORG/NAME or hf://ORG/NAME@REVISION")
    return Address(found["name"], found["revision"])


def locate(heads: str | Path) -> Path:
    """The folder of heads that are named by folder or by address; from the Hub they come into the Hub's own cache.

    Raises:
        UsageError: no such repository or revision.
        DataError: the repository is no heads folder.
        GristmillError: the Hub refuses, or cannot be reached.
    """
    return _download(parse(heads)) if is_address(heads) else Path(heads)


def pull(address: str | Path, folder: Path) -> None:
    """Put the heads of an address into a folder, checked; heads that stood there are replaced.

    Raises:
        UsageError: something stands there that is no heads folder; and as of locate().
        DataError: the files are not those that their manifest lists.
    """
    source = _download(parse(address))
    with replaced(folder) as temporary:
        temporary.mkdir(parents=True)
        for path in source.iterdir():
            if path.name in NAMES:
                shutil.copyfile(path, temporary / path.name)
        check_files(temporary)


def push(folder: Path, address: str | Path, private: bool = False) -> str:
    """Commit a heads/ folder, all of it at once, and nothing else. Returns the commit.

    Raises:
        DataError: the folder is not what its manifest lists.
        UsageError: an address with a revision, or of a repository that this token may not see.
        GristmillError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    place = parse(address)
    if place.revision:
        raise UsageError(f"{place}: what is pushed becomes the newest commit; name no revision")
    check_files(folder)
    api = HfApi(library_name="gristmill")
    with _calling(place):
        api.create_repo(place.repository, repo_type="model", private=private or None, exist_ok=True)
        return api.upload_folder(
            repo_id=place.repository, folder_path=folder, allow_patterns=list(NAMES), delete_patterns=list(NAMES),
            commit_message="Heads on a frozen backbone",
        ).oid  # fmt: skip


def _download(address: Address) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi(library_name="gristmill")
    with _calling(address):
        about = api.model_info(address.repository, revision=address.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in about.siblings or [] if file.rfilename in NAMES}
        if MANIFEST not in sizes:
            raise DataError(f"{address}: no {MANIFEST} there, so no heads folder; `scorer push` makes one")
        if sum(sizes.values()) > LARGEST:
            raise DataError(f"{address}: {sum(sizes.values())} bytes are too many for heads ({LARGEST} at most)")
        folder = snapshot_download(
            address.repository, revision=about.sha, allow_patterns=list(sizes), library_name="gristmill"
        )
    return Path(folder)


@contextmanager
def _calling(address: Address) -> Iterator[None]:
    """Say in one line what the Hub's client says in many, without bars for a few small files. It tells no token."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.GatedRepoError):
        raise UsageError(
            f"{address}: no such model, or it is private or gated and this token may not see it; check the name, and "
            "HF_TOKEN or `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise UsageError(f"{address}: the repository has no such revision; check what follows the @") from None
    except errors.HFValidationError as error:
        raise UsageError(f"{address}: {_first_line(error)}") from None
    except GristmillError:
        raise
    except (HTTPError, OSError, RuntimeError) as error:
        raise GristmillError(
            f"{address}: {_first_line(error)}; check the connection, HF_TOKEN or `hf auth login`, and run it again"
        ) from None
    finally:
        if not silent:
            enable_progress_bars()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
