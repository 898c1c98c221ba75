"""Datasets between folders and the Hugging Face Hub: what is there stays, each file is checked, the manifest is last.

A transfer that was cut short goes on where it stopped; until its manifest stands, the target is no dataset.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import re
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gristmill.base import files
from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.shards.manifest import (
    MANIFEST,
    DatasetManifest,
    FileEntry,
    check_file,
    check_size,
    dataset_files,
    load_dataset_manifest,
    load_source_manifest,
    other_files,
    source_files,
)

T = TypeVar("T")
CARD = "README.md"
COMMIT_FILES = 96  # the Hub asks for commits of 50 to 100 files
ATTEMPTS = 3  # on top of those that the client makes for each request
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class HubAddress:
    """A dataset repository on the Hub; `revision` None is its newest commit."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://datasets/{self.repository}" + (f"@{self.revision}" if self.revision else "")


def parse(target: Path | str) -> Path | HubAddress:
    """A folder, file://FOLDER, hf://datasets/ORG/NAME[@REVISION], or ORG/NAME (on the Hub if there is no folder ORG).

    Raises:
        UsageError: another scheme, or an hf:// address that names no dataset.
    """
    if isinstance(target, Path):
        return target
    if target.startswith("file://"):
        return Path(urllib.request.url2pathname(urllib.parse.urlparse(target).path))
    if target.startswith("hf://"):
        name, _, revision = target.removeprefix("hf://").removeprefix("datasets/").partition("@")
        if not (target.startswith("hf://datasets/") and REPOSITORY.fullmatch(name)):
            raise UsageError(
                f"{target}: an address on the Hub reads hf://datasets/ORG/NAME or hf://datasets/ORG/NAME@REVISION"
            )
        return HubAddress(name, revision or None)
    if "://" in target:
        raise UsageError(f"{target}: give a folder, file://FOLDER or hf://datasets/ORG/NAME")
    if REPOSITORY.fullmatch(target) and not Path(target).parent.is_dir():
        return HubAddress(target)
    return Path(target)


def local_folder(path_or_uri: Path | str) -> Path:
    """The folder of a dataset; one on the Hub is pulled to $GRISTMILL_CACHE (else ~/.cache/gristmill) first."""
    place = parse(path_or_uri)
    if isinstance(place, Path):
        return place
    cache = Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill")
    revision = f"@{urllib.parse.quote(place.revision, safe='')}" if place.revision else ""
    folder = cache / "datasets" / (place.repository.replace("/", "--") + revision)
    pull(str(place), folder)
    return folder


def push(
    folder: Path,
    target: Path | str,
    token: str | None = None,
    private: bool = False,
    progress: Progress = lambda done, total: None,
) -> str:
    """Publish the dataset in `folder`; returns the address. Files that are there with the same sha256 are not sent.

    `token` None is the one of $HF_TOKEN or of `hf auth login`. `private` counts when the repository is made.

    Raises:
        DataError: a file of `folder` that is missing or altered, by name; nothing that depends on it is published.
        GristmillError: the Hub refuses, or cannot be reached after several attempts.
    """
    manifest = load_dataset_manifest(folder)
    entries = list(dataset_files(folder, manifest))
    place = parse(target)
    if isinstance(place, Path):
        _copy(folder, place, entries, progress)
        return str(place)
    for entry in entries:
        check_file(folder, entry)
    _upload(folder, place, entries, token, private, progress)
    return str(place)


def pull(
    uri: Path | str, folder: Path, token: str | None = None, progress: Progress = lambda done, total: None
) -> DatasetManifest:
    """Bring a dataset to `folder`, checking each file's sha256; files that are there already are kept. Resumes.

    Raises:
        DataError: what arrived differs from its manifest, by name; or the source is no dataset.
        GristmillError: the Hub refuses, or cannot be reached after several attempts.
    """
    place = parse(uri)
    if isinstance(place, Path):
        _copy(place, folder, list(dataset_files(place, load_dataset_manifest(place))), progress)
    else:
        _download(place, folder, token, progress)
    return load_dataset_manifest(folder)


def _copy(origin: Path, target: Path, entries: list[FileEntry], progress: Progress) -> None:
    new_manifest = (origin / MANIFEST).read_bytes()
    old = target / MANIFEST
    changes = not old.is_file() or old.read_bytes() != new_manifest
    for done, entry in enumerate(entries, 1):
        path = files.safe_join(target, entry.path)
        if not _has(target, entry):
            if changes:
                old.unlink(missing_ok=True)  # it would not be true of the files that now come
            _copy_file(check_size(origin, entry), path, entry)
        progress(done, len(entries))
    if (origin / CARD).is_file():
        _write_bytes(target / CARD, (origin / CARD).read_bytes())
    _write_bytes(old, new_manifest)


def _copy_file(origin: Path, target: Path, entry: FileEntry) -> None:
    digest = hashlib.sha256()
    with files.atomic_path(target) as temporary:
        with origin.open("rb") as source, temporary.open("wb") as sink:
            while chunk := source.read(2**22):
                digest.update(chunk)
                sink.write(chunk)
        if digest.hexdigest() != entry.sha256:
            raise DataError(
                f"{origin}: altered: sha256 {digest.hexdigest()[:12]} where its manifest says {entry.sha256[:12]}"
            )


def _has(folder: Path, entry: FileEntry) -> bool:
    path = files.safe_join(folder, entry.path)
    return path.is_file() and path.stat().st_size == entry.bytes and files.sha256_file(path) == entry.sha256


def _upload(
    folder: Path, place: HubAddress, entries: list[FileEntry], token: str | None, private: bool, progress: Progress
) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token, library_name="gristmill")

    def commit(paths: list[str], message: str) -> None:
        # Operations are made anew for each attempt: the client marks them as it goes.
        attempt(
            place,
            lambda: api.create_commit(
                place.repository,
                [CommitOperationAdd(path, str(files.safe_join(folder, path))) for path in paths],
                commit_message=message,
                repo_type="dataset",
                revision=place.revision,
            ),
        )

    attempt(
        place, lambda: api.create_repo(place.repository, repo_type="dataset", private=private or None, exist_ok=True)
    )
    paths = [entry.path for entry in entries]
    there: dict[str, str] = {}
    for some in _chunks(paths, 256):
        for info in attempt(
            place,
            lambda some=some: api.get_paths_info(place.repository, some, repo_type="dataset", revision=place.revision),
        ):
            lfs = getattr(info, "lfs", None)
            if lfs is not None:
                there[info.path] = lfs.sha256
    missing = [entry.path for entry in entries if there.get(entry.path) != entry.sha256]
    missing += [CARD] if (folder / CARD).is_file() else []
    for done, some in enumerate(_chunks(missing, COMMIT_FILES), 1):
        commit(some, f"Add {len(some)} files")
        progress(min(done * COMMIT_FILES, len(missing)), len(missing) + 1)
    commit([MANIFEST], "Publish manifest.json")
    progress(len(missing) + 1, len(missing) + 1)


def _download(place: HubAddress, folder: Path, token: str | None, progress: Progress) -> None:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    api = HfApi(token=token, library_name="gristmill")
    revision = attempt(
        place, lambda: api.dataset_info(place.repository, revision=place.revision)
    ).sha  # one commit for all files
    # What has come but is not checked; kept after a failure, so that it resumes. Each commit has its own: where the Hub
    # does not answer, the client takes a file of another commit that it finds for the one asked for.
    arriving = folder / ".arriving" / str(revision)

    def download(path: str) -> str:
        try:
            return hf_hub_download(
                place.repository,
                path,
                repo_type="dataset",
                revision=revision,
                local_dir=arriving,
                token=token,
                library_name="gristmill",
            )
        except RemoteEntryNotFoundError:
            raise DataError(
                f"{place}: has no {path}: not a dataset of shards, or one whose publishing was cut short; push it again"
            ) from None

    def fetch(path: str, entry: FileEntry | None) -> Path:
        got = attempt(place, lambda: download(path))
        if entry is not None and (
            Path(got).stat().st_size != entry.bytes or files.sha256_file(Path(got)) != entry.sha256
        ):
            Path(got).unlink()
            raise DataError(f"{place}: {path} differs from its manifest; pull again, and if it stays so, push it again")
        return Path(got)

    def bring(path: str, entry: FileEntry | None) -> None:
        target = files.safe_join(folder, path)
        if entry is None or not _has(folder, entry):
            got = fetch(path, entry)
            target.parent.mkdir(parents=True, exist_ok=True)
            got.replace(target)

    manifest_path = fetch(MANIFEST, None)
    manifest = load_dataset_manifest(manifest_path.parent)
    data = manifest_path.read_bytes()
    if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() != data:
        (folder / MANIFEST).unlink()  # another version comes in; until it is whole, the folder is no dataset
    entries: list[FileEntry] = []
    for name, source in manifest.sources.items():
        target = files.safe_join(folder, source.path)
        if not (target.is_file() and files.sha256_file(target) == source.sha256):
            bring(source.path, None)
        entries += _source_entries(folder, source.path, load_source_manifest(folder, name, source)[0])
    entries += other_files(manifest)
    with concurrent.futures.ThreadPoolExecutor(4, "gristmill-pull") as pool:
        transfers = [pool.submit(bring, entry.path, entry) for entry in entries]
        try:
            for done, transfer in enumerate(concurrent.futures.as_completed(transfers), 1):
                transfer.result()
                progress(done, len(entries))
        finally:
            pool.shutdown(cancel_futures=True)
    if attempt(place, lambda: api.file_exists(place.repository, CARD, repo_type="dataset", revision=revision)):
        bring(CARD, None)
    _write_bytes(folder / MANIFEST, data)
    shutil.rmtree(arriving.parent, ignore_errors=True)


def _source_entries(folder: Path, path: str, manifest: Any) -> Iterator[FileEntry]:
    prefix = path.rpartition("/")[0]
    for entry in source_files(manifest):
        full = f"{prefix}/{entry.path}" if prefix else entry.path
        files.safe_join(folder, full)
        yield entry.model_copy(update={"path": full})


def attempt(place: HubAddress, action: Callable[[], T]) -> T:
    """Run a Hub call, again after a growing pause where the failure may pass. Messages of the client hold no token.

    Raises:
        UsageError: no such repository or revision, or a name that cannot be one.
        GristmillError: the Hub refuses, or cannot be reached after ATTEMPTS.
    """
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    for number in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (errors.RepositoryNotFoundError, errors.GatedRepoError):
            raise UsageError(
                f"{place}: no such dataset, or it is private or gated and this token may not see it; "
                "check the name, and HF_TOKEN or `hf auth login`"
            ) from None
        except errors.RevisionNotFoundError:
            raise UsageError(f"{place}: the dataset has no such revision; check what follows the @") from None
        except errors.HFValidationError as error:
            raise UsageError(f"{place}: {_first_line(error)}") from None
        # RuntimeError: the client's wrapper of whatever ends the upload of a file, and hf_xet's one class of errors.
        except (HTTPError, OSError, RuntimeError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, (HTTPError, OSError)) else error
            if number == ATTEMPTS or not _may_pass(cause):
                lines = dict.fromkeys((_first_line(error), _first_line(cause)))
                mend = (
                    "check HF_TOKEN or `hf auth login`"
                    if _status(cause) == 401
                    else "the same command goes on from here"
                )
                raise GristmillError(f"{place}: {' '.join(lines)}; {mend}") from None
            time.sleep(min(2.0**number, 30.0))
    raise AssertionError("unreachable")


def _may_pass(error: BaseException) -> bool:
    """Not: what the Hub refuses for good, what the disk says (its errors have a number), an order to stay offline."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status(error)
    local = isinstance(error, OSError) and error.errno is not None
    return not (local or isinstance(error, OfflineModeIsEnabled)) and (status is None or status in TRANSIENT)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _write_bytes(path: Path, data: bytes) -> None:
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(data)
