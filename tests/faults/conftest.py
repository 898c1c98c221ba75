"""Undisturbed runs of the small demo and of the small filtering pipeline, which every disturbed one must equal."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import small_filter
from tests.support.kills import Demo
from tests.support.oracle_server import Oracle
from tests.support.outputs import differences
from tests.support.ray_cluster import PIPELINES
from tests.support.scripts import environment
from tests.support.small_demo import write_inputs


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Run in one process first, when kernels may have to be compiled; then on Ray, as the disturbed ones will be."""
    folder = tmp_path_factory.mktemp("small")
    write_inputs(folder / "inputs")
    with Oracle(seconds=0.02) as oracle:
        demo = Demo(folder / "inputs", oracle.url, folder / "undisturbed", 0.0)
        _run(demo, demo.clean, 0)
        seconds = _run(demo, folder / "on_ray", 2)
        assert differences(folder / "on_ray", demo.clean) == []
        yield replace(demo, seconds=seconds)


def _run(demo: Demo, output: Path, workers: int) -> float:
    """The seconds that it takes."""
    started, variables = time.monotonic(), environment(PYTHONPATH=PIPELINES)
    command = demo.command(output, "--workers", workers)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return time.monotonic() - started


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_filter.write_corpus(tmp_path_factory.mktemp("filter") / "corpus")


@pytest.fixture(scope="session")
def filtered(corpus: Path) -> Path:
    """The run of the filtering pipeline over `corpus`."""
    folder = corpus.with_name("undisturbed")
    code, error = small_filter.run(corpus, folder)
    assert code == 0, error
    return folder
