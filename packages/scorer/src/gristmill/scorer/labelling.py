"""From documents to labels: the sample, graded once or more often, with what later steps need to know of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError, UsageError
from gristmill.scorer.audit.injections import suspicious
from gristmill.scorer.heads.calibration import ALL
from gristmill.scorer.heads.files import check_files, read_calibration
from gristmill.scorer.heads.hub import locate
from gristmill.scorer.rubric import Rubric
from gristmill.scorer.sampling import Sample, near_threshold, repeated, split_of
from gristmill.scorer.tables import TYPE, read_parquet

Grade = Callable[[Sequence[str], Sequence[str | None], int], pa.Table]
"""Content types, texts and the number of the repeat -> grades, as oracle.grade.grade_by_type gives them."""


def label_sample(
    documents: pa.Table, sample: Sample, rubrics: Mapping[str, Rubric], repeats: int, grade: Grade
) -> pa.Table:
    """Labels of the sample's new rows, those of the splits sampling.REPEATED `repeats` times.

    Columns: id, source, weight, uniform, split, flagged (the document may be talking to its grader), the columns of the
    grades, and repeat (int32: 0 for the first grading). All first gradings come first.

    Raises:
        DataError: documents to be graded repeatedly have one id.
    """
    new = documents.take(pa.array(sample.indices[sample.new]))
    ids = new["id"].to_pylist()
    if repeats > 1 and len(set(ids)) < len(ids):
        raise DataError(f"{len(ids) - len(set(ids))} ids are of several documents: their repeats cannot be told apart")
    splits = [split_of(identifier) for identifier in ids]
    rows, repeat = repeated(splits, repeats)
    texts = new["text"].to_pylist()
    types = [kind or "" for kind in new[TYPE if TYPE in new.column_names else "source"].to_pylist()]
    grades = []
    for again in range(repeats):
        own = rows[repeat == again]
        grades.append(grade([types[row] for row in own], [texts[row] for row in own], again))
    names = [name for rubric in rubrics.values() for name in rubric.names]
    flagged = [bool(suspicious(text or "", names)) for text in texts]
    head = {
        "id": new["id"].cast(pa.string()),
        "source": new["source"].cast(pa.string()),
        "weight": pa.array(sample.weights[sample.new], pa.float32()),
        "uniform": pa.array(sample.uniform[sample.new]),
        "split": pa.array(splits, pa.string()),
        "flagged": pa.array(flagged, pa.bool_()),
    }
    table = pa.table(head).take(pa.array(rows))
    graded = pa.concat_tables(grades)
    for name in graded.column_names:
        table = table.append_column(name, graded[name])
    return table.append_column("repeat", pa.array(repeat))


def near(documents: pa.Table, scores: Path, tau: float | None, heads: Path | None) -> np.ndarray:
    """Mask of the documents whose score lies near `tau`, or near the tau_keep of their source in a heads/ folder.

    scores: a table with id and quality, as `scorer score` writes it; documents without a score are not near.

    Raises:
        UsageError: neither tau nor heads, or heads that are not calibrated.
    """
    sources = documents["source"].to_pylist()
    threshold: float | dict[str, float]
    if tau is not None:
        threshold = tau
    elif heads is not None:
        folder = locate(heads)
        check_files(folder)
        calibration = read_calibration(folder)
        if calibration is None:
            raise UsageError(f"{heads}: not calibrated, so there is no threshold to be near to; `scorer calibrate` it")
        groups = calibration["groups"]
        threshold = {source: groups.get(source, groups[ALL])["tau_keep"] for source in set(sources)}
    else:
        raise UsageError("--scores needs a threshold: --tau, or --heads of a calibrated folder")
    table = read_parquet(scores)
    known = dict(zip(table["id"].to_pylist(), table["quality"].to_pylist()))
    values = [known.get(identifier) for identifier in documents["id"].to_pylist()]
    return near_threshold(np.array(values, np.float64), sources, threshold)
