"""How well the heads agree with the oracle, and which thresholds were set from them: metrics.json and calibration.json.

One row per rubric dimension with every predictor beside the others, since a head means little without its baselines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.base.errors import DataError
from gristmill.base.files import read_json
from gristmill.report.columns import NotThere

ALL = "(all)"  # the group of calibration.json that a source without its own falls back to
TRAINING = ("judge_shipped", "reason", "probe_spearman", "judge_spearman", "judge_gain_needed")
GROUP = ("n", "target", "keep_rate", "tau_keep", "tau_drop", "exit_rate", "parent")
CERTIFICATE = ("mode", "max_false_drop", "confidence", "n_labelled", "n_good", "errors", "fd_upper", "tau_drop")


def read_metrics(run: Path) -> dict[str, Any]:
    """{"training": ..., "splits": [{"name", "documents", "predictors", "rows": [{"name", "cells"}]}]}.

    A row is a dimension, the quality last; its cells hold spearman, ci95, mae and qwk, predictor by predictor.

    Raises:
        NotThere: no heads were trained.
        DataError: no splits in the file.
    """
    path = run / "heads" / "metrics.json"
    if not path.exists():
        raise NotThere("heads/metrics.json", "scorer train-heads")
    written = read_json(path)
    if not isinstance(written.get("splits"), dict):
        raise DataError(f"{path}: no splits; train the heads again to have it made")
    training = written.get("training") or {}
    return {
        "training": {key: training.get(key) for key in TRAINING},
        "splits": [_split(name, split) for name, split in written["splits"].items()],
    }


def read_calibration(run: Path) -> dict[str, Any]:
    """{"groups": [{"name", n, target, keep_rate, tau_keep, tau_drop, exit_rate}], "certificate": {...}}; (all) last.

    Raises:
        NotThere: nothing was calibrated.
        DataError: no groups in the file.
    """
    path = run / "heads" / "calibration.json"
    if not path.exists():
        raise NotThere("heads/calibration.json", "scorer calibrate")
    written = read_json(path)
    groups = written.get("groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise DataError(f"{path}: no groups; calibrate again to have it made")
    ordered = sorted(groups, key=lambda name: name == ALL)
    return {
        "groups": [{"name": name, **{key: groups[name].get(key) for key in GROUP}} for name in ordered],
        "certificate": {key: written.get(key) for key in CERTIFICATE},
    }


def _split(name: str, split: Mapping[str, Any]) -> dict[str, Any]:
    predictors = split["predictors"]
    dimensions = dict.fromkeys(dimension for values in predictors.values() for dimension in values)
    ordered = sorted(dimensions, key=lambda dimension: dimension == "quality")
    return {
        "name": name,
        "documents": split.get("documents"),
        "predictors": list(predictors),
        "rows": [
            {
                "name": dimension,
                "cells": {predictor: _cell(values.get(dimension) or {}) for predictor, values in predictors.items()},
            }
            for dimension in ordered
        ],
    }


def _cell(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"ci95": values.get("spearman_ci95"), **{key: values.get(key) for key in ("spearman", "mae", "qwk")}}
