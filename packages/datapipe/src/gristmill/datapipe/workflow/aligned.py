"""Columns of a whole run, written as the partitions that they belong to, with the marks of what they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.files import atomic_path
from gristmill.datapipe.workflow.quarantine import aligned_marks, marked
from gristmill.datapipe.workflow.stage import Inputs


def write_aligned(inputs: Inputs, over: str, out: Path, columns: Mapping[str, Any]) -> None:
    """Whole-run columns cut into the partitions of `over`."""
    table, start = pa.table(dict(columns)), 0
    for part, marks in zip(inputs.parts[over], aligned_marks(inputs, over, inputs.folders), strict=True):
        with pq.ParquetFile(inputs.folders[over] / part) as file:
            rows = file.metadata.num_rows
        with atomic_path(out / part) as temporary:
            pq.write_table(marked(table.slice(start, rows), marks), temporary, compression="zstd")
        start += rows
