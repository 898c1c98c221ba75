"""A run of one stage that goes wrong in a way which the environment names, and a selection by what it measures.

    FRAGILE=one python tests/support/fragile.py INPUT.jsonl RUN WORKERS TIMEOUT

FRAGILE: nothing, one (raises on one row), all (on every row), hang (on one row, for ever), leak (keeps memory with each
partition), slow (takes half a second for each). FRAGILE_VERSION: of the stage; a higher one is the stage mended.
"""

from __future__ import annotations

import builtins
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from gristmill.base import cli
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.policy_file import read_policy
from gristmill.datapipe.select import Select
from gristmill.datapipe.workflow.options import RunOptions
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Stage

VICTIM = "web-13"
LEAK_BYTES = 300_000_000
POLICY = {"name": "fragile", "rule": [{"name": "words", "column": "fragile.words", "min": 200}]}


class Fragile(Stage):
    name, folder, config = "fragile", "annotations/fragile", None
    version = int(os.environ.get("FRAGILE_VERSION", "1"))
    columns = ("id", "text")

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        fault, victim = os.environ.get("FRAGILE"), VICTIM in table["id"].to_pylist()
        if fault == "all" or (fault == "one" and victim):
            raise ValueError("a bug in this stage")
        if fault == "hang" and victim:
            time.sleep(3600)
        if fault == "leak":
            builtins.__dict__.setdefault("leaked", []).append(bytearray(b"x") * LEAK_BYTES)  # of the whole process
        if fault == "slow":
            time.sleep(0.5)
        return pa.table({"words": pc.list_value_length(pc.utf8_split_whitespace(table["text"]))})


def main() -> int:
    text, output, workers, timeout = sys.argv[1:]
    ingest = Ingest((text,), IngestConfig(rows_per_partition=4), max_bad_fraction=0.2)
    nodes = [Fragile(), Select(read_policy(POLICY, "fragile"), tokens=False)]
    Runner(Path(output), ingest, nodes, workers=int(workers), options=RunOptions(timeout=timeout)).run()
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded("fragile.py", main))
