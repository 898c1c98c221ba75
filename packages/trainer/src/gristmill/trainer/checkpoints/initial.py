"""Where a run begins that does not begin at random: the weights of a run, of a checkpoint, or of a Hugging Face folder.

Weights come one part at a time, and are found by name; what does not fit is named.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gristmill.base.config import from_mapping, to_mapping
from gristmill.base.errors import DataError
from gristmill.base.files import fingerprint, sha256_file
from gristmill.base.hub import is_address
from gristmill.shards.reader import Dataset
from gristmill.trainer import hub
from gristmill.trainer.checkpoints import checkpoint, tensor_file
from gristmill.trainer.checkpoints.tensor_file import OnDisk, Piece, Unwritten
from gristmill.trainer.evaluation.evaluate import require_same_tokenizer
from gristmill.trainer.model import huggingface
from gristmill.trainer.model.config import ModelConfig, ModelSection, resolve
from gristmill.trainer.run_folder import model_config, read_run


class Initial(NamedTuple):
    config: ModelConfig
    weights: Mapping[str, Unwritten]
    about: dict[str, Any]  # for run.json: place, sha256 of the weights, step or commit
    tokenizer: dict[str, Any]  # name and sha256, "" where it is not known


def find(place: str) -> Initial:
    """What --init-from names; its weights are verified, or hashed, and not read yet.

    Raises:
        UsageError: there is no such place, or no checkpoint in it.
        DataError: what is there is damaged, or a model that cannot be read.
    """
    if is_address(place) or not _is_ours(Path(place)):
        return _foreign(place)
    folder = Path(place)
    chosen = checkpoint.newest(folder) if (folder / "run.json").exists() else folder
    run_folder = chosen.resolve().parents[1]
    run = read_run(run_folder)
    weights = {
        name: _unwritten(tensor) for name, tensor in tensor_file.read_file(checkpoint.weights_file(chosen)).items()
    }
    about = {"place": place, "sha256": checkpoint.weights_hash(chosen), "step": checkpoint.position(chosen).step}
    return Initial(model_config(run_folder, run), weights, about, run["tokenizer"])


def shape(initial: Initial, section: ModelSection, vocab: int) -> ModelConfig:
    """The model of the place under the section's overrides; a preset that is named is taken instead."""
    given = {name: value for name, value in to_mapping(section).items() if value is not None and name != "preset"}
    if section.preset != ModelSection().preset:
        return resolve(section, vocab)
    options = {**initial.config.options, **given.get("options", {})}
    return from_mapping(ModelConfig, to_mapping(initial.config) | given | {"options": options}, "model")


def require_tokenizer(initial: Initial, dataset: Dataset, data: str) -> None:
    """Raises DataError where the model is known to read another tokenizer's tokens than the data has."""
    if initial.tokenizer.get("sha256"):
        require_same_tokenizer({"tokenizer": initial.tokenizer}, dataset, data)


@torch.no_grad()
def load(initial: Initial, pieces: Mapping[str, Piece], wanted: Collection[str]) -> None:
    """Put the weights into what is here of a model's state, in its own number format. `wanted`: what has no values yet.

    Raises:
        DataError: a weight that only one of the two has, or of unlike shapes.
    """
    place = initial.about["place"]
    for name in sorted(pieces.keys() & initial.weights.keys()):
        ours, theirs = list(pieces[name].shape), list(initial.weights[name].shape)
        if ours != theirs:
            raise DataError(f"{place}: {name} is {theirs}, and this run's model has {ours}; {_MEND}")
    for name in sorted(set(wanted) - initial.weights.keys()):
        raise DataError(f"{place}: has no {name}, which this run's model has; {_MEND}")
    for name in sorted(initial.weights.keys() - pieces.keys() - {"coefficients.factors"}):  # of the training losses
        raise DataError(f"{place}: has {name}, which this run's model has not; {_MEND}")
    for name in pieces.keys() & initial.weights.keys():
        pieces[name].take(initial.weights[name].parts())


_MEND = "leave --model.* out to take that model's own shape"


def _foreign(place: str) -> Initial:
    folder = hub.local_folder(place)
    read = huggingface.read(folder)
    files = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    tokenizer = folder / "tokenizer.json"
    named = {"name": folder.name, "sha256": sha256_file(tokenizer) if tokenizer.exists() else ""}
    about = {"place": place, "sha256": fingerprint(files), "commit": hub.commit(folder)}
    return Initial(read.config, read.weights, about, named)


def _is_ours(folder: Path) -> bool:
    return (folder / "run.json").exists() or (folder / "state.json").exists()


def _unwritten(tensor: OnDisk) -> Unwritten:
    return Unwritten(tensor.dtype, tensor.shape, lambda: [tensor.read()])
