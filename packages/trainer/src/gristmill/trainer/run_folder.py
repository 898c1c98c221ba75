"""A training run's folder, as written by the loop and read by evaluate, compare, generate and export.

run.json says what it is and how far it came; events.jsonl what happened; checkpoints/ where it can go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from gristmill.base.config import from_mapping
from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json
from gristmill.trainer import checkpoint
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.transformer import Transformer

FORMAT = "gristmill.train/2"


class TrainedModel(NamedTuple):
    model: Transformer  # in evaluation mode, on its device
    run: dict[str, Any]  # run.json
    step: int
    sequence: int  # tokens in a training window
    eos: int
    tokenizer: Path | None


def read_run(folder: Path) -> dict[str, Any]:
    if not (folder / "run.json").exists():
        raise UsageError(f"{folder}: no training run here (no run.json)")
    run = read_json(folder / "run.json")
    if run.get("format") != FORMAT:
        raise DataError(f"{folder / 'run.json'}: format {run.get('format')!r}, wanted {FORMAT!r}")
    return run


def load_model(folder: Path, device: str = "auto") -> TrainedModel:
    """The newest checkpoint's model, its hash verified."""
    run = read_run(folder)
    newest = checkpoint.latest(folder)
    if newest is None:
        raise DataError(f"{folder}: no checkpoint yet; train further with trainer resume {folder}")
    config = from_mapping(ModelConfig, run["model"], str(folder / "run.json"))
    model = Transformer(config, precision.build(run["config"]["precision"], run["config"]["expert_precision"]))
    model.load_state_dict(checkpoint.weights(newest))
    tokenizer = folder / "tokenizer.json"
    return TrainedModel(
        model.to(pick_device(device)).eval(),
        run,
        checkpoint.position(newest).step,
        run["config"]["batch"]["sequence"],
        run["tokenizer"]["eos_id"],
        tokenizer if tokenizer.exists() else None,
    )


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where it is available, else cpu."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: none is available here; use --device cpu, or leave it out")
    return torch.device(name)
