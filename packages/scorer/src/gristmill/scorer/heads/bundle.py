"""A heads/ folder: everything a score depends on, and a self-test that proves it still gives the same scores here.

scorer.json pins backbone, taps, rubric and self-test; heads.safetensors names scorer.json by hash; no pickle anywhere.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gristmill.base.errors import DataError
from gristmill.base.files import atomic_path, read_json, sha256_file, write_json, write_text
from gristmill.scorer.backbone.staged import BackboneIdentity
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads.calibration import FORMAT as CALIBRATION_FORMAT
from gristmill.scorer.heads.card import card
from gristmill.scorer.heads.modules import make_judge, make_probe
from gristmill.scorer.rubric import Rubric, rubric_from_mapping

FORMAT = "gristmill.scorer/1"


@dataclass(frozen=True)
class SelfTest:
    """Token ids with the head outputs (fractions of the scale) that they gave when the bundle was made."""

    tokens: list[list[int]]
    probe: list[list[float]]
    judge: list[list[float]] | None


@dataclass(frozen=True)
class Bundle:
    """A heads/ folder in memory. `calibration` is None until calibrated; then nothing exits early."""

    backbone: BackboneIdentity
    config: TrainConfig
    rubric: Rubric
    probe: torch.nn.Module
    judge: torch.nn.Module | None
    selftest: SelfTest
    labels_sha: str
    metrics: dict[str, Any]
    calibration: dict[str, Any] | None = None


def save(bundle: Bundle, folder: Path) -> None:
    """Write scorer.json, heads.safetensors, metrics.json, calibration.json where there is one, and README.md."""
    from safetensors.torch import save_file

    from gristmill.base.config import to_mapping

    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "scorer.json",
        {
            "format": FORMAT,
            "backbone": dataclasses.asdict(bundle.backbone),
            "taps": {"probe": bundle.config.chosen_taps[0], "judge": bundle.config.chosen_taps[1], "pre_norm": True},
            "training": to_mapping(bundle.config),
            "rubric": to_mapping(bundle.rubric),
            "rubric_sha": bundle.rubric.sha,
            "labels_sha": bundle.labels_sha,
            "judge": bundle.judge is not None,
            "selftest": dataclasses.asdict(bundle.selftest),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
        },
    )
    tensors = {f"probe.{name}": tensor for name, tensor in bundle.probe.state_dict().items()}
    if bundle.judge is not None:
        tensors |= {f"judge.{name}": tensor for name, tensor in bundle.judge.state_dict().items()}
    tensors = {name: tensor.float().contiguous() for name, tensor in sorted(tensors.items())}
    # One key only: safetensors writes several in an order that changes from call to call.
    metadata = {"scorer_sha256": sha256_file(folder / "scorer.json")}
    with atomic_path(folder / "heads.safetensors") as temporary:
        save_file(tensors, temporary, metadata=metadata)
    write_json(folder / "metrics.json", bundle.metrics)
    if bundle.calibration is None:
        (folder / "calibration.json").unlink(missing_ok=True)
    else:
        write_json(folder / "calibration.json", bundle.calibration)
    write_text(
        folder / "README.md", card(bundle.backbone, bundle.config, bundle.rubric, bundle.metrics, bundle.calibration)
    )


def save_calibration(bundle: Bundle, calibration: dict[str, Any], folder: Path) -> None:
    """Replace the thresholds of a saved bundle, and its card."""
    write_json(folder / "calibration.json", calibration)
    write_text(folder / "README.md", card(bundle.backbone, bundle.config, bundle.rubric, bundle.metrics, calibration))


def load(folder: Path) -> Bundle:
    """Read and check a folder. The backbone is compared by check_backbone(), the scores by check_selftest().

    Raises:
        DataError: a file is missing, of another format, or not the one that scorer.json was written with.
    """
    from safetensors import SafetensorError, safe_open

    values = read_json(folder / "scorer.json")
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise DataError(
            f"{folder / 'scorer.json'}: format {found!r}, this version reads {FORMAT!r}; train the heads again"
        )
    path = folder / "heads.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, FileNotFoundError) as error:
        raise DataError(f"{path}: cannot be read ({error}); train the heads again") from None
    if metadata.get("scorer_sha256") != sha256_file(folder / "scorer.json"):
        raise DataError(f"{path}: was written with another scorer.json; copy both files of one bundle")
    rubric = rubric_from_mapping(values["rubric"], str(folder / "scorer.json"))
    if rubric.sha != values["rubric_sha"]:
        raise DataError(f"{folder / 'scorer.json'}: the rubric is not the one that its rubric_sha names")
    config = TrainConfig(**{**values["training"], "taps": tuple(values["training"]["taps"])})
    width, dimensions = values["backbone"]["width"], len(rubric.dimensions)
    probe = make_probe(width, dimensions, config)
    judge = make_judge(width, dimensions, config) if values["judge"] else None
    _fill(probe, "probe.", tensors, path)
    if judge is not None:
        _fill(judge, "judge.", tensors, path)
    calibration = None
    if (folder / "calibration.json").exists():
        calibration = read_json(folder / "calibration.json")
        _check_calibration(calibration, folder / "calibration.json")
    return Bundle(
        BackboneIdentity(**values["backbone"]), config, rubric, probe.eval(), judge.eval() if judge else None,
        SelfTest(**values["selftest"]), values["labels_sha"], read_json(folder / "metrics.json"), calibration,
    )  # fmt: skip


def check_backbone(bundle: Bundle, found: BackboneIdentity, where: Path) -> None:
    """Refuse a backbone other than the one the heads were trained on.

    Raises:
        DataError: the fingerprints of config, tokenizer and weights differ.
    """
    if found.fingerprint != bundle.backbone.fingerprint:
        raise DataError(
            f"{where}: backbone {found.name} ({found.fingerprint[:12]}) is not the one these heads were trained on: "
            f"{bundle.backbone.name} ({bundle.backbone.fingerprint[:12]}); give that one, or train heads for this"
        )


def _fill(head: torch.nn.Module, prefix: str, tensors: dict[str, torch.Tensor], path: Path) -> None:
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        head.load_state_dict(own)
    except RuntimeError as error:
        raise DataError(f"{path}: {prefix} {str(error).splitlines()[-1].strip()}") from None
    head.requires_grad_(False)


def _check_calibration(calibration: Any, path: Path) -> None:
    if not isinstance(calibration, dict) or calibration.get("format") != CALIBRATION_FORMAT:
        raise DataError(f"{path}: not {CALIBRATION_FORMAT!r}; run `scorer calibrate` again")
    for name, group in calibration["groups"].items():
        if group["tau_drop"] is not None and group["tau_drop"] > group["tau_keep"]:
            detail = json.dumps({key: group[key] for key in ("tau_drop", "tau_keep")})
            raise DataError(
                f"{path}: group {name!r} has tau_drop above tau_keep ({detail}); run `scorer calibrate` again"
            )
