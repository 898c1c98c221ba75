"""What each GPU sends in a step, in bytes: over the links of its node, and between nodes. Pure arithmetic, no torch.

Neighbours share a node; a group that is wider than a node has as many of its members in each. T tokens that a GPU
reads, K experts per token, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from gristmill.trainer.planning.mesh import Mesh

FP32 = 4  # bytes: weights are gathered, and gradients are summed, in fp32


class Sent(NamedTuple):
    """Bytes that one GPU sends."""

    inside: float = 0.0  # its node
    between: float = 0.0  # nodes

    def times(self, factor: float) -> Sent:
        return Sent(self.inside * factor, self.between * factor)

    def plus(self, other: Sent) -> Sent:
        return Sent(self.inside + other.inside, self.between + other.between)


class Group(NamedTuple):
    """size: GPUs that exchange something; here: those of them in one node."""

    size: int
    here: int

    def exchange(self, own: float) -> Sent:
        """All-to-all: each sends an even share of its own bytes to each, and keeps what is for itself."""
        return Sent(own * (self.here - 1) / self.size, own * (self.size - self.here) / self.size)

    def gather(self, whole: float) -> Sent:
        """All-gather, or reduce-scatter, of so many bytes in all, by rings: each passes on all but a share of its own;
        to the next node passes, of the GPUs of a node together, all that this node does not have (NCCL's rings)."""
        nodes = self.size / self.here
        between = whole * (nodes - 1) / nodes / self.here
        return Sent(whole * (self.size - 1) / self.size - between, between)


def groups(mesh: Mesh, per_node: int) -> tuple[Group, Group, Group]:
    """(everyone, those that share experts out among them, those that have the same experts)."""
    per_node = min(per_node, mesh.gpus)
    ep_here = min(mesh.ep, per_node)
    return Group(mesh.gpus, per_node), Group(mesh.ep, ep_here), Group(mesh.dp, max(per_node // mesh.ep, 1))


class Weights(NamedTuple):
    """Numbers of weights."""

    outer: int  # embeddings and head: gathered once a pass
    dense: int  # of the layers
    experts: int  # all routed ones


class Traffic(NamedTuple):
    """Of one step, by what is sent."""

    tokens: Sent = Sent()  # all-to-all, there and back
    weights: Sent = Sent()  # all-gather
    gradients: Sent = Sent()  # reduce-scatter; of copies, all-reduce

    @property
    def total(self) -> Sent:
        return self.tokens.plus(self.weights).plus(self.gradients)


NOTHING = Traffic()


def of_step(mesh: Mesh, per_node: int, weights: Weights, routed: float, passes: int, recompute: bool) -> Traffic:
    """Args:
    routed: T * K * D in bytes, summed over the layers that have experts and over the step's passes.
    passes: micro-batches of a step.
    """
    everyone, ep, dp = groups(mesh, per_node)
    # forward: to the experts and back; backward: the gradients of both; recomputed: forward once more
    tokens = ep.exchange(routed).times(6 if recompute else 4)
    dense, experts = weights.dense * FP32, weights.experts / mesh.ep * FP32
    outer, layers = everyone.gather(weights.outer * FP32), everyone.gather(dense).plus(dp.gather(experts))
    once = outer.plus(layers)
    if mesh.data == "replicate":  # an all-reduce is a reduce-scatter and an all-gather
        return Traffic(tokens, Sent(), once.times(2 * passes))
    return Traffic(tokens, outer.plus(layers.times(2)).times(passes), once.times(passes))  # again for backward


def of_matrices(mesh: Mesh, per_node: int, weights: Weights) -> Sent:
    """What Muon gathers in a step: momenta of the layers' matrices, whole. Of experts, every GPU has whole ones."""
    everyone, _, _ = groups(mesh, per_node)
    return everyone.gather(weights.dense * FP32)
