"""The Hugging Face Hub as a place for datasets: commits that are each a whole dataset, downloads of one commit.

Shard files are committed first, a new version's beside the old one's; one last commit exchanges all that changes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gristmill.base import files
from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.shards.manifest import MANIFEST, FileEntry
from gristmill.shards.remote.places import HubAddress
from gristmill.shards.remote.stores import NOTHING, Progress, Standing, Unreachable, altered, read_standing
from gristmill.shards.skeleton import Skeleton

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    Operation = CommitOperationAdd | CommitOperationDelete

T = TypeVar("T")
COMMIT_FILES = 96  # the Hub asks for commits of 50 to 100 files
COMMIT_OPERATIONS = 1000  # small files and deletions, in the last commit
ATTEMPTS = 3  # on top of those that the client makes for each request
ROUNDS = 10  # of publishing, where others commit to the same repository meanwhile
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
MOVED_ON = (409, 412)  # another commit is being made, or has been made since the one that ours builds on


class HubStore:
    """`token` None is the one of $HF_TOKEN or of `hf auth login`. `private` counts when the repository is made."""

    def __init__(
        self, place: HubAddress, token: str | None = None, private: bool = False, commit: str | None = None
    ) -> None:
        self.place, self.token, self.private, self.commit = place, token, private, commit or place.commit

    def __str__(self) -> str:
        return str(dataclasses.replace(self.place, revision=self.commit) if self.commit else self.place)

    @functools.cached_property
    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(token=self.token, library_name="gristmill")

    @property
    def version(self) -> str:
        self.commit = self.commit or self._head()
        return self.commit

    def pinned(self) -> HubStore:
        return HubStore(self.place, self.token, self.private, self.version)

    def fetch(self, path: str, staging: Path) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        def download() -> str | None:
            try:
                return hf_hub_download(
                    self.place.repository,
                    path,
                    repo_type="dataset",
                    revision=self.version,
                    local_dir=staging,
                    token=self.token,
                    library_name="gristmill",
                )
            except RemoteEntryNotFoundError:
                return None

        got = attempt(self.place, download)
        if got is None:
            raise FileNotFoundError(path)
        return Path(got)

    def publish(self, skeleton: Skeleton, progress: Progress, replace: bool = False) -> None:
        attempt(
            self.place,
            lambda: self._api.create_repo(
                self.place.repository, repo_type="dataset", private=self.private or None, exist_ok=True
            ),
        )
        for _ in range(ROUNDS):
            head = self._head()
            there = self._tree(head)
            here = HubStore(self.place, self.token, commit=head)
            before = read_standing(here, skeleton) if MANIFEST in there else NOTHING
            before.refuse_loss(skeleton, self.place, replace)
            entries = (*skeleton.shard_files(), *skeleton.manifest_files())
            missing = [entry for entry in entries if not _same(there.get(entry.path), skeleton, entry)]
            if missing:
                self._add(skeleton, missing, progress)
            elif self._exchange(skeleton, head, there, before):
                progress(1, 1)
                return
        raise GristmillError(f"{self.place}: others commit to it all the time; push again when they have finished")

    def _head(self) -> str:
        name, revision = self.place.repository, self.place.revision
        return str(attempt(self.place, lambda: self._api.dataset_info(name, revision=revision, expand=["sha"])).sha)

    def _tree(self, commit: str) -> dict[str, RepoFile]:
        from huggingface_hub.hf_api import RepoFile

        listed = attempt(
            self.place,
            lambda: list(
                self._api.list_repo_tree(self.place.repository, recursive=True, revision=commit, repo_type="dataset")
            ),
        )
        return {file.path: file for file in listed if isinstance(file, RepoFile)}

    def _add(self, skeleton: Skeleton, missing: list[FileEntry], progress: Progress) -> None:
        """Commit shard files and manifests of sources that nothing lists yet."""
        from huggingface_hub import CommitOperationAdd

        def additions(some: Sequence[FileEntry]) -> Iterator[CommitOperationAdd]:
            for entry in some:
                local = skeleton.folder / entry.path
                operation = CommitOperationAdd(entry.path, str(local))
                found = operation.upload_info.sha256.hex()
                if found != entry.sha256:
                    raise altered(local, found, entry.sha256)
                yield operation

        for start in range(0, len(missing), COMMIT_FILES):
            some = missing[start : start + COMMIT_FILES]
            if self._commit(lambda some=some: list(additions(some)), f"Add {len(some)} files of shards") is None:
                return
            progress(start + len(some), len(missing) + 1)

    def _exchange(self, skeleton: Skeleton, head: str, there: dict[str, RepoFile], before: Standing) -> bool:
        """From `head`, which has all shard files, make the new version stand in one commit, and remove what is left of
        the old one, in the same commit if that is not too much for one. False where others have committed meanwhile."""
        changed = [path for path in skeleton.mutable() if not _same_file(there.get(path), skeleton.folder / path)]
        left = skeleton.strangers(there, before.listed)
        title = f"Publish {skeleton.manifest.content_id[:12]}"
        while changed or left:
            room = max(COMMIT_OPERATIONS - len(changed), 0)
            now = left if len(left) <= room else left[: 0 if changed else room]

            made = self._commit(
                functools.partial(_changes, skeleton.folder, changed, now),
                title if changed else f"Remove {len(now)} files of earlier versions",
                head,
            )
            if made is None:
                return False
            head, changed, left = made, [], left[len(now) :]
        return True

    def _commit(
        self, operations: Callable[[], Sequence[Operation]], message: str, parent: str | None = None
    ) -> str | None:
        """The commit's name; None where it would not have stood on `parent`, or another is just being made."""
        from huggingface_hub.errors import HfHubHTTPError

        def commit() -> str | None:
            try:
                return self._api.create_commit(
                    self.place.repository,
                    operations(),  # made anew for each attempt: the client marks them as it goes
                    commit_message=message,
                    repo_type="dataset",
                    revision=self.place.revision,
                    parent_commit=parent,
                ).oid
            except HfHubHTTPError as error:
                if _status(error) in MOVED_ON:
                    return None
                raise

        made = attempt(self.place, commit)
        if made is None:
            time.sleep(1)
        return made


def _changes(folder: Path, changed: list[str], gone: list[str]) -> list[Operation]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    return [
        *(CommitOperationAdd(path, str(folder / path)) for path in changed),
        *(CommitOperationDelete(path, is_folder=False) for path in gone),
    ]


def _same(there: RepoFile | None, skeleton: Skeleton, entry: FileEntry) -> bool:
    """The Hub tells the sha256 of large files, git's name for the content of small ones."""
    if there is None or there.size != entry.bytes:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == entry.sha256
    return _same_file(there, skeleton.folder / entry.path)


def _same_file(there: RepoFile | None, local: Path) -> bool:
    if there is None or there.size != local.stat().st_size:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == files.sha256_file(local)
    data = local.read_bytes()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def attempt(place: object, action: Callable[[], T]) -> T:
    """Run a Hub call, again after a growing pause where the failure may pass. Messages of the client hold no token.

    Raises:
        UsageError: no such repository or revision, or a name that cannot be one.
        Unreachable: no answer after ATTEMPTS, or an order to stay offline.
        GristmillError: the Hub refuses, or the disk does.
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
                silent = _may_pass(cause) or isinstance(cause, errors.OfflineModeIsEnabled)
                raise (Unreachable if silent else GristmillError)(f"{place}: {' '.join(lines)}; {mend}") from None
            time.sleep(min(2.0**number, 30.0))
        except ValueError as error:  # the client's checks of what it is to send: the card's header
            raise DataError(f"{place}: {' '.join(str(error).split())}") from None
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
