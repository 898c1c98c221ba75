"""A heads/ folder: everything a score depends on, and a self-test that proves it still gives the same scores here.

scorer.json pins backbone, taps, windows and rubric; heads and self-test are safetensors; files.py guards them all.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gristmill.base.config import from_mapping, to_mapping
from gristmill.base.errors import DataError
from gristmill.base.files import atomic_path, read_json, write_json, write_text
from gristmill.scorer.backbone.staged import BackboneIdentity
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads.card import card
from gristmill.scorer.heads.files import (
    CALIBRATION,
    FORMAT,
    check_calibration,
    check_files,
    identity,
    read_calibration,
    read_scorer,
    replaced,
    write_manifest,
)
from gristmill.scorer.heads.modules import make_judge, make_probe
from gristmill.scorer.heads.selftest import SelfTest
from gristmill.scorer.rubric import Rubric, rubric_from_mapping


@dataclass(frozen=True)
class Bundle:
    """A heads/ folder in memory. `calibration` is None until calibrated; then nothing exits early."""

    backbone: BackboneIdentity
    config: TrainConfig
    rubric: Rubric
    probe: nn.Module
    judge: nn.Module | None
    selftest: SelfTest
    labels_sha: str
    metrics: dict[str, Any]
    calibration: dict[str, Any] | None = None
    identity: str = ""
    """See files.identity(); of a folder that was read."""


def save(bundle: Bundle, folder: Path) -> None:
    """Write the folder whole; what stood there before goes.

    Raises:
        UsageError: what stands there holds files that are no bundle's.
    """
    with replaced(folder) as temporary:
        temporary.mkdir(parents=True)
        _write(bundle, temporary)
        _write_calibration(bundle, temporary)


def save_calibration(bundle: Bundle, calibration: dict[str, Any], folder: Path) -> None:
    """Replace the thresholds of a saved bundle, and its card."""
    check_calibration(calibration, folder / CALIBRATION)
    with replaced(folder) as temporary:
        shutil.copytree(folder, temporary)
        _write_calibration(replace(bundle, calibration=calibration), temporary)


def load(folder: Path) -> Bundle:
    """Read and check a folder. The backbone is compared by check_backbone(), the scores by the self-test's own check.

    Raises:
        DataError: a file is missing, altered, of another format, or none of a bundle's; or thresholds that no
            calibration gives.
    """
    check_files(folder)
    where, values = folder / "scorer.json", read_scorer(folder)
    rubric = rubric_from_mapping(values["rubric"], str(where))
    if rubric.sha != values["rubric_sha"]:
        raise DataError(f"{where}: the rubric is not the one that its rubric_sha names; train the heads again")
    config = from_mapping(TrainConfig, values["training"], str(where))
    width, dimensions = values["backbone"]["width"], len(rubric.dimensions)
    probe = make_probe(width, dimensions, config)
    judge = make_judge(width, dimensions, config) if values["judge"] else None
    _fill({"probe": probe, "judge": judge}, folder / "heads.safetensors")
    return Bundle(
        BackboneIdentity(**values["backbone"]), config, rubric, probe.eval(), judge.eval() if judge else None,
        SelfTest.load(folder / "selftest.safetensors"), values["labels_sha"], read_json(folder / "metrics.json"),
        read_calibration(folder), identity(folder),
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


def _write(bundle: Bundle, folder: Path) -> None:
    from safetensors.torch import save_file

    probe, judge = bundle.config.chosen_taps
    write_json(
        folder / "scorer.json",
        {
            "format": FORMAT,
            "backbone": dataclasses.asdict(bundle.backbone),
            "taps": {"probe": probe, "judge": judge, "pre_norm": True},
            "windows": {"tokens": bundle.config.window_tokens, "most": bundle.config.windows},
            "judge": bundle.config.judge_kind if bundle.judge is not None else None,
            "rubric": to_mapping(bundle.rubric),
            "rubric_sha": bundle.rubric.sha,
            "labels_sha": bundle.labels_sha,
            "training": to_mapping(bundle.config),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
        },
    )
    heads = {"probe": bundle.probe, "judge": bundle.judge}
    tensors = {
        f"{name}.{part}": tensor.float().cpu().contiguous()
        for name, head in heads.items()
        if head is not None
        for part, tensor in head.state_dict().items()
    }
    with atomic_path(folder / "heads.safetensors") as temporary:
        # One key of metadata only: safetensors writes several in an order that changes from call to call.
        save_file(dict(sorted(tensors.items())), temporary, metadata={"format": FORMAT})
    bundle.selftest.save(folder / "selftest.safetensors")
    write_json(folder / "metrics.json", bundle.metrics)


def _write_calibration(bundle: Bundle, folder: Path) -> None:
    """What changes with the thresholds: those, the card, and the manifest of all files."""
    if bundle.calibration is not None:
        write_json(folder / CALIBRATION, bundle.calibration)
    about = card(bundle.backbone, bundle.config, bundle.rubric, bundle.metrics, bundle.calibration)
    write_text(folder / "README.md", about)
    write_manifest(folder)


def _fill(heads: Mapping[str, nn.Module | None], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: cannot be read ({error}); train the heads again") from None
    for prefix, head in heads.items():
        if head is None:
            continue
        own = {name.partition(".")[2]: t for name, t in tensors.items() if name.partition(".")[0] == prefix}
        try:
            head.load_state_dict(own)
        except RuntimeError as error:
            raise DataError(f"{path}: {prefix}: {str(error).splitlines()[-1].strip()}") from None
        head.requires_grad_(False)
