"""Bundles of random heads on a tiny backbone, in milliseconds: for tests of what is done with heads, however good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gristmill.scorer.backbone.staged import StagedBackbone, identify
from gristmill.scorer.backbone.states import Tokens, flatten
from gristmill.scorer.config import CalibrationConfig, TrainConfig
from gristmill.scorer.heads import bundle as bundles
from gristmill.scorer.heads.bundle import Bundle
from gristmill.scorer.heads.calibration import Labelled, Unlabelled, calibrate
from gristmill.scorer.heads.modules import make_judge, make_probe
from gristmill.scorer.heads.selftest import make_selftest
from gristmill.scorer.rubric import Rubric, rubric_from_mapping

ANCHORS = {"0": "no", "4": "yes"}
WORDS = [
    "mill",
    "grain",
    "flour",
    "stone",
    "wheel",
    "bread",
    "dough",
    "crust",
    "salt",
    "yeast",
    "time",
    "hand",
    "night",
]


def rubric(name: str = "planted", dimensions: tuple[str, ...] = ("vowels", "noise")) -> Rubric:
    """The last dimension is better where it is low."""
    given: list[dict[str, Any]] = [{"name": one, "question": "?", "anchors": ANCHORS} for one in dimensions]
    given[-1] |= {"direction": "lower", "weight": 0.5}
    return rubric_from_mapping({"name": name, "dimensions": given}, "test")


def texts(count: int, seed: int = 0, words: tuple[int, int] = (1, 40)) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, int(generator.integers(*words)))) for _ in range(count)]


def write_heads(
    folder: Path, backbone: Path, of: Rubric | None = None, judge: bool = True, seed: int = 0,
    thresholds: dict[str, dict[str, Any]] | None = None, **training: Any,
) -> Path:  # fmt: skip
    """A heads folder. thresholds: by source ("(all)" for the others) what to put into a calibration's group."""
    settings = {"taps": (2, 4), "window_tokens": 64, "dtype": "float32", "batch_tokens": 1024, "judge_kind": "encoder"}
    config = TrainConfig(**{**settings, **training})
    of = of or rubric()
    torch.manual_seed(seed)
    staged = StagedBackbone.load(backbone, config.chosen_taps, config.dtype)
    width = staged.identity.width
    heads = [make_probe(width, len(of.names), config), make_judge(width, len(of.names), config)]
    rows, _ = flatten(Tokens(backbone, staged.identity.first_token, 64, 1)(texts(32, seed=99)))
    drawn = make_selftest(staged, heads[0], heads[1], rows)
    for head, found_BN in zip(heads, (drawn.probe_BN, drawn.judge_BN)):
        assert found_BN is not None
        scale_N = 0.2 / found_BN.std(0)  # so that scores spread over their scale
        with torch.no_grad():
            head.get_parameter("output.weight").mul_(scale_N[:, None])
            head.get_parameter("output.bias").sub_(found_BN.mean(0)).mul_(scale_N).add_(0.5)
        head.eval().requires_grad_(False)
    probe, second = heads[0], heads[1] if judge else None
    rows = rows[:8]
    bundle = Bundle(
        identify(backbone), config, of, probe, second, make_selftest(staged, probe, second, rows), "0" * 64,
        {"training": {"reason": "random"}, "splits": {}},
    )  # fmt: skip
    bundles.save(bundle, folder)
    if thresholds is not None:
        bundles.save_calibration(bundle, calibration(thresholds), folder)
    return folder


def calibration(thresholds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One of random scores, with these values in its groups."""
    generator = np.random.default_rng(0)
    sources = [name for name in thresholds if name != "(all)"] or ["another"]
    names = [sources[i % len(sources)] for i in range(30 * len(sources))]
    scores = generator.random((3, len(names)))
    found = calibrate(
        Labelled(names, scores[0], scores[1]), Unlabelled(names, scores[1], scores[2]),
        CalibrationConfig(max_false_drop=0.1, allow_uncertified=True),
    )  # fmt: skip
    for name, values in thresholds.items():
        found["groups"][name] |= values
    return found
