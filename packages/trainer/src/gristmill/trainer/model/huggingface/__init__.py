"""Models to and from Hugging Face's folders, with equal logits; needs neither transformers nor its code.

One file per family, named as its model_type: `foreign` and `unsaid` name what cannot go over, `from_config` and
`to_config` say the shape in the other's words, NAMES the weights. Weights travel one part at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from gristmill.base.config import from_mapping, nearest
from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_object, write_json
from gristmill.trainer.checkpoints import tensor_file
from gristmill.trainer.checkpoints.tensor_file import Source, Unwritten
from gristmill.trainer.model import kinds
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.huggingface import _config, _weights


class Foreign(NamedTuple):
    """A folder of Hugging Face's in our words."""

    config: ModelConfig
    weights: dict[str, Unwritten]
    values: dict[str, Any]  # config.json, without nulls


def read(folder: Path) -> Foreign:
    """A Hugging Face folder as our configuration, and its weights as they can be written into a file of ours.

    Raises:
        DataError: a family or a field that is not known here, or files that are not whole.
    """
    where = folder / "config.json"
    values = read_object(where, "fetch it again", model_type=str)
    name = values["model_type"]
    if name not in kinds.names(__name__):
        raise DataError(f"{where}: model_type: no family {name!r}{nearest(name, kinds.names(__name__))}")
    family = kinds.find(__name__, name, "model_type")
    values = _config.checked(values, where)
    try:
        config = _config_of(family, values, where)
        weights = _weights.to_ours(config, family.NAMES, tensor_file.read_folder(folder), str(folder))
    except UsageError as error:
        told = str(error).removeprefix(f"{where}: ")
        raise DataError(f"{where}: a shape that this model cannot have: {told}") from None
    return Foreign(config, weights, values)


def write(
    config: ModelConfig,
    weights: Mapping[str, Source],
    folder: Path,
    *,
    sequence: int,
    shard_bytes: int,
    ids: Mapping[str, int],
    dtype: torch.dtype | None = None,
) -> None:
    """config.json, generation_config.json and the weights, in files of at most `shard_bytes`.

    Args:
        sequence: the longest window that the model was trained on.
        ids: bos_token_id and eos_token_id.
        dtype: of the weights; as they are, if None.

    Raises:
        UsageError: no family of Hugging Face's is such a model.
    """
    family = family_of(config)
    tensors = _weights.to_theirs(config, family.NAMES, weights, dtype)
    shards = _shards(tensors, shard_bytes)
    for number, names in enumerate(shards, 1):
        file = _shard_name(number, len(shards))
        tensor_file.write(folder / file, {name: tensors[name] for name in names}, {"format": "pt"})
    if len(shards) > 1:
        weight_map = {
            name: _shard_name(number, len(shards)) for number, names in enumerate(shards, 1) for name in names
        }
        about = {"total_size": sum(tensor.size for tensor in tensors.values())}
        write_json(folder / tensor_file.INDEX, {"metadata": about, "weight_map": weight_map})
    write_json(folder / "generation_config.json", dict(ids))
    kind = str(tensors["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    about = {"architectures": [family.ARCHITECTURE], "model_type": family.__name__.rpartition(".")[2], "dtype": kind}
    write_json(folder / "config.json", about | family.to_config(config, sequence) | dict(ids))


def family_of(config: ModelConfig) -> ModuleType:
    """The family of Hugging Face's that such a model is.

    Raises:
        UsageError: none is; says which settings keep it from each.
    """
    against = {}
    for name in kinds.names(__name__):
        family = kinds.find(__name__, name, "model_type")
        if not (unlike := family.unsaid(config)):
            return family
        against[name] = unlike
    told = "; ".join(f"{name}: {', '.join(f'model.{field}' for field in unlike)}" for name, unlike in against.items())
    raise UsageError(f"no model of Hugging Face's is like this one ({told})")


def _config_of(family: ModuleType, values: Mapping[str, Any], where: Path) -> ModelConfig:
    try:
        unlike = family.foreign(values)
        fields = None if unlike else family.from_config(values)
    except KeyError as error:
        raise DataError(f"{where}: {error.args[0]!r} is missing; fetch it again") from None
    if fields is None:
        told = ", ".join(f"{field} = {_at(values, field)!r:.60}" for field in unlike)
        raise DataError(f"{where}: cannot be read ({told}): this model has not that")
    return from_mapping(ModelConfig, fields, str(where))


def _shards(tensors: Mapping[str, Unwritten], most: int) -> list[list[str]]:
    """Names of each file, in order; one tensor at least, whatever its size."""
    shards: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        if tensor.size > room or not shards:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= tensor.size
    return shards


def _shard_name(number: int, of: int) -> str:
    return "model.safetensors" if of == 1 else f"model-{number:05d}-of-{of:05d}.safetensors"


def _at(values: Mapping[str, Any], field: str) -> Any:
    """A field, or one of a section's: rope_parameters.factor."""
    section, _, inner = field.partition(".")
    if not inner:
        return values.get(section)
    return (values.get(section) or values.get("rope_scaling") or {}).get(inner)
