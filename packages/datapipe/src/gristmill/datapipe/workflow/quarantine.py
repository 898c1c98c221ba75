"""Documents that a stage cannot handle: found by halves, annotated as if they held no text, and marked.

A mark is key-value metadata of the partition's Parquet file, so it is part of the content that fingerprints are made
of. It goes with its row into every row-aligned output that is made of a marked one, down to the selection, which
neither keeps nor drops such a document. RUN/quarantine/STAGE says the same to people, with tracebacks.
"""

from __future__ import annotations

import errno
import json
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.errors import GristmillError
from gristmill.base.files import CANNOT_WRITE, atomic_path
from gristmill.base.terminal import shown
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.workflow.stage import Inputs, Stage, read_part

KEY = b"gristmill.quarantined"
LINE, FRAMES = 200, 8
"""Characters of an error, and frames of its traceback, that are kept."""
THE_MACHINE_S = CANNOT_WRITE | {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""What the machine says for which no document is to blame."""
WHERE = ("id", "source", "file", "row")
"""What tells people which document it was."""
Marks = dict[int, str]
"""By row of a partition, why it is quarantined: `stage 'language' raised ValueError: ...`."""


@dataclass(frozen=True)
class Fault:
    """What became of one row."""

    reason: str
    trace: str


class StageFault(Exception):
    """A stage raises on so many rows that it is the one to mend. No GristmillError: its traceback is wanted."""


def most(rows: int) -> int:
    """How many rows of a partition a stage may fail on before it is the stage that is at fault."""
    return 1 + rows // 100


def annotate(
    stage: Stage, table: pa.Table, previous: Mapping[str, pa.Table], name_of: Callable[[int], str]
) -> tuple[pa.Table, dict[int, Fault]]:
    """What the stage makes of a partition, and the rows that it can only handle without their text.

    A row is at fault where it raises alone and the partition does not once the text of such rows is emptied: columns
    of strings are (but `source`, one of few names, which stages look things up by), and lists in `previous`, as spans
    point into the text. All other rows are then annotated together, as ever. No fault of a row are GristmillErrors,
    which are refusals, and what the machine lacks (memory, disk, network). One such row costs about four times the
    work of an undisturbed partition.

    Raises:
        StageFault: more than most() of the rows raise; `name_of` names the first of them.
        Exception: whatever the stage raised, where no row is at fault.
    """
    first = _attempt(stage, table, previous)
    if not isinstance(first, BaseException):
        return first, {}
    search = _Search(stage, table, previous, first, name_of)
    search.halve(range(len(table)), first)
    if search.faults:
        result = _attempt(stage, *_emptied(table, previous, list(search.faults)))
        if not isinstance(result, BaseException):
            return result, dict(sorted(search.faults.items()))
    if not isinstance(first, Exception):
        raise StageFault(_told(first)) from first  # else it would end the worker
    raise first


def _attempt(stage: Stage, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table | BaseException:
    """The annotations, or the error that a row may have caused."""
    try:
        result = stage.annotate(table, previous)
    except BaseException as error:
        if not _by_a_row(error):
            raise
        traceback.clear_frames(error.__traceback__)  # which hold all that the stage had made so far
        return error
    if result.num_rows != table.num_rows:
        raise GristmillError(f"stage {stage.name!r} returned {result.num_rows} rows for {table.num_rows}")
    return result


def _by_a_row(error: BaseException) -> bool:
    """Whether a row can be the cause: not where the stage refuses, the machine fails, or somebody ends the run."""
    if isinstance(error, OSError) and error.errno in THE_MACHINE_S:
        return False
    if isinstance(error, Exception):
        return not isinstance(error, (GristmillError, MemoryError, ConnectionError, TimeoutError))
    return type(error).__name__ == "PanicException"  # of libraries in Rust (tokenizers), which is no Exception


class _Search:
    """Halves what raises until single rows are left."""

    def __init__(
        self, stage: Stage, table: pa.Table, previous: Mapping[str, pa.Table], first: BaseException,
        name_of: Callable[[int], str],
    ) -> None:  # fmt: skip
        self._stage, self._table, self._previous, self._first, self._name_of = stage, table, previous, first, name_of
        self._alone = int(len(table) == 1)
        self.faults: dict[int, Fault] = {}

    def halve(self, rows: range, error: BaseException) -> None:
        """`rows` raise `error` together."""
        if len(rows) == 1:
            self._found(rows[0], error)
            return
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            if len(half):
                self._alone += len(half) == 1
                # Copied, not sliced: stages are given arrays that begin where their buffers do.
                some = pa.array(np.arange(half.start, half.stop))
                taken = {name: table.take(some) for name, table in self._previous.items()}
                outcome = _attempt(self._stage, self._table.take(some), taken)
                if isinstance(outcome, BaseException):
                    self.halve(half, outcome)

    def _found(self, row: int, error: BaseException) -> None:
        frames = "".join(traceback.format_tb(error.__traceback__, -FRAMES))
        self.faults[row] = Fault(f"stage {self._stage.name!r} raised {_told(error)}", f"{frames}{_told(error)}")
        if len(self.faults) > most(len(self._table)):
            raise StageFault(
                f"{_told(self._first)} ({len(self.faults):,} of {self._alone:,} rows that were tried alone raise, "
                f"first {self._name_of(next(iter(self.faults)))}: it is the stage that is at fault)"
            ) from self._first


def _told(error: BaseException) -> str:
    """`ValueError: ` and the first line of the message: the same in every run, safe to print, and short."""
    try:
        line = (str(error)[: 100 * LINE].splitlines() or [""])[0]
    except Exception:  # noqa: BLE001 - an error that cannot even say what it is
        line = ""
    line = re.sub(r"\b0x[0-9a-fA-F]+", "0x...", line)  # addresses of objects are others in every process
    return f"{type(error).__name__}: {shown(line[:LINE])[:LINE]}" if line else type(error).__name__


def _emptied(
    table: pa.Table, previous: Mapping[str, pa.Table], rows: list[int]
) -> tuple[pa.Table, dict[str, pa.Table]]:
    chosen = np.zeros(len(table), bool)
    chosen[rows] = True

    def without(table: pa.Table, empty: Callable[[pa.Field], object]) -> pa.Table:
        for at, field in enumerate(table.schema):
            if (value := empty(field)) is not None:
                column = pc.if_else(pa.array(chosen), pa.scalar(value, field.type), table.column(at))
                table = table.set_column(at, field, column)
        return table

    def text(field: pa.Field) -> str | None:
        is_text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        return "" if is_text and field.name != "source" else None

    def places(field: pa.Field) -> list[int] | None:
        return [] if pa.types.is_list(field.type) or pa.types.is_large_list(field.type) else None

    return without(table, text), {name: without(other, places) for name, other in previous.items()}


# Marks ----------------------------------------------------------------------------------------------------------------


def marked(table: pa.Table, marks: Marks) -> pa.Table:
    """The table with these marks and no others; as it is where there are none."""
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != KEY}
    if marks:
        metadata[KEY] = json.dumps({str(row): marks[row] for row in sorted(marks)}).encode()
    return table if metadata == (table.schema.metadata or {}) else table.replace_schema_metadata(metadata)


def marks_in(metadata: Mapping[bytes, bytes] | None) -> Marks:
    """Of a table's schema, or of a Parquet file."""
    found = (metadata or {}).get(KEY)
    return {int(row): reason for row, reason in json.loads(found).items()} if found else {}


def marks_of(path: Path) -> Marks:
    return marks_in(pq.read_metadata(path).metadata)


def together(several: Iterable[Marks]) -> Marks:
    """The first reason stands: what comes later was made of what that stage had found."""
    found: Marks = {}
    for marks in several:
        found = {**marks, **found}
    return found


def aligned_marks(inputs: Inputs, over: str, names: Iterable[str]) -> Iterator[Marks]:
    """For each partition of `over`, the marks in those of the named outputs that are row-aligned with it."""
    aligned = [name for name in names if set(inputs.parts.get(name, ())) == set(inputs.parts[over])]
    for part in inputs.parts[over]:
        yield together(marks_of(inputs.folders[name] / part) for name in aligned)


# For people -----------------------------------------------------------------------------------------------------------


def listing(folder: Path, part: str) -> Path:
    """RUN/quarantine/STAGE/part-*.jsonl, by the name of the partition."""
    return folder / f"{Path(part).stem}.jsonl"


def write_listing(path: Path, stage: str, over: Path, faults: Mapping[int, Fault]) -> None:
    """A line for each row at fault of the partition `over`; no file where there is none."""
    if not faults:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as file:
        for (row, fault), found in zip(faults.items(), _rows(over, WHERE, list(faults)), strict=True):
            told = {**found, "row": found.get("row", row), "stage": stage, "reason": fault.reason}
            told["traceback"] = fault.trace
            file.write(json.dumps(told) + "\n")


def name_of(over: Path, row: int) -> str:
    """`document 'id'`, or the row's number where rows have no id."""
    (found,) = _rows(over, ("id",), [row])
    return f"document '{shown(found['id'])}'" if "id" in found else f"row {row}"


def _rows(path: Path, columns: Iterable[str], rows: list[int]) -> list[dict[str, object]]:
    known = pq.read_schema(path).names
    table = read_part(path, [name for name in columns if name in known])
    return table.take(pa.array(rows)).to_pylist() if table.column_names else [{} for _ in rows]
