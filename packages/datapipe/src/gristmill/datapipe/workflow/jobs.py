"""What a worker does with one partition of a stage, and with a whole step: read, run, write, vouch for the output."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq

from gristmill.base.errors import GristmillError
from gristmill.base.files import atomic_path, replace_folder, sha256_file, sha256_folder
from gristmill.datapipe.workflow.ledger import Entry
from gristmill.datapipe.workflow.stage import Inputs, Stage, Step, read_part


@dataclass
class StageJob:
    """One partition of a stage: read its rows, annotate them, write the rows that come back."""

    stage: Stage
    over: Path
    requires: dict[str, Path]
    needs: dict[str, Path]
    folder: Path
    keys: dict[str, str]

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def stateful(self) -> bool:
        return type(self.stage).setup is not Stage.setup

    def setup(self) -> None:
        self.stage.setup(self.needs)

    def __call__(self, part: str) -> dict[str, Any]:
        started = time.monotonic()
        table = read_part(self.over / part, self.stage.columns)
        previous = {name: read_part(folder / part) for name, folder in self.requires.items()}
        result = self.stage.annotate(table, previous)
        if result.num_rows != table.num_rows:
            raise GristmillError(f"stage {self.stage.name!r} returned {result.num_rows} rows for {table.num_rows}")
        with atomic_path(self.folder / part) as temporary:
            pq.write_table(result, temporary, compression="zstd")
        entry = Entry(
            self.keys[part], sha256_file(self.folder / part), result.num_rows, (self.folder / part).stat().st_size,
            round(time.monotonic() - started, 3),
        )  # fmt: skip
        return {"entry": vars(entry), "rows": result.num_rows}


@dataclass
class StepJob:
    """A whole step: run it in its work folder, then put that folder in its place."""

    step: Step
    inputs: Inputs
    work: Path
    folder: Path
    key: str
    stateful: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.step.name

    def setup(self) -> None:
        pass

    def __call__(self, _piece: str) -> dict[str, Any]:
        started = time.monotonic()
        counts = self.step.run(self.inputs, self.work)
        sha256 = sha256_folder(self.work)
        replace_folder(self.work, self.folder)
        seconds = round(time.monotonic() - started, 3)
        return {"entry": vars(Entry(self.key, sha256, seconds=seconds, counts=counts))}
