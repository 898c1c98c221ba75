"""A training run's folder, as written by the loop or `trainer import`, and read by all other commands.

run.json says what it is and how far it came; events.jsonl what happened; checkpoints/ where it can go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open

from gristmill.base.config import from_mapping
from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_object, sha256_file
from gristmill.trainer import hub
from gristmill.trainer.checkpoints import checkpoint, tensor_file
from gristmill.trainer.checkpoints.checkpoint import Position
from gristmill.trainer.model import expert_store, precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.expert_store import ExpertStore
from gristmill.trainer.model.filling import Unfilled
from gristmill.trainer.model.transformer import Transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = "gristmill.train/2"
LOST = "bring it back from a copy, or train anew with another --output"
"""What to do about a run.json that is damaged or gone: it is not made again."""


class TrainedModel(NamedTuple):
    model: Transformer  # in evaluation mode, on its device
    run: dict[str, Any]  # run.json
    position: Position  # where the checkpoint stands
    sequence: int  # tokens in a training window
    bos: int  # stands before a document's first token
    eos: int
    tokenizer: Path | None
    experts: ExpertStore | None  # where they stay on disk


def read_run(folder: Path) -> dict[str, Any]:
    if not (folder / "run.json").exists():
        raise UsageError(f"{folder}: no training run here (no run.json)")
    path = folder / "run.json"
    run = read_object(path, LOST)
    if run.get("format") != FORMAT:
        raise DataError(f"{path}: format {run.get('format')!r}, wanted {FORMAT!r}")
    return read_object(path, LOST, status=str, config=dict, model=dict)


def model_config(folder: Path, run: Mapping[str, Any]) -> ModelConfig:
    return from_mapping(ModelConfig, run["model"], str(folder / "run.json"))


def document_ids(folder: Path, run: Mapping[str, Any], vocab: int) -> tuple[int, int]:
    """(what stands before a document's first token, what ends it); the run's own models have EOS in both places.

    Raises:
        DataError: run.json has no such ids, or others than the model knows.
    """
    about = run.get("tokenizer")
    told: Mapping[str, Any] = about if isinstance(about, Mapping) else {}
    ids: dict[str, Any] = {"bos_id": told.get("bos_id", told.get("eos_id")), "eos_id": told.get("eos_id")}
    for name, value in ids.items():
        if type(value) is not int or not 0 <= value < vocab:
            raise DataError(
                f"{folder / 'run.json'}: tokenizer.{name} is {value!r:.60}; write a token's id there, from 0 to "
                f"{vocab - 1}"
            )
    return ids["bos_id"], ids["eos_id"]


def load_model(
    folder: Path, device: str = "auto", expert_cache: int | None = None, which: str = "latest"
) -> TrainedModel:
    """A checkpoint's model, its hash verified. Weights keep the number format of the file.

    Args:
        expert_cache: leave experts on disk, and hold so many bytes of those that were used last; None: all in memory.
        which: latest, best, or a step's number.
    """
    run = read_run(folder)
    config = model_config(folder, run)
    bos, eos = document_ids(folder, run, config.vocab)
    chosen = checkpoint.find(folder, which)
    file = checkpoint.weights_file(chosen)
    with Unfilled():
        model = Transformer(config, precision.build(run["config"]["precision"], run["config"]["expert_precision"]))
    store = None
    if expert_cache is not None:
        store = ExpertStore(tensor_file.read_file(file), expert_cache)
        expert_store.attach(model, store)
    with safe_open(file, framework="pt") as handle:
        model.load_state_dict({name: handle.get_tensor(name) for name in model.state_dict()}, assign=True)
    tokenizer = folder / "tokenizer.json"
    return TrainedModel(
        model.to(pick_device(device)).eval(),
        run,
        checkpoint.position(chosen),
        run["config"]["batch"]["sequence"],
        bos,
        eos,
        tokenizer if tokenizer.exists() else None,
        store,
    )


def tokenizer_of(folder: Path, trained: TrainedModel, given: str = "") -> Tokenizer:
    """Of the tokenizer.json that is given, else of the run's own.

    Raises:
        UsageError: there is none, or the model was trained with another.
        DataError: it is no tokenizer's file.
    """
    if given and not Path(given).is_file():
        raise UsageError(f"--tokenizer {given}: no such file")
    file = Path(given) if given else trained.tokenizer
    if file is None:
        raise UsageError(f"{folder}: no tokenizer.json was given when it was trained; give --tokenizer FILE")
    tokenizer, about = hub.load_tokenizer(file), trained.run["tokenizer"]
    if about.get("sha256") and sha256_file(file) != about["sha256"]:
        raise UsageError(
            f"{file}: not the model's tokenizer, which is {about.get('name')} (sha256 {about['sha256'][:12]}); "
            "give that one with --tokenizer"
        )
    return tokenizer


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where it is available, else cpu."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: none is available here; use --device cpu, or leave it out")
    return torch.device(name)
