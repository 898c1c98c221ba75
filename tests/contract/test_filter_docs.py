"""docs/filters.md names every column that the measuring stages write, and no other."""

from __future__ import annotations

import importlib
import itertools
import re
import sys
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pytest

from gristmill.datapipe.contamination.eval_sets import EvalSetsConfig
from gristmill.datapipe.filters.heuristics import FAMILIES, HeuristicsConfig
from gristmill.datapipe.filters.language import LanguageConfig
from gristmill.datapipe.filters.toxicity import ToxicityConfig
from gristmill.datapipe.filters.url import UrlConfig
from gristmill.datapipe.policy_file import load_policy
from gristmill.datapipe.stages import measure
from gristmill.datapipe.stages.contamination import Contamination

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "pipelines"))
DUPLICATES: dict[str, pa.Schema] = importlib.import_module("measures").DUPLICATES
STAGES = {
    "heuristics": lambda: measure.Heuristics(HeuristicsConfig(families=tuple(FAMILIES))),
    "language": lambda: measure.Language(LanguageConfig()),
    "url": lambda: measure.Url(UrlConfig(bundled=False)),
    "pii": measure.Personal,
    "code": measure.Code,
    "markup": measure.Markup,
    "toxicity": lambda: measure.Toxicity(ToxicityConfig()),
    "contamination": lambda: Contamination(EvalSetsConfig(sets=("bundled",))),
}
OTHERS = {"outliers", "perplexity", "classifier", "scores", "tokens"}


def documented() -> dict[str, set[str]]:
    """Columns by annotation: the first cell of each row under its heading; in the table of models, the second."""
    found: dict[str, set[str]] = defaultdict(set)
    annotation = ""
    for line in (ROOT / "docs" / "filters.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            name = re.fullmatch(r"### `(\w+)`", line)
            annotation = name[1] if name else ""
        elif line.startswith("| `"):
            cells = line.strip("|").split("|")
            names = re.findall(r"`([^`]+)`", cells[0 if annotation else 1])
            owner = annotation or re.findall(r"`([^`]+)`", cells[0])[0]
            found[owner] |= {each for name in names for each in expanded(name)}
    return found


def expanded(name: str) -> list[str]:
    """a_{b,c} as a_b and a_c."""
    parts = [part.split(",") for part in re.split(r"[{}]", name)]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


@pytest.fixture(scope="module")
def written() -> dict[str, pa.Schema]:
    row = pa.table({"text": ["a b"], "url": ["https://a.b/c.py"], "meta": pa.array([None], pa.string()), "id": ["x"]})
    found = {}
    for name, make in STAGES.items():
        stage = make()
        stage.setup({})
        found[name] = stage.annotate(row, {}).schema
        assert stage.writes() == found[name]
        assert stage.annotate(row.slice(0, 0), {}).schema == found[name], f"{name}: a part without rows differs"
    return found


def test_every_column_is_documented(written: dict[str, pa.Schema]) -> None:
    told = documented()
    assert {name: sorted(schema.names) for name, schema in written.items()} == {
        name: sorted(told[name]) for name in written
    }


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines" / "policies").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_policies_read_columns_that_exist(path: Path, written: dict[str, pa.Schema]) -> None:
    policy = load_policy(path)
    known = {**written, **DUPLICATES}
    for column in (*(rule.column for rule in policy.rule), *(edit.column for edit in policy.edit)):
        annotation, _, name = column.partition(".")
        assert annotation in OTHERS or name in ("", *known[annotation].names), column
    for edit in policy.edit:
        annotation, _, name = edit.column.partition(".")
        assert known[annotation].field(name).type == pa.list_(pa.int32()), edit.column


def test_the_page_on_duplicates_names_what_they_find() -> None:
    rows = re.findall(
        r"^\| (`[^|]+) \|[^|]+\| ([^|]+) \|$", (ROOT / "docs" / "duplicates.md").read_text(), re.MULTILINE
    )
    told = {name: columns.split(", ") for names, columns in rows for name in re.findall(r"`(\w+)`", names)}
    assert told == {name: schema.names for name, schema in DUPLICATES.items()}
