"""How much memory a training step takes, by kind, for a model of any size on GPUs of any number.

What each part of a step holds is measured (planning/measure.py) and put together in the order in which a step goes:
what is held rises layer by layer on the way forward, and falls on the way back. The answer is the fullest moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gristmill.trainer.config import TrainConfig
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.optim.config import GROUPS
from gristmill.trainer.planning import measure
from gristmill.trainer.planning.measure import Layer, Parts, Phase, Size
from gristmill.trainer.planning.mesh import Mesh

ALONE = Mesh()
FEW_TOKENS = 1024  # below, a chunk of the head's logits is not full
ASSUMES = "at the fullest moment of a step; what kernels use within, and holes between tensors, come on top"


class Memory(NamedTuple):
    """Bytes of one GPU. activations: what the backward pass needs; buffers: what operations hold for a moment, logits
    and new gradients among them; dispatch: tokens on their way to experts and back; gathered: weights of the layer at
    work and of the next one, whole, and their gradients before they are summed."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    dispatch: int = 0
    gathered: int = 0

    @property
    def total(self) -> int:
        return sum(self)


class Moment(NamedTuple):
    """Of a step. Bytes."""

    activations: float
    gradients: float
    buffers: float
    dispatch: float
    gathered: float


def estimate(model: ModelConfig, config: TrainConfig, mesh: Mesh = ALONE) -> Memory:
    """Of a step in micro-batches of config.batch.micro rows."""
    rows = config.batch.sequences // mesh.gpus
    micro = min(config.batch.micro, rows)
    only = micro >= rows
    return fullest(measure.parts(model, config, micro, mesh.ep, _is_fresh(mesh, only)), model, config, mesh, only)


class ByMicro:
    """The same of micro-batches of any size: two sizes are measured, and what parts hold goes by a line."""

    def __init__(self, model: ModelConfig, config: TrainConfig, mesh: Mesh) -> None:
        self.model, self.config, self.mesh = model, config, mesh
        self.rows = config.batch.sequences // mesh.gpus
        self._few = max(1, FEW_TOKENS // config.batch.sequence)
        self._known: dict[tuple[int, bool], Parts] = {}

    def __call__(self, micro: int) -> Memory:
        only = micro >= self.rows
        fresh = _is_fresh(self.mesh, only)
        parts = self._measured(self._few, fresh)
        if micro != self._few:
            parts = _on_line(parts, self._measured(2 * self._few, fresh), micro / self._few - 1)
        return fullest(parts, self.model, self.config, self.mesh, only)

    def largest(self, most: float) -> int:
        """Rows of the largest micro-batch of a step that stays within `most` bytes; 0: not even one row does."""
        low, high = 0, self.rows + 1
        while high - low > 1:
            middle = (low + high) // 2 if low else 1
            low, high = (middle, high) if self(middle).total <= most else (low, middle)
        return low

    def _measured(self, micro: int, fresh: bool) -> Parts:
        if (micro, fresh) not in self._known:
            self._known[micro, fresh] = measure.parts(self.model, self.config, micro, self.mesh.ep, fresh)
        return self._known[micro, fresh]


def checkpoint(model: ModelConfig, config: TrainConfig) -> int:
    """Bytes of weights and optimiser state, whole."""
    whole = measure.whole(model, config)
    return whole.weights + whole.optimizer


def _is_fresh(mesh: Mesh, only: bool) -> bool:
    """Whether a micro-batch finds no gradients: alone, the only one; else each, as summed ones are kept apart."""
    return mesh.gpus > 1 or only


def fullest(parts: Parts, model: ModelConfig, config: TrainConfig, mesh: Mesh, only: bool) -> Memory:
    """only: a step is one micro-batch."""
    here = share(parts, mesh)
    item = precision.build(config.precision, config.expert_precision).dtype.itemsize
    kinds = {config.optimizer.of(group).kind for group in GROUPS}
    moments = [*_moments(parts, mesh, model.width * item, only, here.gradients), _step(parts, mesh, here, kinds)]
    moment = max(moments, key=sum)
    return Memory(here.weights, round(moment.gradients), here.optimizer, *(round(moment[at]) for at in (0, 2, 3, 4)))


def share(parts: Parts, mesh: Mesh) -> Size:
    """What one GPU keeps of weights, gradients and state; of the experts, parts has a GPU's own."""
    whole = parts.outer
    for layer in parts.layers:
        whole = whole.plus(layer.size)
    return _share(whole, mesh)


def _share(whole: Size, mesh: Mesh) -> Size:
    if mesh.data == "replicate":
        return whole
    dense = [value - experts for value, experts in zip(whole[:3], whole[3:], strict=True)]
    kept = [-(-value // mesh.gpus) for value in dense]
    experts = [-(-value // mesh.dp) for value in whole[3:]]
    return Size(*(a + b for a, b in zip(kept, experts, strict=True)), *experts)


def _moments(parts: Parts, mesh: Mesh, row_bytes: int, only: bool, all_gradients: int) -> Iterator[Moment]:
    """The fullest moment of each phase of a step. The `only` micro-batch's gradients come one by one; else all are
    there.

    Over several GPUs a layer's gradients are there from its backward phase on in full, until they are summed; those of
    the outer parts until the end.
    """
    alone = mesh.gpus == 1
    held = 0.0
    gradients = 0.0 if only else float(all_gradients)
    outer = 0.0 if alone else parts.outer.gradients
    gathers = [0 if alone else _gathered(layer, mesh) for layer in parts.layers]
    nexts = [0 if alone else _gathered_ahead(layer, mesh) for layer in parts.layers]

    def moment(phase: Phase, dispatch: float = 0.0, gathered: float = 0.0) -> Moment:
        nonlocal held, gradients
        kept = max(phase.left, 0.0)
        dispatch = min(dispatch, phase.most - kept)
        found = Moment(held + kept, gradients, phase.most - kept - dispatch, dispatch, gathered)
        held += phase.left
        if alone or phase is parts.backward:
            gradients += phase.gradients
        return found

    def dispatched(layer: Layer) -> float:
        return 2 * layer.routed * row_bytes if mesh.ep > 1 else 0.0  # what is sent, and what comes

    yield moment(parts.begin, gathered=outer)
    for at, layer in enumerate(parts.layers):
        ahead = gathers[at] + (nexts[at + 1] if at + 1 < len(nexts) else 0)
        yield moment(layer.forward, dispatched(layer), outer + ahead)
    yield moment(parts.forward, gathered=outer + gathers[-1])
    yield moment(parts.backward, gathered=outer + gathers[-1])
    for at in range(len(gathers) - 1, -1, -1):
        layer = parts.layers[at]
        ahead = 2 * gathers[at] + (nexts[at - 1] if at else 0)  # twice: its gradients, on their way to be summed
        yield moment(layer.backward, dispatched(layer), outer + ahead)
        if only and not alone:
            gradients += _share(layer.size, mesh).gradients
    yield moment(parts.end, gathered=2 * outer)


def _step(parts: Parts, mesh: Mesh, here: Size, kinds: set[str]) -> Moment:
    """The optimiser's: it works on what is here; Muon on whole matrices, which it gathers first."""
    whole = share(parts, ALONE)
    if "muon" not in kinds:
        return Moment(0.0, here.gradients, parts.step.most * here.weights / whole.weights, 0.0, 0.0)
    dense = whole.weights - whole.experts
    gathered = float(dense) if mesh.gpus > 1 and mesh.data == "shard" else 0.0
    return Moment(0.0, here.gradients, parts.step.most * (dense + here.experts) / whole.weights, 0.0, gathered)


def _gathered(layer: Layer, mesh: Mesh) -> int:
    """Bytes of a layer's weights that come from other GPUs, whole."""
    size = layer.size
    return size.gradients if mesh.dp > 1 or mesh.ep == 1 else size.gradients - size.expert_gradients


def _gathered_ahead(layer: Layer, mesh: Mesh) -> int:
    """Of these, bytes that are gathered while another layer is at work. Experts that are spread are gathered by
    themselves, once the rest of their layer is there."""
    size = layer.size
    return size.gradients - size.expert_gradients if mesh.ep > 1 else _gathered(layer, mesh)


def _on_line(a: Parts, b: Parts, at: float) -> Parts:
    """Through a at 0, and b at 1."""

    def phase(x: Phase, y: Phase) -> Phase:
        return Phase(*(p + at * (q - p) for p, q in zip(x, y, strict=True)))

    layers = [
        Layer(x.size, x.routed + at * (y.routed - x.routed), phase(x.forward, y.forward), phase(x.backward, y.backward))
        for x, y in zip(a.layers, b.layers, strict=True)
    ]
    outer = [phase(getattr(a, name), getattr(b, name)) for name in ("begin", "forward", "backward", "end", "step")]
    return Parts(layers, a.outer, *outer)
