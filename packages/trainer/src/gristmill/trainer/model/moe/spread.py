"""Experts over the ranks of a group: each holds an equal part of them, and tokens travel to their experts and back.

Of E experts, rank r of n holds those from r*E/n up to (r+1)*E/n. A rank's rows set out in expert order, and so in the
order of ranks. What arrives is put in the order of the experts here, where rows of one expert keep the order of the
ranks they come from: an expert sees the rows that it would see in one process, in the same order.
T tokens of this rank, A rows that arrive here, R rows in expert order, n ranks, e experts of this rank, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gristmill.base.errors import UsageError
from gristmill.trainer.model.moe import dispatch
from gristmill.trainer.model.moe.experts import Experts, compute, layout
from gristmill.trainer.model.moe.router import Routing
from gristmill.trainer.parallel.all_to_all import AllToAll, Splits


class SpreadExperts(nn.Module):
    """Stands in for Experts, with this rank's part of its weights under the same names."""

    def __init__(self, whole: Experts, link: AllToAll) -> None:
        """`whole`: the same on every rank; it can be let go of afterwards.

        Raises:
            UsageError: the ranks do not divide the experts.
        """
        super().__init__()
        self.experts = len(whole.gate_up_EFD)
        if self.experts % link.ranks:
            raise UsageError(
                f"expert parallelism: {link.ranks} ranks do not divide the {self.experts} experts of a layer; take "
                "a number of ranks that does"
            )
        each = self.experts // link.ranks
        self.held = range(link.rank * each, (link.rank + 1) * each)  # of all experts, those that are here
        self.gate_up_EFD, self.down_EDF = (
            nn.Parameter(one.detach()[self.held.start : self.held.stop].clone(), one.requires_grad)
            for one in (whole.gate_up_EFD, whole.down_EDF)
        )
        self.precision, self.link = whole.precision, link
        self.capacity, self.capacity_eval = whole.capacity, whole.capacity_eval
        self.train(whole.training)

    # How many rows come is known only as they come, so compiled code would be made anew in every step.
    @torch.compiler.disable(reason="experts over ranks: the number of rows is another in every step")
    def forward(
        self, x_TD: torch.Tensor, routing: Routing, beside: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As Experts, of this rank's tokens; beside(x_TD), computed while tokens travel, is added.

        Every rank of the group must call this equally often, each with tokens of its own, as many as it likes. In
        training, where experts have a capacity or choose their tokens, all must have as many: each rank sends each
        expert the same number of rows, some of them empty, and nothing waits for a count.
        """
        even = self.training and (routing.tokens_EC is not None or self.capacity > 0)
        factor = self.capacity if self.training else self.capacity_eval
        where = layout(len(x_TD), routing, self.experts, 1, factor, even)
        rows_ne, splits = self._even(where) if even else self._ask(where)
        journey = self.link.start(where.scatter(x_TD), splits)
        beside_TD = None if beside is None else beside(x_TD)
        x_AD = journey.wait()
        here = self._by_expert(rows_ne, len(x_AD))
        y_RD = compute(here.scatter(x_AD), self.gate_up_EFD, self.down_EDF, here.ends_E, self.precision)
        y_RD = self.link.start(here.gather(y_RD), splits and splits.back).wait()
        y_TD = where.combine(y_RD, routing.weights)
        return (y_TD if beside_TD is None else y_TD + beside_TD), where.dropped

    def _even(self, where: dispatch.Layout) -> tuple[torch.Tensor, None]:
        """Rows that come from each rank for each expert here, [n, e]: each expert, wherever it is, has as many."""
        rows_E = torch.diff(where.ends_E, prepend=where.ends_E.new_zeros(1))
        return rows_E.view(self.link.ranks, -1), None

    def _ask(self, where: dispatch.Layout) -> tuple[torch.Tensor, Splits]:
        """The same, and who sends whom how many, where ranks have to tell each other. Waits for the device."""
        rows_nE = self.link.gather(torch.diff(where.ends_E, prepend=where.ends_E.new_zeros(1)))
        rows_nn = rows_nE.unflatten(1, (self.link.ranks, -1)).sum(dim=2)  # from the first, to the second
        most = torch.maximum(rows_nn.sum(dim=0), rows_nn.sum(dim=1)).max().expand(1, self.link.ranks)
        both = torch.cat((rows_nn[self.link.rank, None], rows_nn[None, :, self.link.rank], most))
        send, receive, (largest, *_) = both.tolist()
        return rows_nE[:, self.held.start : self.held.stop], Splits(send, receive, largest)

    def _by_expert(self, rows_ne: torch.Tensor, rows: int) -> dispatch.TokenChoice:
        """Where what arrives, rank by rank and for each rank expert by expert, sits in the order of experts."""
        n, e = rows_ne.shape
        expert_A = torch.arange(e, device=rows_ne.device).repeat(n)
        expert_A = expert_A.repeat_interleave(rows_ne.flatten(), output_size=rows)
        return dispatch.by_token(expert_A[:, None], None, e, self.precision.row_multiple)
