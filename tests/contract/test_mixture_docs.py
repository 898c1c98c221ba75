"""docs/mixtures.md: its mixture loads, and its Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from tests.support.small_shards import TOKENIZER

from gristmill.shards.mixture import load_mixture
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

PAGE = (Path(__file__).parents[2] / "docs" / "mixtures.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_mixture_of_the_page_loads_and_its_python_runs(tmp_path: Path) -> None:
    path = tmp_path / "web40_code20.toml"
    path.write_text(block("toml"))
    documented = load_mixture(path)
    assert [phase.name for phase in documented.phase] == ["mid", "long"]
    for name in documented.weights:
        lengths = np.full(40, 1_000)
        tokens = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
            pa.array(np.ones(lengths.sum()), pa.uint16()),
        )
        rows = {"id": [f"{name}-{i}" for i in range(40)], "tokens": tokens, "file": [name] * 40, "row": range(40)}
        write_source(tmp_path / "data", SourceSpec(name, TOKENIZER), [pa.table(rows)], ramp=(8_000,))
    plain = re.split(r"^\[\[", block("toml"), flags=re.MULTILINE)[0]  # without phases: this dataset is small
    path.write_text(plain)
    write_manifest(tmp_path / "data", [path])
    code = block("python").replace("hf://datasets/ORG/NAME", str(tmp_path / "data"))
    code = code.replace("tokens=10**9", "tokens=2**16").replace("2**19", "2**14").replace("    ...\n", "")
    done = subprocess.run([sys.executable, "-c", code + "\nprint(state)"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\{'v': 1, 'plan': '[0-9a-f]{64}', 'next_sequence': 32\}\n", done.stdout)
