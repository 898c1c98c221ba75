"""What the parts of a training step hold, measured once for each kind of layer, however many layers there are.

A real step of the real model runs on tensors that have shapes and no contents (torch's FakeTensorMode), its layers cut
down to two of each kind, and every tensor is counted as it comes and goes. B sequences, S positions.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gristmill.trainer.config import TrainConfig
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe import MixtureOfExperts, dispatch
from gristmill.trainer.model.segments import Segments
from gristmill.trainer.model.transformer import Block, Transformer
from gristmill.trainer.optim import optimizer as optim
from gristmill.trainer.optim import orthogonalise
from gristmill.trainer.optim.muon import Muon
from gristmill.trainer.parallel.all_to_all import AllToAll, Splits

# Operators that copy their input within, and let the copy go: here, exp of all logits (ATen's ReduceOps.cpp). What
# others use is small beside what they answer: so counted, a step is within 3 % of what it takes from the allocator.
WITHIN = {torch.ops.aten.logsumexp.default}


class Phase(NamedTuple):
    """Bytes over what was held when it began. most: at its fullest; left: at its end, gradients of weights apart."""

    most: float
    left: float
    gradients: float


class Size(NamedTuple):
    """Bytes. of weights, gradients and the optimiser's state; experts: of the routed ones."""

    weights: int
    gradients: int
    optimizer: int
    experts: int  # of the weights
    expert_gradients: int
    expert_optimizer: int

    def plus(self, other: Size, times: int = 1) -> Size:
        return Size(*(a + times * b for a, b in zip(self, other, strict=True)))


class Layer(NamedTuple):
    size: Size
    routed: float  # assignments of tokens to experts in one pass
    forward: Phase
    backward: Phase


class Parts(NamedTuple):
    """layers: from the first to the last. The outer ones are the embeddings, the last norm and the head."""

    layers: list[Layer]
    outer: Size
    begin: Phase  # up to the first layer
    forward: Phase  # after the last one: the head, whose gradients come at once
    backward: Phase  # down to the last layer
    end: Phase  # after the first one: the embeddings
    step: Phase  # of the optimiser


def parts(
    model: ModelConfig, config: TrainConfig, rows: int, ep: int = 1, fresh: bool = False, fake: Any = FakeTensorMode
) -> Parts:
    """Of a pass of so many rows.

    Args:
        ep: GPUs that share the experts of a layer, one of which this is.
        fresh: no gradients are there before the pass.
    """
    with torch.device("meta"):  # where hundreds of layers cost little
        network = Transformer(model, precision.build(config.precision, config.expert_precision), config.recompute)
    kinds = [_kind(block) for block in network.blocks]  # pyright: ignore[reportArgumentType]
    network.blocks = nn.ModuleList(network.blocks[at] for at in _two_of_each(kinds))
    with fake(), Held() as held:
        network._apply(lambda one: torch.empty(one.shape, dtype=one.dtype))  # to_empty() would look at what is on meta
        if ep > 1:
            for block in network.blocks:
                if isinstance(block.ffn, MixtureOfExperts):
                    spread(block.ffn, EvenLink(ep))
        optimizer = optim.build(network, config.optimizer)
        sizes = [_size(f"blocks.{at}.", network, optimizer) for at in range(len(network.blocks))]
        outer = _size("", network, optimizer)
        for size in sizes:
            outer = outer.plus(size, -1)
        if not fresh:
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)
        begin, forward, head, top, backward, end = _pass(network, held, rows, config.batch.sequence)
        for parameter in network.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for one in optimizer.state().values():
            if isinstance(one.tensor, FakeTensor) and not one.tensor.ndim:
                one.tensor.item_memo = 0  # AdamW looks at its number of steps
        held.mark(network)
        optimizer.begin(1.0)
        optimizer.clip()
        optimizer.step()
        step = held.mark(network)
    here = outer
    for size in sizes:
        here = here.plus(size)
    routed = rows * config.batch.sequence * model.top_k
    kept = [
        Layer(size, routed if size.experts else 0, ahead, back)
        for size, ahead, back in zip(sizes, forward, backward, strict=True)
    ]
    of_kind: dict[object, list[Layer]] = {}
    for at, layer in zip(_two_of_each(kinds), kept, strict=True):
        of_kind.setdefault(kinds[at], []).append(layer)
    seen: Counter[object] = Counter()
    layers = []
    for kind in kinds:
        layers.append(of_kind[kind][min(seen[kind], len(of_kind[kind]) - 1)])
        seen[kind] += 1
    whole = outer
    for layer in layers:
        whole = whole.plus(layer.size)
    step = step._replace(most=step.most * whole.weights / here.weights)  # what it holds, it holds of every weight
    return Parts(layers, outer, begin, head, top, end, step)


def whole(model: ModelConfig, config: TrainConfig) -> Size:
    """Of the model and its optimiser."""
    with torch.device("meta"):
        network = Transformer(model, precision.build(config.precision, config.expert_precision))
        return _size("", network, optim.build(network, config.optimizer))


class Orthogonal(NamedTuple):
    """FLOPs of Muon's products in a step. experts: (how many, FLOPs of them all) for each stack of them."""

    dense: float = 0.0
    experts: tuple[tuple[int, float], ...] = ()

    def of_a_gpu(self, share: int) -> float:
        """The most that one of them has to make: of experts whole ones, of which each has an equal `share` or one more
        than others; of all other matrices all."""
        return self.dense + sum(flops * -(-many // share) / many for many, flops in self.experts)


def orthogonal(model: ModelConfig, config: TrainConfig) -> Orthogonal:
    with torch.device("meta"):
        network = Transformer(model, precision.build(config.precision, config.expert_precision))
        optimizer = optim.build(network, config.optimizer)
    dense, experts = 0.0, list[tuple[int, float]]()
    for part in optimizer.parts:
        if isinstance(part, Muon):
            for group in part.param_groups:
                for one in group["params"]:
                    rows = one.shape[-2] // group["maps"]
                    each = group["maps"] * orthogonalise.flops(rows, one.shape[-1])
                    if one.ndim == 2:
                        dense += each
                    else:
                        experts.append((len(one), len(one) * each))
    return Orthogonal(dense, tuple(experts))


class Held(TorchDispatchMode):
    """Counts bytes of tensors as they come and go: what operators answer, and what those of WITHIN use."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        self._marked = self._marked_gradients = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WITHIN:
            self.most = max(self.most, self.now + _bytes(args[0]))
        answer = func(*args, **(kwargs or {}))
        for one in tree_leaves(answer):
            if isinstance(one, torch.Tensor):
                self._see(one.untyped_storage())
        return answer

    def mark(self, network: nn.Module) -> Phase:
        """The phase that ends here; the next begins."""
        gradients = sum(_bytes(one.grad) for one in network.parameters() if one.grad is not None)
        new = gradients - self._marked_gradients
        phase = Phase(self.most - self._marked, self.now - self._marked - new, new)
        self._marked, self._marked_gradients, self.most = self.now, gradients, self.now
        return phase

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, partial(self._forget, key, size))
            self.now += size
            self.most = max(self.most, self.now)

    def _forget(self, key: int, size: int, _: object) -> None:
        del self._known[key]
        self.now -= size


class EvenLink(AllToAll):
    """To ranks that are not there. As many rows come from each as go to it."""

    def __init__(self, ranks: int) -> None:  # pyright: ignore[reportMissingSuperCall] - it would ask a group
        self.ranks, self.rank, self.bytes_sent = ranks, 0, 0
        self.group = cast(Any, None)
        self.move = lambda *_: self

    def wait(self) -> None:
        pass


def spread(layer: MixtureOfExperts, link: EvenLink) -> None:
    """Leave this rank its experts; what it would ask the others is answered for them."""
    layer.spread(link)
    layer.experts._ask = partial(_even, link.ranks)  # pyright: ignore


def _even(ranks: int, where: dispatch.TokenChoice) -> tuple[torch.Tensor, Splits]:
    """As SpreadExperts asks the other ranks, who have even loads."""
    rows, experts = len(where.token_R), len(where.ends_E)
    each = [rows // ranks + (rank < rows % ranks) for rank in range(ranks)]
    return torch.zeros(ranks, experts // ranks, dtype=torch.int64), Splits(each, each, rows)


def _pass(
    network: Transformer, held: Held, rows: int, sequence: int
) -> tuple[Phase, list[Phase], Phase, Phase, list[Phase], Phase]:
    """Forward and backward: up to the first layer, each layer, the head; the head, each layer, the rest."""
    phases: list[Phase] = []
    going = True  # forward; recomputed layers go forward again, and are part of their backward phase

    def mark(*_: object) -> None:
        phases.append(held.mark(network))

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if going:
            mark()
            inputs[0].register_hook(mark)

    def after(_: nn.Module, _inputs: object, output: tuple[torch.Tensor, Any]) -> None:
        if going:
            mark()
            output[0].register_hook(mark)

    handles = [network.blocks[0].register_forward_pre_hook(before)]
    handles += [block.register_forward_hook(after) for block in network.blocks]
    held.mark(network)
    tokens_BS = torch.zeros(rows, sequence, dtype=torch.int64)
    segments = Segments(torch.zeros_like(tokens_BS), torch.zeros_like(tokens_BS))  # as with several documents to a row
    loss = network.loss(tokens_BS, tokens_BS, segments)
    going = False
    mark()
    (loss.nll + loss.auxiliary).backward()
    del loss
    mark()
    for handle in handles:
        handle.remove()
    count = len(network.blocks)
    begin, forward, rest = phases[0], phases[1 : count + 1], phases[count + 1 :]
    return begin, forward, rest[0], rest[1], rest[2 : 2 + count][::-1], rest[-1]


def _kind(block: Block) -> object:
    shapes = tuple((name, tuple(one.shape)) for name, one in block.named_parameters())
    return type(block.attention).__module__, shapes


def _two_of_each(kinds: list[Any]) -> list[int]:
    """The first two layers of each kind: the first makes what others share, such as masks."""
    seen: Counter[object] = Counter()
    chosen = []
    for at, kind in enumerate(kinds):
        if seen[kind] < 2:
            chosen.append(at)
        seen[kind] += 1
    return chosen


def _size(prefix: str, network: Transformer, optimizer: optim.Optimizer) -> Size:
    def of(named: Iterable[tuple[str, torch.Tensor]], only: Callable[[str], bool] = lambda _: True) -> int:
        return sum(_bytes(one) for name, one in named if name.startswith(prefix) and only(name))

    def is_expert(name: str) -> bool:
        return ".ffn.experts." in name

    state = [(name.partition("/")[2], one.tensor) for name, one in optimizer.state().items()]
    weights, gradients = list(network.state_dict().items()), list(network.named_parameters())
    every = (weights, gradients, state)
    return Size(*(of(one) for one in every), *(of(one, is_expert) for one in every))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
