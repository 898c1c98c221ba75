"""Weights from their layout into ours and back, as tensors that are made while they are written.

E experts, D width, F expert width.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping

import torch

from gristmill.base.errors import DataError
from gristmill.trainer.checkpoints.tensor_file import Source, Unwritten
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.huggingface import _names
from gristmill.trainer.model.transformer import Transformer

UNUSED = re.compile(r".*\.rotary_emb\.inv_freq")  # in files of old: what positions turn by, which we compute
BLOCK = re.compile(r"model\.layers\.(\d+)\..*")
(EMBEDDING,), (HEAD,) = _names.OUTER["embedding_VD"], _names.OUTER["head_VD"]


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of everything that a checkpoint of such a model holds."""
    with torch.device("meta"):
        state = Transformer(config, precision.build("fp32")).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def to_ours(config: ModelConfig, names: _names.Names, theirs: Mapping[str, Source], where: str) -> dict[str, Unwritten]:
    """Our tensors, in the number formats of theirs.

    Layers behind the last one (multi-token prediction, arXiv 2412.19437, section 2.2) are left out.

    Raises:
        DataError: a tensor that is missing, quantised, of another shape, or that this model has no place for;
            `where` names the files.
    """
    result: dict[str, Unwritten] = {}
    used: set[str] = set()
    for ours, shape in shapes(config).items():
        parts = _names.theirs(names, ours)
        stacked = "{expert}" in parts[0]
        rows, *rest = shape[1:] if stacked else shape
        part_shape = (rows // len(parts), *rest)
        wanted = [part.format(expert=expert) for expert in range(shape[0] if stacked else 1) for part in parts]
        for name in wanted:
            if name not in theirs:
                raise DataError(f"{where}: tensor {name!r} is missing; fetch the model again")
            if theirs[name].shape != part_shape:
                raise DataError(
                    f"{where}: tensor {name!r} has the shape {list(theirs[name].shape)}, where config.json asks for "
                    f"{list(part_shape)}; one of the two belongs to another model"
                )
            if not theirs[name].dtype.is_floating_point or theirs[name].dtype.itemsize < 2:
                coded = theirs[name].dtype
                raise DataError(f"{where}: tensor {name!r} is of {coded}, a code for numbers; write the model in bf16")
        sources = [theirs[name] for name in wanted]
        kind = functools.reduce(torch.promote_types, [source.dtype for source in sources])
        result[ours] = Unwritten(kind, shape, functools.partial(_read, sources))
        used.update(wanted)
    for name in theirs.keys() - used:
        if name == HEAD and config.tie_embeddings:  # stored twice, as some do
            _require_equal(theirs[name], theirs[EMBEDDING], where)
            continue
        block = BLOCK.fullmatch(name)
        if not (UNUSED.fullmatch(name) or (block and int(block[1]) >= config.layers)):
            raise DataError(f"{where}: tensor {name!r} belongs to nothing in a model of this kind")
    return result


def to_theirs(
    config: ModelConfig, names: _names.Names, ours: Mapping[str, Source], dtype: torch.dtype | None = None
) -> dict[str, Unwritten]:
    """Their tensors; of `dtype`, if given, but for the router's bias, which they keep in fp32.

    Scales that they have no name for are multiplied into the weights beside them: the result is theirs alone to train.
    """
    factors = _factors(config, ours)
    result: dict[str, Unwritten] = {}
    for name, source in ours.items():
        if name.endswith(".bungee"):
            continue
        parts = _names.theirs(names, name)
        kind = source.dtype if dtype is None or name.endswith(".bias_E") else dtype
        stack = range(source.shape[0]) if "{expert}" in parts[0] else [None]
        shape = source.shape if stack == [None] else source.shape[1:]
        rows = shape[0] // len(parts)
        for expert in stack:
            for number, part in enumerate(parts):
                index = () if expert is None else (expert,)
                index += (slice(number * rows, (number + 1) * rows),)
                make = functools.partial(_scaled, source, index, factors.get(name, 1.0))
                result[part.format(expert=expert)] = Unwritten(kind, (rows, *shape[1:]), make)
    return result


def _require_equal(head: Source, embedding: Source, where: str) -> None:
    """transformers does not tie a head that is stored beside an embedding unlike it, whatever config.json says."""
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape) or not torch.equal(head.read(), embedding.read()):
        raise DataError(
            f"{where}: tensor {HEAD!r} differs from {EMBEDDING!r}, where config.json ties them; write there "
            "tie_word_embeddings: false, if both are meant"
        )


def _factors(config: ModelConfig, ours: Mapping[str, Source]) -> dict[str, float]:
    """Exact in real numbers: the final norm's weight scales what the head sees, and what the bungee scalar scales is
    linear in the down maps."""
    factors = {"embedding_VD": config.embedding_scale, "norm.weight": config.output_scale}
    for name, source in ours.items():
        if name.endswith(".bungee"):
            block = name.removesuffix("bungee")
            factors |= dict.fromkeys((f"{block}experts.down_EDF", f"{block}shared.down.weight"), float(source.read()))
    return factors


def _read(sources: list[Source]) -> Iterator[torch.Tensor]:
    for source in sources:
        yield source.read()


def _scaled(source: Source, index: tuple[int | slice, ...], factor: float) -> Iterator[torch.Tensor]:
    part = source.read(*index)
    yield part if factor == 1 else part.float() * factor
