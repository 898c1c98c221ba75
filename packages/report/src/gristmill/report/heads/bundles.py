"""How well heads agree with the oracle, what exits would spare, and which thresholds were set: heads/NAME/*.json.

A head means little without its baselines, so every predictor stands in one table, on documents that none was fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gristmill.base.errors import DataError
from gristmill.base.files import read_json
from gristmill.report.columns import NotThere
from gristmill.report.heads import ALL

HEADS = ("judge", "probe", "deployed")
SPLITS = ("audit", "select")  # the one that nothing was chosen on comes first
TRAINING = ("judge_shipped", "reason", "probe_spearman", "judge_spearman", "judge_gain_needed")
GROUP = (
    "n", "graded", "target", "keep_rate", "keep_ci95", "tau_keep", "tau_drop", "exit_rate", "parent", "drop_parent",
    "oracle", "judge",
)  # fmt: skip
CERTIFICATE = (
    "mode", "max_false_drop", "confidence", "bounds", "n_labelled", "n_good", "fd_upper", "exit_rate", "pool",
    "keep_by",
)  # fmt: skip
ESTIMATES = ("spearman", "mae", "bias", "auroc", "precision", "lift", "qwk")
CURVE = ("exit_rate", "false_drop", "false_drop_upper", "false_drop_judge", "saved", "saved_full")
DRIFT = ("rubric", "source", "n", "psi", "psi_limit", "keep_rate", "keep_range", "reason", "drifted")


def read(run: Path) -> list[dict[str, Any]]:
    """One dict per folder of heads/, that of most documents first: {"name", "training", "splits", "exits"}.

    A split holds documents, verdict, predictors, dimensions, slices, reliability and chances, as rows of tables and
    points of charts; the keys of an estimate NAME are NAME and NAME_ci95.

    Raises:
        NotThere: no heads were trained.
        DataError: no splits in a file.
    """
    paths = sorted((run / "heads").glob("*/metrics.json"))
    if not paths:
        raise NotThere("heads/NAME/metrics.json", "scorer train-heads")
    return sorted((_bundle(path) for path in paths), key=_size, reverse=True)


def read_calibration(folder: Path) -> dict[str, Any]:
    """{"groups": [{"name", ...}], "certificate": {...}} of a folder of heads; (all) last.

    Raises:
        NotThere: nothing was calibrated.
        DataError: no groups in the file.
    """
    written, groups = _calibration(folder / "calibration.json", f"heads/{folder.name}/", "scorer calibrate")
    ordered = sorted(groups, key=lambda name: name == ALL)
    return {
        "groups": [{"name": name, **_picked(groups[name], GROUP)} for name in ordered],
        "certificate": _picked(written, CERTIFICATE),
    }


def read_thresholds(run: Path) -> dict[str, dict[str, Any]]:
    """The thresholds of each source as they were applied, of whichever heads scored it.

    Raises:
        NotThere: nothing was calibrated yet.
        DataError: no groups in the file.
    """
    return _calibration(run / "thresholds" / "calibration.json", "thresholds/", "the thresholds step")[1]


def read_promises(run: Path, thresholds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is promised of each source's thresholds, by the heads that they are from; a source whose are of none of the
    run's heads is left out.

    own: by its own labels; else `pool` says of which sources together. good, lost, upper: of its own good documents,
    those that exit, and the upper bound of their share.
    """
    calibrations: list[tuple[str, dict[str, Any]]] = []
    for path in sorted((run / "heads").glob("*/calibration.json")):
        try:
            calibrations.append((path.parent.name, _calibration(path, "", "")[0]))
        except DataError:
            continue  # the panel of the heads says so
    found: dict[str, Any] = {}
    for source, group in thresholds.items():
        for name, written in calibrations:
            unseen = {**written["groups"].get(ALL, {}), "tau_drop": None}
            if group in (*written["groups"].values(), unseen):
                oracle = group.get("oracle") or {}
                found[source] = {
                    "heads": name,
                    **_picked(written, ("mode", "max_false_drop", "confidence", "bounds", "keep_by", "pool")),
                    **_picked(group, ("target", "keep_ci95", "n")),
                    "own": group.get("drop_parent") is None,
                    "good": oracle.get("n"),
                    "lost": oracle.get("errors"),
                    "upper": oracle.get("upper"),
                }
                break
    return found


def read_drift(run: Path) -> dict[str, Any]:
    """{"sources": [...]}: scores of each source against those that its thresholds were set on.

    Raises:
        NotThere: nothing was compared yet.
    """
    path = run / "drift" / "drift.json"
    if not path.exists():
        raise NotThere("drift/drift.json", "the drift step")
    return {"sources": [_picked(row, DRIFT) for row in read_json(path)["sources"]]}


def _bundle(path: Path) -> dict[str, Any]:
    written = read_json(path)
    if not isinstance(written.get("splits"), dict):
        raise DataError(f"{path}: no splits; train the heads again to have it made")
    splits = sorted(written["splits"].items(), key=lambda item: _order(item[0]))
    exits = written.get("exits")
    return {
        "name": path.parent.name,
        "training": _picked(written.get("training") or {}, TRAINING),
        "splits": [_split(name, split) for name, split in splits],
        "exits": _exits(exits) if exits and exits.get("splits") else None,
        "card": _card(path.parent, written.get("training") or {}),
    }


def _card(folder: Path, training: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the heads are, on what they stand and what they were taught; None where scorer.json is not there."""
    path = folder / "scorer.json"
    if not path.is_file():
        return None
    written = read_json(path)
    rubric, weights = written.get("rubric") or {}, folder / "heads.safetensors"
    return {
        **_picked(written, ("format", "backbone", "taps", "windows", "judge", "labels_sha", "rubric_sha", "versions")),
        "taught": _picked(training, ("fit", "select", "windows")),
        "seed": (written.get("training") or {}).get("seed"),
        "bytes": weights.stat().st_size if weights.is_file() else None,
        "rubric": {
            "name": rubric.get("name"),
            "instruction": rubric.get("instruction"),
            "dimensions": [
                _picked(one, ("name", "question", "min", "max", "direction", "weight"))
                for one in rubric.get("dimensions") or []
            ],
        },
    }


def _split(name: str, split: Mapping[str, Any]) -> dict[str, Any]:
    predictors, decisions = split["predictors"], split["decision"]
    head, against = split["verdict"]["head"], split["verdict"]["against"]
    ceilings, reliability = split.get("ceiling") or {}, split["reliability"]
    return {
        "name": name,
        "documents": split["documents"],
        "head": head,
        "against": [
            {"name": other, **_picked(found, ("difference", "difference_ci95"))} for other, found in against.items()
        ],
        "predictors": [
            _predictor(one, values["quality"], decisions.get(one) or {}) for one, values in predictors.items()
        ],
        "dimensions": [
            {
                "name": dimension,
                "n": values.get("n"),
                "ceiling": (ceilings.get(dimension) or {}).get("ceiling"),
                **_estimates(values),
            }
            for dimension, values in predictors[head].items()
            if dimension != "quality"
        ],
        "slices": _slices(split["slices"], decisions.get(head) or {}, head),
        "reliability": [{"head": one, **found["quality"]} for one, found in reliability.items()],
        "chances": [
            {"dimension": dimension, "levels": [{"level": level, **found} for level, found in levels.items()]}
            for dimension, levels in (reliability[head].get("levels") or {}).items()
            if levels
        ],
    }


def _predictor(name: str, quality: Mapping[str, Any], decision: Mapping[str, Any]) -> dict[str, Any]:
    within = quality.get("within_source") or {}
    return {
        "name": name,
        "head": name in HEADS,
        "within": _picked(within, ("mean", "mean_ci95", "worst")),
        **_estimates({**decision, **quality}),
    }


def _slices(slices: Mapping[str, Any], decision: Mapping[str, Any], head: str) -> list[dict[str, Any]]:
    kept = decision.get("by") or {}
    return [
        {"by": kind, "value": value, "n": found[head]["n"], **_estimates(found[head]),
         **_picked((kept.get(kind) or {}).get(value) or {}, ("keep_rate", "kept_tokens"))}
        for kind, values in slices.items()
        for value, found in values.items()
        if head in found
    ]  # fmt: skip


def _exits(exits: Mapping[str, Any]) -> dict[str, Any]:
    splits = sorted(exits["splits"].items(), key=lambda item: _order(item[0]))
    curves = [{"name": name, "n_good": split["n_good"], **_picked(split, CURVE)} for name, split in splits]
    return {**_picked(exits, ("probe", "judge", "layers")), "splits": curves}


def _calibration(path: Path, where: str, made_by: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    if not path.exists():
        raise NotThere(f"{where}calibration.json", made_by)
    written = read_json(path)
    groups = written.get("groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise DataError(f"{path}: no groups; calibrate again to have it made")
    return written, groups


def _estimates(values: Mapping[str, Any]) -> dict[str, Any]:
    return _picked(values, [key for name in ESTIMATES for key in (name, f"{name}_ci95")])


def _picked(values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: values.get(key) for key in keys}


def _size(bundle: Mapping[str, Any]) -> int:
    return sum(split["documents"] for split in bundle["splits"])


def _order(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)
