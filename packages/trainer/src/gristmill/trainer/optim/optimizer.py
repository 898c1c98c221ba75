"""One optimiser of any kinds: weights fall into groups with their own kind, rate and decay; state goes by their names.

Each kind is one file: build(groups, config, whole, mine) makes torch's optimiser of it, slots(parameter) what it keeps
of a parameter, and WIDTH_POWER says how its rates go with the model's width. Of each weight it works on the rows that
this process has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_

from gristmill.base.errors import UsageError
from gristmill.trainer.checkpoints.tensor_file import Piece
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import adafactor, adamw, muon, qk_clip
from gristmill.trainer.optim.config import GROUPS, OptimizerConfig
from gristmill.trainer.parallel.shards import Shards

KINDS = {"adamw": adamw, "muon": muon, "adafactor": adafactor}
TABLES = ("embedding_VD", "head_VD")
FIXED = ("convolution_FK", "place_Ld")  # matrices whose inputs do not grow with the model's width, and that are no maps

Named = list[tuple[str, nn.Parameter]]


class Optimizer:
    """groups: by what they are for, those without parameters left out. parts: torch's optimisers, one for each kind."""

    def __init__(
        self, groups: dict[str, Named], parts: list[torch.optim.Optimizer], slots: dict[str, dict[str, torch.Tensor]],
        watched: list[qk_clip.Watched], config: OptimizerConfig, shards: Shards,
    ) -> None:  # fmt: skip
        self.groups, self.parts, self.shards = groups, parts, shards
        self._slots, self._watched, self._config = slots, watched, config
        together = {"all": [one for named in groups.values() for one in named]}
        self._cut_together = together if config.clip_by == "all" else groups

    def is_frozen(self, group: str) -> bool:
        """Whether its weights stay as they are."""
        return self._config.of(group).learning_rate == 0

    def begin(self, factor: float) -> None:
        """Set every learning rate to its peak times `factor`."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factor

    @torch.no_grad()
    def clip(self) -> dict[str, torch.Tensor]:
        """Norms of the gradients by group, and of "all", as they were; then cut as configured."""
        norms = self.norms({name: [own.grad for _, own in named] for name, named in self.groups.items()})
        norms["all"] = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        if self._config.clip:
            for name, named in self._cut_together.items():
                clip_grads_with_norm_([own for _, own in named], self._config.clip, norms[name])
        return norms

    @torch.no_grad()
    def step(self) -> None:
        for part in self.parts:
            part.step()
        for attention in self._watched:
            assert attention.largest_H is not None
            largest_H = self.shards.world.gather(attention.largest_H).amax(0)
            for weight, shrink_F in attention.shrinkage_of_rows(largest_H, self._config.qk_clip):
                own = self.shards.of(weight).rows
                own.mul_(self.shards.mine(own, shrink_F[:, None]))

    def norms(self, tensors: Mapping[str, list[torch.Tensor | None]]) -> dict[str, torch.Tensor]:
        """By group, the norm of tensors that stand in the order of its weights (None: zeros)."""
        weights = {name: [own for _, own in named] for name, named in self.groups.items()}
        return self.shards.norms({name: list(zip(weights[name], own, strict=True)) for name, own in tensors.items()})

    def zero_grad(self) -> None:
        """Forget gradients, and what was seen of the scores."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        self.shards.forget_gradients()
        for attention in self._watched:
            attention.watch_scores()

    def state(self) -> dict[str, Piece]:
        """`<slot>/<parameter>` -> tensor, for every tensor that is kept: the same names before the first step."""
        return {
            f"{slot}/{name}": self.shards.piece(name, value)
            for name, own in self._slots.items()
            for slot, value in own.items()
        }


class _Alike(NamedTuple):
    """What parameters of one of torch's groups have in common."""

    peak: float
    weight_decay: float
    maps: int


def build(model: Transformer, config: OptimizerConfig, shards: Shards | None = None) -> Optimizer:
    """With model.base_width, the rates of matrices inside the network go with base_width / width, so that a rate found
    at one width holds at another (muP, arXiv 2203.03466, table 8). That is for models whose other widths (heads,
    expert_width) grow with `width`. The rest of the table: matrices begin at 1 / sqrt(inputs), tables at a std that
    does not depend on width, and the logits have ModelConfig.output_scale.

    Weights that came in bf16 become fp32, as the state is: bf16 would lose small steps.

    Args:
        shards: of the model, where it is spread over processes.

    Raises:
        UsageError: qk_clip where no attention has scores to clip; Adafactor, which looks at whole weights, on shares.
    """
    if shards is None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        shards = Shards(model)
    wider = model.config.base_width / model.config.width if model.config.base_width else 1.0
    groups: dict[str, Named] = {group: [] for group in GROUPS}
    slots: dict[str, dict[str, torch.Tensor]] = {}
    alike: dict[str, dict[_Alike, Named]] = defaultdict(lambda: defaultdict(list))
    for name, own in shards.own.items():
        parameter, group = own.rows, group_of(name, own.rows)
        groups[group].append((name, parameter))
        settings = config.of(group)
        is_map = parameter.ndim > 1 and name.rpartition(".")[2] not in FIXED
        kind = settings.kind if is_map or settings.kind != "muon" else "adamw"
        if kind == "adafactor" and not own.is_whole:
            raise UsageError(
                "optimizer.kind adafactor looks at whole weights, and processes have shares of them: give "
                "--parallel.data replicate and --parallel.ep 1, or another kind"
            )
        scale = wider ** KINDS[kind].WIDTH_POWER if is_map and group != "embeddings" else 1.0
        maps = 2 if "gate_up" in name else 1
        alike[kind][_Alike(settings.learning_rate * scale, settings.weight_decay, maps)].append((name, parameter))
        slots[name] = KINDS[kind].slots(parameter)
    parts = []
    for kind, sorts in alike.items():
        own = [
            {"params": [parameter for _, parameter in named], "lr": about.peak, **about._asdict()}
            for about, named in sorts.items()
        ]
        part = KINDS[kind].build(own, config, shards.whole, shards.mine)
        part.state.update({parameter: slots[name] for named in sorts.values() for name, parameter in named})
        parts.append(part)
    watched = qk_clip.watch(model) if config.qk_clip and config.of("dense").learning_rate else []
    return Optimizer({name: own for name, own in groups.items() if own}, parts, slots, watched, config, shards)


def group_of(name: str, parameter: torch.Tensor) -> str:
    """The one of GROUPS that a parameter belongs to."""
    if name in TABLES:
        return "embeddings"
    if parameter.ndim < 2:
        return "norms"
    return next((group for group in ("router", "experts") if f".ffn.{group}." in name), "dense")
