"""Drift is told where a source's scores have moved, and not where chance or a small partition moves them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from gristmill.base.errors import DataError
from gristmill.scorer.config import CalibrationConfig
from gristmill.scorer.heads.calibration import Labelled, Unlabelled, calibrate
from gristmill.scorer.heads.drift import Drift, check_drift, stability_index


def scores(seed: int, n: int = 2000, shift: float = 0.0, source: str = "web") -> pa.Table:
    generator = np.random.default_rng(seed)
    quality = np.clip(generator.beta(2, 2, n) + shift, 0, 1)
    columns = {"id": [f"{seed}-{i}" for i in range(n)], "source": [source] * n, "quality": quality.astype(np.float32)}
    return pa.table({**columns, "tokens": generator.integers(50, 500, n).astype(np.int32)})


def calibration(config: CalibrationConfig | None = None, n: int = 2000) -> dict:
    quality = scores(0, n)["quality"].to_numpy().astype(float)
    sizes = scores(0, n)["tokens"].to_numpy().astype(float)
    loose = Unlabelled(["web"] * n, quality, None, tokens=sizes)
    return calibrate(Labelled(["web"] * n, quality, quality), loose, config or CalibrationConfig())


@pytest.mark.parametrize("by", ["documents", "tokens"])
def test_documents_of_the_same_distribution_raise_no_alarm(by: str) -> None:
    known = calibration(CalibrationConfig(keep_by=by))  # pyright: ignore[reportArgumentType]
    alarms = [check_drift(scores(seed, n), known)[0].drifted for n in (60, 300, 3000) for seed in range(1, 101)]
    assert sum(alarms) <= 4


def test_thresholds_by_the_tokens_of_whole_documents_are_compared_by_what_is_known_of_both() -> None:
    """One document in four is a book, of which scoring reads the same 1,000 tokens as of any: no drift."""
    whole = np.where(np.arange(2000) % 4 == 0, 40_000.0, 500.0)
    quality = np.where(whole > 1000, 0.9, 0.4) + np.random.default_rng(0).normal(0, 0.1, 2000)
    loose = Unlabelled(["web"] * 2000, quality, None, tokens=whole)
    known = calibrate(Labelled(["web"] * 2000, quality, quality), loose, CalibrationConfig(keep_by="tokens"))
    columns = {"id": [f"n{i}" for i in range(2000)], "source": ["web"] * 2000, "quality": quality}
    (drift,) = check_drift(pa.table({**columns, "tokens": np.minimum(whole, 1000).astype(np.int32)}), known)
    assert not drift.drifted and drift.keep_rate is not None and drift.keep_rate < 0.1


def test_a_shift_is_told_by_name_and_number() -> None:
    (drift,) = check_drift(scores(1, shift=0.15), calibration())
    assert drift.drifted and drift.psi is not None and drift.psi > 0.2
    assert str(drift).startswith("web: 2000 documents, population stability index 0.")


def test_a_keep_rate_out_of_its_range_is_drift_even_where_the_index_is_small() -> None:
    (drift,) = check_drift(scores(1, n=20_000, shift=0.04), calibration(n=20_000))
    assert drift.psi is not None and drift.psi < 0.2 and drift.keep_range is not None
    assert drift.keep_rate is not None and drift.keep_rate > drift.keep_range[1] and drift.drifted


def test_sources_that_cannot_be_compared_say_why() -> None:
    known = calibration()
    known["groups"]["rare"] = known["groups"]["web"] | {"parent": "(all)"}
    tables = [scores(1, 10), scores(2, 500, source="rare"), scores(3, 500, source="x")]
    rare, few, stranger = check_drift(pa.concat_tables(tables), known)
    assert (few.psi, rare.psi, stranger.psi) == (None, None, None) and not few.drifted and not rare.drifted
    assert "fewer than 50" in str(few) and "too few documents of it" in str(rare)
    assert stranger.drifted and "not there when thresholds were set" in str(stranger)


def test_documents_without_a_score_do_not_count() -> None:
    table = scores(1)
    nulled = pa.array([None if i % 2 else v for i, v in enumerate(table["quality"].to_pylist())], pa.float32())
    (drift,) = check_drift(table.set_column(2, "quality", nulled), calibration())
    assert drift.n == 1000 and not drift.drifted


def test_scores_that_many_documents_share_are_no_drift() -> None:
    lumps = np.repeat([0.0, 0.5, 1.0], [600, 200, 200])
    known = calibrate(Labelled(["a"] * 1000, lumps, lumps), Unlabelled(["a"] * 1000, lumps, None), CalibrationConfig())
    assert stability_index(lumps, known["groups"]["a"])[0] < 0.01
    assert stability_index(np.roll(lumps, 1)[:700], known["groups"]["a"])[0] > 0.2


def test_a_table_without_qualities_is_refused() -> None:
    with pytest.raises(DataError, match="no column 'quality'"):
        check_drift(scores(1).drop_columns(["quality"]), calibration())


def test_nothing_compared_is_no_drift() -> None:
    assert not Drift("a", 0, reason="none").drifted
