"""Every measuring stage on text that nobody would write: a value or a null, never a crash, and no neighbour matters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import column_of, hostile

from gristmill.datapipe.filters.heuristics import FAMILIES, HeuristicsConfig
from gristmill.datapipe.filters.language import LanguageConfig
from gristmill.datapipe.filters.toxicity import ToxicityConfig
from gristmill.datapipe.filters.url import UrlConfig
from gristmill.datapipe.stages import duplicates, measure
from gristmill.datapipe.text import spans
from gristmill.datapipe.workflow.stage import Stage

MAKE: dict[str, Callable[[], Stage]] = {
    "heuristics": lambda: measure.Heuristics(HeuristicsConfig(families=tuple(FAMILIES))),
    "language": lambda: measure.Language(LanguageConfig()),
    "url": lambda: measure.Url(UrlConfig(bundled=False)),
    "pii": measure.Personal,
    "code": measure.Code,
    "markup": measure.Markup,
    "toxicity": lambda: measure.Toxicity(ToxicityConfig()),
    "sketch": lambda: duplicates.Sketch(duplicates.MinHashConfig()),
}
PIECES = [b".", b"...", b"#", b"- ", b"{", b"[1]", b"lorem ipsum", b"the ", b"@a.bc", b"1.2.3.4", b"<b>", b"$", b"\n\n"]
PIECES += [b"def f(:\n", b'"""', b"sk-", b"eyJ", b"AKIA", b"Mr. X. U.S.", "漢字".encode(), "e\u0301".encode()]
PIECES += [
    b"-----BEGIN RSA PRIVATE KEY-----",
    b"A" * 64 + b"\n",
    b"$$",
    rb"\[",
    rb"\]",
    rb"\begin{align}",
    rb"\end{align}",
    rb"$$\begin{align}y\end{align}$$",
]
# Columns of real numbers that may exceed 1: means, ratios, and n-grams whose occurrences overlap.
NO_SHARE = re.compile(r".*mean_\w+_length|\w+_hashes|\w+_ellipses|\w+_symbols|\w+_per_\w+|\w+_top_._gram")
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace")),
        st.binary(max_size=60),
        st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join),
        st.builds(lambda piece, times: piece * times, st.sampled_from(PIECES), st.integers(0, 400)),
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module", params=MAKE)
def stage(request: pytest.FixtureRequest) -> Stage:
    made = MAKE[request.param]()
    made.setup({})
    return made


def table_of(blobs: list[bytes]) -> pa.Table:
    column = column_of(blobs)
    return pa.table({"text": column, "url": column, "meta": column, "id": column})


def check(stage: Stage, blobs: list[bytes]) -> None:
    result = stage.annotate(table_of(blobs), {})
    assert result.num_rows == len(blobs)
    result.validate(full=True)
    for field in result.schema:
        column = result[field.name]
        if pa.types.is_floating(field.type):
            values = column.drop_null().to_pylist()
            most = math.inf if NO_SHARE.fullmatch(field.name) else 1 + 1e-6
            assert all(math.isfinite(value) and 0 <= value <= most for value in values), field.name
        if field.type == spans.TYPE:
            for blob, bounds in zip(blobs, column.to_pylist(), strict=True):
                assert bounds == sorted(bounds) and len(bounds) % 2 == 0, (field.name, blob)
                assert not bounds or (bounds[0] >= 0 and bounds[-1] <= len(blob)), (field.name, blob)
            spans.apply(column_of(blobs), [(column, "<X>")])  # raises where a span splits a character


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS)
def test_any_bytes_are_measured(stage: Stage, blobs: list[bytes]) -> None:
    check(stage, blobs)


def test_neighbours_and_order_change_nothing(stage: Stage) -> None:
    blobs = hostile(3, PIECES, documents=120).cast(pa.large_binary()).to_pylist()
    check(stage, blobs)
    together = stage.annotate(table_of(blobs), {})
    order = np.random.default_rng(1).permutation(len(blobs))
    shuffled = stage.annotate(table_of([blobs[row] for row in order]), {})
    assert shuffled.equals(together.take(order).cast(shuffled.schema))
    for row in range(0, len(blobs), 7):
        assert stage.annotate(table_of([blobs[row]]), {}).to_pylist() == together.slice(row, 1).to_pylist()
