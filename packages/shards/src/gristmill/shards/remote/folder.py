"""A plain folder as a place for a dataset."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from pathlib import Path

from gristmill.base import files
from gristmill.base.errors import DataError
from gristmill.shards.manifest import MANIFEST
from gristmill.shards.remote.lock import locked
from gristmill.shards.remote.places import or_the_hub
from gristmill.shards.remote.stores import Progress, altered, publish_files
from gristmill.shards.skeleton import ORIGIN, Skeleton

DATASET_FOLDERS = ("sources", "mixtures")


class FolderStore:
    """A folder. It has one version; files appear whole, by renaming."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return self.folder.absolute().as_uri()

    @property
    def version(self) -> str:
        return self._version

    @functools.cached_property
    def _version(self) -> str:
        path = self.folder / MANIFEST
        if not path.is_file():
            raise DataError(
                f"{path}: no such file: not a dataset, or one whose writing or download was cut short"
                f"{or_the_hub(self.folder)}"
            )
        return files.sha256_file(path)[:40]

    def pinned(self) -> FolderStore:
        return self

    def fetch(self, path: str, staging: Path) -> Path:
        origin, target = files.safe_join(self.folder, path), staging / path
        if not origin.is_file():
            raise FileNotFoundError(origin)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, target)
        return target

    def publish(self, skeleton: Skeleton, progress: Progress, replace: bool = False) -> None:
        with locked(self.folder):
            publish_files(self, skeleton, progress, replace)
            (self.folder / ORIGIN).unlink(missing_ok=True)  # what was partial is complete now

    def sizes(self) -> dict[str, int]:
        """As far as it is about datasets; whatever else is in the folder is not looked at."""
        found = {path.name: path for path in self.folder.iterdir()}
        for part in DATASET_FOLDERS:
            for folder, _folders, names in os.walk(self.folder / part):
                found |= {Path(folder, name).relative_to(self.folder).as_posix(): Path(folder, name) for name in names}
        return {name: path.lstat().st_size for name, path in found.items() if path.is_file()}

    def holds(self, path: str, local: Path) -> bool:
        return files.sha256_file(files.safe_join(self.folder, path)) == files.sha256_file(local)

    def put(self, path: str, local: Path, sha256: str) -> None:
        digest = hashlib.sha256()
        with files.atomic_path(files.safe_join(self.folder, path)) as temporary:
            with local.open("rb") as source, temporary.open("wb") as sink:
                while chunk := source.read(2**22):
                    digest.update(chunk)
                    sink.write(chunk)
            if digest.hexdigest() != sha256:
                raise altered(local, digest.hexdigest(), sha256)

    def remove(self, path: str) -> None:
        (self.folder / path).unlink(missing_ok=True)
        for parent in Path(path).parents[:-1]:
            try:
                (self.folder / parent).rmdir()
            except OSError:  # not empty
                return
