"""Undisturbed runs of the small demo and of the small filtering pipeline, which every disturbed one must equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import small_filter
from tests.support.kills import Demo
from tests.support.outputs import differences


@pytest.fixture(scope="session")
def demo(small_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Made once more on Ray, as the disturbed ones will be: so long it takes."""
    folder = tmp_path_factory.mktemp("small") / "on_ray"
    seconds = small_demo.run(folder, workers=2)
    assert differences(folder, small_demo.clean) == []
    return replace(small_demo, seconds=seconds)


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
