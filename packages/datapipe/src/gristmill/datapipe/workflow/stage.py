"""What a node of the DAG is: a Stage annotates partitions row by row, a Shuffle brings rows of all partitions together
that belong together, a Step turns whole outputs into a folder.

Neither knows of Ray, ledgers or retries; the runner maps them. Everything a node's output depends on is in its
`version`, its frozen `config`, the content of its inputs, its `files()` and the versions of its `libraries`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.errors import GristmillError
from gristmill.datapipe.workflow.ledger import read_listing


@dataclass(frozen=True)
class Resources:
    """What one worker of a node holds. Ray refuses to start what the cluster can never give."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 0.0


class Node(ABC):
    """What stages and steps share. `folder` is the output, relative to the run folder."""

    version: ClassVar[int] = 1
    libraries: tuple[str, ...] = ()
    """Distributions whose version changes the output (a tokeniser, a model runtime)."""

    name: str
    folder: str
    config: Any
    resources: Resources = Resources()
    disposable: bool = False
    """Whether the output is only a way to others, and is made again where one of those needs it and it is gone."""

    def files(self) -> Sequence[Path]:
        """Model files read by this node; their content hashes are part of the fingerprint."""
        return ()

    @property
    @abstractmethod
    def dependencies(self) -> tuple[str, ...]:
        """Names of the nodes that must be done before this one."""


class Stage(Node):
    """Annotates each partition of `over` with measurements; never drops a row, never rewrites text."""

    over: str = "documents"
    columns: tuple[str, ...] = ("text",)
    """Columns of `over` that annotate() reads."""
    requires: tuple[str, ...] = ()
    """Row-aligned outputs of other nodes, given to annotate() as `previous`."""
    needs: tuple[str, ...] = ()
    """Whole output folders of steps, given to setup() as `folders`."""

    @property
    def dependencies(self) -> tuple[str, ...]:
        return (self.over, *self.requires, *self.needs)

    def writes(self) -> pa.Schema | None:
        """The columns that annotate() gives, where they are known before anything runs."""
        return None

    setup_is_small: ClassVar[bool] = False
    """What setup() loads takes little time and memory, so that any process that is there already may do it and keep it:
    a process for this stage alone takes a second to start."""

    def setup(self, folders: Mapping[str, Path]) -> None:
        """Load models, once per worker."""

    @abstractmethod
    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        """One row out for each row in, in the same order."""


@dataclass(frozen=True)
class Bucket:
    """Where gather() stands: with `onto` the rows [start, start + rows) of the run, else no place in it."""

    start: int = 0
    rows: int = 0


class Shuffle(Node):
    """Regroups rows. scatter() turns each partition of `over` into entries, which go to buckets; gather() makes of all
    entries of a bucket a partition of the output.

    Entries go by the 64-bit hashes in their column `by`: those of one hash meet in one bucket, in the order of the run.
    With `onto`, `by` holds rows of the run, and gather() is given the entries of one of that output's partitions at a
    time; `aligned` says that it makes one row for each row of that partition.
    """

    over: str = "documents"
    columns: tuple[str, ...] | None = None
    """Columns of `over` that scatter() reads; None: all."""
    requires: Mapping[str, tuple[str, ...]] = {}
    """Row-aligned with `over`: the columns given to scatter() as `previous`."""
    needs: tuple[str, ...] = ()
    """Whole output folders of steps, given to setup() as `folders`."""
    by: str = "key"
    onto: str = ""
    aligned: bool = False
    beside: Mapping[str, tuple[str, ...]] = {}
    """Row-aligned with `onto`: the columns given to gather() as `previous`."""

    @property
    def dependencies(self) -> tuple[str, ...]:
        onto = (self.onto,) if self.onto else ()
        return tuple(dict.fromkeys((self.over, *self.requires, *self.needs, *onto, *self.beside)))

    def setup(self, folders: Mapping[str, Path]) -> None:
        """Load what steps made, once per worker and phase."""

    def scatter(self, table: pa.Table, previous: Mapping[str, pa.Table], start: int) -> pa.Table:
        """Entries of a partition whose first row is row `start` of the run; here, its rows as they are."""
        return table

    @abstractmethod
    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        """What is made of a bucket's, or a partition's, entries."""

    def counts(self, table: pa.Table, bucket: Bucket) -> dict[str, int]:
        """Numbers about what gather() made; the run's record shows their sums."""
        return {"rows": table.num_rows}


class Step(Node):
    """Reads whole outputs and writes one folder: clustering, training, packing, publishing."""

    requires: tuple[str, ...] = ()
    resumes: bool = False
    """True where run() continues from what it finds in `out`; else `out` is emptied before every attempt."""

    @property
    def dependencies(self) -> tuple[str, ...]:
        return self.requires

    @abstractmethod
    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        """Write everything under `out`; return the numbers that the run's record should show."""


@dataclass(frozen=True)
class Inputs:
    """What a step may read: the output folders of its dependencies, and the partitions in their order."""

    folders: Mapping[str, Path]
    parts: Mapping[str, tuple[str, ...]]
    """File names of the partitions of each partitioned dependency, in row order."""

    def part(self, name: str, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        return read_part(self.folders[name] / part, columns)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a partitioned output, in row order. Ask for the few columns that fit in memory."""
        return pa.concat_tables([self.part(name, part, columns) for part in self.parts[name]])


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One Parquet partition. Read through ParquetFile, so that no dataset machinery guesses at the folder."""
    with pq.ParquetFile(path) as file:
        return file.read(columns=list(columns) if columns is not None else None)


def open_run(run: Path) -> Inputs:
    """All finished outputs of a run, as a step would be given them.

    Raises:
        GristmillError: there is no run in that folder, or ledger/outputs.json is damaged.
    """
    listing = run / "ledger" / "outputs.json"
    if not listing.exists():
        raise GristmillError(f"{run}: not a run folder (no ledger/outputs.json)")
    folders = {name: run / folder for name, folder in read_listing(listing).items() if (run / folder).is_dir()}
    parts = {name: tuple(sorted(path.name for path in f.glob("part-*.parquet"))) for name, f in folders.items()}
    return Inputs(folders, parts)
