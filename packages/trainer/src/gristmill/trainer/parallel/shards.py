"""Which rows of each weight a process keeps, and what takes all of them.

One idea: of every tensor a process keeps some rows of the first dimension, which are one stretch of its bytes.
Optimisers work on these rows as on any tensor, and a checkpoint holds whole tensors, whoever wrote which part of them.

Gradients of a step's micro-batches are added up in the order of the micro-batches, whatever processes had them: so the
sums have the same bits for any number of processes. (Where experts are spread, their products are of other shapes.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from gristmill.base.errors import GristmillError
from gristmill.trainer.checkpoints.tensor_file import Piece
from gristmill.trainer.model.filling import Draw, place
from gristmill.trainer.model.moe import MixtureOfExperts
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.parallel import symmetric
from gristmill.trainer.parallel.all_to_all import AllToAll
from gristmill.trainer.parallel.config import ParallelConfig
from gristmill.trainer.parallel.world import ALONE, World


class Own(NamedTuple):
    """Rows [first, first + len(rows)) of a weight of `shape`."""

    rows: nn.Parameter
    shape: torch.Size
    first: int

    @property
    def is_whole(self) -> bool:
        return self.rows.shape == self.shape


class Shards:
    """own: by the name of the weight."""

    def __init__(self, model: Transformer, world: World = ALONE) -> None:
        """`model` is whole, or was spread by spread()."""
        self.world, self._model = world, model
        self.own = {name: _own(name, one, world) for name, one in model.named_parameters()}
        self._sharded = [
            (one, self.own[name].rows) for name, one in model.named_parameters() if isinstance(one, DTensor)
        ]
        self._sums = [sum for module in model.modules() if (sum := getattr(module, "gradient_sum", None)) is not None]
        self._of = {id(own.rows): own for own in self.own.values()}
        if not world.is_alone:
            self._places = self._ask_places()

    # Gradients ----------------------------------------------------------------------------------------------------

    def before_backward(self) -> None:
        """Before each micro-batch's."""
        if self._sums:  # these hold what was added up so far, and answer it as the gradient
            for one, _ in self._sharded:
                one.grad = None

    def after_backward(self) -> None:
        """After a step's last: gradients are where optimisers look for them."""
        for one, rows in self._sharded:
            rows.grad = None if one.grad is None else one.grad.to_local()  # pyright: ignore[reportAttributeAccessIssue]
        for sum in self._sums:
            sum.running = None

    def forget_gradients(self) -> None:
        for one, rows in self._sharded:
            one.grad = rows.grad = None

    # Pieces -------------------------------------------------------------------------------------------------------

    def of(self, weight: nn.Parameter) -> Own:
        """The rows of one of the model's weights."""
        return next(self.own[name] for name, one in self._model.named_parameters() if one is weight)

    def piece(self, name: str, tensor: torch.Tensor) -> Piece:
        """Of a tensor that goes with a weight: by its rows, if it has as many, else whole."""
        own = self.own[name]
        if tensor.shape != own.rows.shape:
            return Piece(tensor, tuple(tensor.shape), 0)
        return Piece(tensor, tuple(own.shape), own.first)

    def pieces(self) -> dict[str, Piece]:
        """Of the model's state: weights, and buffers, which each process has whole."""
        return {
            name: self.piece(name, self.own[name].rows) if name in self.own else Piece(value, tuple(value.shape), 0)
            for name, value in self._model.state_dict(keep_vars=True).items()
        }

    # Values -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fill(self, weight: nn.Parameter, draw: Draw) -> None:
        """Its rows here, of a whole tensor that lives no longer than this call."""
        own = self.of(weight)
        own.rows.copy_(draw(own.shape)[own.first : own.first + len(own.rows)])

    def require_filled(self) -> None:
        """Raises GristmillError where a weight was never given its values."""
        for name, piece in self.pieces().items():
            if piece.tensor.is_floating_point() and piece.tensor.flatten()[:1].isnan().any():
                raise GristmillError(
                    f"{name} has no values: a module that holds other things than matrices sets them in "
                    "initialise(generator, fill) (docs/models.md)"
                )

    # Whole tensors ------------------------------------------------------------------------------------------------

    def whole(self, of: nn.Parameter, rows: torch.Tensor) -> torch.Tensor:
        """All rows of a tensor that has those of the weight `of`, from the processes that have them."""
        own = self._of[id(of)]
        if own.is_whole:
            return rows
        most = max(count for _, count in self._places[id(of)])
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        whole = rows.new_empty(own.shape)
        for (first, count), part in zip(self._places[id(of)], self.world.gather(padded), strict=True):
            whole[first : first + count] = part[:count]
        return whole

    def mine(self, of: nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
        """The rows of `of` among all of them."""
        own = self._of[id(of)]
        return whole if own.is_whole else whole[own.first : own.first + len(own.rows)]

    @torch.no_grad()
    def norms(
        self, groups: Mapping[str, Sequence[tuple[nn.Parameter, torch.Tensor | None]]]
    ) -> dict[str, torch.Tensor]:
        """By group, the norm of all rows of its tensors; each has the rows of the weight beside it (None: zeros).

        From the norms of single rows, in order: the same bits however rows lie.
        """
        by_row = [_row_norms(of, value) for group in groups.values() for of, value in group]
        weights = [of for group in groups.values() for of, _ in group]
        if not self.world.is_alone:
            by_row = self._gather_rows(weights, by_row)
        found, at = {}, 0
        for name, group in groups.items():
            some = by_row[at : at + len(group)]
            found[name], at = torch.linalg.vector_norm(torch.cat(some)), at + len(group)
        return found

    def _gather_rows(self, weights: list[nn.Parameter], by_row: list[torch.Tensor]) -> list[torch.Tensor]:
        """All rows' values, of the same weights at every process; one exchange for all."""
        lengths_W = [
            sum(count * _inner(self._of[id(of)].shape) for of in weights for count in [self._places[id(of)][rank][1]])
            for rank in range(self.world.size)
        ]
        own = torch.cat(by_row)
        padded = own.new_zeros(max(lengths_W))
        padded[: len(own)] = own
        all_W = self.world.gather(padded)
        ends_W, whole = [0] * self.world.size, []
        for of in weights:
            shape = self._of[id(of)].shape
            inner = _inner(shape)
            values = own.new_empty(shape[0] * inner)
            for rank, (first, count) in enumerate(self._places[id(of)]):
                start, ends_W[rank] = ends_W[rank], ends_W[rank] + count * inner
                values[first * inner : (first + count) * inner] = all_W[rank, start : ends_W[rank]]
            whole.append(values)
        return whole

    def _ask_places(self) -> dict[int, list[tuple[int, int]]]:
        """Of each weight, which rows each process has: (first, count)."""
        own = torch.tensor([[one.first, len(one.rows)] for one in self.own.values()])
        all_W = self.world.gather(own.to(self.world.device)).cpu()
        return {
            id(one.rows): [(int(first), int(count)) for first, count in all_W[:, at]]
            for at, one in enumerate(self.own.values())
        }


def spread(model: Transformer, world: World, config: ParallelConfig) -> None:
    """Give a whole model to the processes of a world: each keeps its rows of every weight, on its device. Of a model
    that is Unfilled they have room, and no values yet.

    Experts are spread over the `ep` processes beside each other, their rows then over `dp`; all else over everyone.

    Raises:
        UsageError: parallel.ep does not divide the experts of a layer, or parallel.all_to_all is not to be had here.
    """
    if world.is_alone:
        return place(model, world.device)
    assert world.mesh is not None and world.everyone is not None
    apart: set[nn.Parameter] = set()
    layers = [block.ffn for block in model.blocks if isinstance(block.ffn, MixtureOfExperts)]
    if world.ep > 1:
        link = _link(world.mesh["ep"].get_group(), world.device, config)
        for layer in layers:
            layer.spread(link)
            if world.mesh["dp"].size() > 1:
                _shard(layer.experts, world.mesh, config)
            else:  # nobody else has these
                apart |= set(layer.experts.parameters())
    for block in model.blocks:
        _shard(block, world.everyone, config, apart)
    _shard(model, world.everyone, config, apart)
    place(model, world.device)


def _link(group: dist.ProcessGroup, device: torch.device, config: ParallelConfig) -> AllToAll:
    if config.all_to_all == "torch":
        return AllToAll(group)
    symmetric.require(device)
    return AllToAll(group, symmetric.BySymmetricMemory(group, device))


def _shard(module: nn.Module, mesh: DeviceMesh, config: ParallelConfig, apart: Iterable[nn.Parameter] = ()) -> None:
    """FSDP2: its parameters become rows, gathered before forward and backward; gradients are summed."""
    # To replicate, over rows of one process each. All processes make all groups: a part of them could not alone.
    mesh = mesh["dp", "one"] if config.data == "replicate" else mesh["dp"]
    inside = set(module.parameters()) & set(apart)
    sharded: FSDPModule = fully_shard(module, mesh=mesh, ignored_params=inside)  # pyright: ignore[reportAssignmentType]
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
    if config.data == "shard" and mesh.device_type == "cpu":
        module.gradient_sum = InOrder()  # pyright: ignore[reportArgumentType]
        sharded.set_custom_reduce_scatter(module.gradient_sum)  # pyright: ignore[reportArgumentType]


class InOrder:
    """Adds up gradients rank by rank, onto what earlier micro-batches came to, instead of in whatever order the network
    has it. `running` is what a module's rows came to so far."""

    def __init__(self) -> None:
        self.running: torch.Tensor | None = None

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, op: object,
        async_op: bool = False,
    ) -> None:  # fmt: skip
        parts_WN = torch.empty_like(input_tensor).view(group.size(), -1)
        dist.all_to_all_single(parts_WN.view(-1), input_tensor, group=group)
        if self.running is not None:
            torch.add(self.running, parts_WN[0], out=output_tensor)
        else:
            output_tensor.copy_(parts_WN[0])
        for part_N in parts_WN[1:]:
            output_tensor.add_(part_N)
        self.running = output_tensor


def _own(name: str, parameter: nn.Parameter, world: World) -> Own:
    first, shape = 0, parameter.shape
    if isinstance(parameter, DTensor):
        _, offset = compute_local_shape_and_global_offset(shape, parameter.device_mesh, parameter.placements)
        first, rows = offset[0], nn.Parameter(parameter.to_local().detach(), parameter.requires_grad)
    else:
        rows = parameter
    if world.ep > 1 and ".ffn.experts." in name:
        column, share = world.rank % world.ep, shape[0]
        first, shape = first + column * share, torch.Size((share * world.ep, *shape[1:]))
    return Own(rows, shape, first)


def _inner(shape: torch.Size) -> int:
    """Norms for each row of the first dimension: one for each row of the last."""
    return shape[1:-1].numel()


def _row_norms(of: nn.Parameter, value: torch.Tensor | None) -> torch.Tensor:
    if value is None:
        return of.new_zeros(len(of) * _inner(of.shape))
    return value.abs() if value.ndim < 2 else torch.linalg.vector_norm(value, dim=-1).flatten()
