"""The checks that the other tests rely on find what they are to find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.support.outputs import account, differences


def test_differences_of_runs(filtered: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(filtered, tmp_path / "run"))
    assert differences(run, filtered) == []
    first, second = sorted((run / "annotations" / "heuristics").glob("part-*.parquet"))[:2]
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second.unlink()
    (run / "shards" / "more.json").write_text("{}")
    assert differences(run, filtered) == [*(str(path.relative_to(run)) for path in (first, second)), "shards/more.json"]


@pytest.mark.parametrize(
    ("table", "change", "told"),
    [
        ("documents", "drop", "9 documents, 10 decisions"),
        ("both", "drop", "missing: "),
        ("both", "repeat", "there twice: "),
        ("inputs", "more", "missing: "),
        ("inputs", "rename", "id 'web-0', in the input 'other'"),
        ("quarantine", "repeat", "there twice: "),
    ],
)
def test_rows_that_are_not_accounted_for(
    corpus: Path, filtered: Path, tmp_path: Path, table: str, change: str, told: str
) -> None:
    run, inputs = Path(shutil.copytree(filtered, tmp_path / "run")), Path(shutil.copytree(corpus, tmp_path / "corpus"))
    assert account(run, inputs).ingested == 44
    if table in ("documents", "both"):
        for folder in ("documents", "selection") if table == "both" else ("documents",):
            path = sorted((run / folder).glob("part-*.parquet"))[0]
            rows = pq.ParquetFile(path).read()
            pq.write_table(rows.slice(1) if change == "drop" else rows.take([0, *range(len(rows))]), path)
    elif table == "inputs":
        text = (inputs / "web.jsonl").read_text()
        changed = (
            text + json.dumps({"id": "new", "text": "x"}) if change == "more" else text.replace("web-0", "other", 1)
        )
        (inputs / "web.jsonl").write_text(changed)
    else:
        (listing,) = (run / "quarantine").glob("*.jsonl")
        listing.write_text(listing.read_text() * 2)
    with pytest.raises(AssertionError, match=told):
        account(run, inputs)
