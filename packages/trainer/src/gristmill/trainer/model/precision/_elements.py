"""Numbers of few bits, and tiles of them that share a scale.

A tensor [..., N, K] is cut into tiles of its last two dimensions; what lacks at an edge counts as zeros. All arithmetic
is in fp32: rounding to so few bits is exact there.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
import torch.nn.functional as F

TINIEST = 2.0**-126  # the smallest normal fp32 number: scales stay at or above it, so that none is zero


class StochasticRounding:
    """Draws that decide whether a number is rounded up or down, by a generator of their own.

    The generator begins anew at every pass of every step: what is drawn depends on seed, step and pass alone, so a run
    that was resumed, or has other processes now, rounds as one that was never stopped. Gradients alone are rounded so;
    computing activations again draws nothing.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.generator = torch.Generator(device)
        self.begin(0)

    def begin(self, step: int, part: int = 0) -> None:
        digest = hashlib.sha256(f"stochastic rounding {self.seed} {step} {part}".encode()).digest()
        self.generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        """Uniform in [0, 1), fp32, of the shape of `like`."""
        return torch.rand(like.shape, generator=self.generator, device=like.device)


class Element(NamedTuple):
    """A number format with a sign, no infinity, and subnormal numbers below its smallest normal one."""

    mantissa: int  # bits behind the leading one
    exponent: int  # of the smallest normal number
    largest: float

    def round(self, x: torch.Tensor, rounding: StochasticRounding | None = None) -> torch.Tensor:
        """x (fp32) at the nearest of the format's numbers, ties to the even one; with a rounding, at one of the two
        neighbours so that the mean is x. Beyond the largest: the largest. What is not finite becomes NaN."""
        power = (x.view(torch.int32) & 0x7F800000).view(torch.float32)  # 2 ** floor(log2 |x|): the exponent's bits
        step = power.clamp_(min=2.0**self.exponent).mul_(2.0**-self.mantissa)
        steps = x / step
        if rounding is None:
            steps.round_()
        else:
            lower = steps.floor()
            steps = lower + (rounding.draw(steps) < steps - lower)  # a number of the format stays what it is
        return steps.mul_(step).clamp_(-self.largest, self.largest)


# OCP 8-bit floating point (OFP8) 1.0 and microscaling formats (MX) 1.0.
E4M3 = Element(mantissa=3, exponent=-6, largest=448.0)
E2M1 = Element(mantissa=1, exponent=0, largest=6.0)


class Operand(NamedTuple):
    """A quantised operand [..., N, K] of a product over K."""

    codes: torch.Tensor  # fp32 [..., N/a, a, K/b, b]: numbers of the element format, in tiles of a x b
    scales: torch.Tensor  # fp32 [..., N/a, 1, K/b, 1]: what a tile's numbers are multiplied by
    shape: torch.Size  # [..., N, K], before edges were filled up
    tensor_scale: torch.Tensor | None = None  # fp32 [..., 1, 1, 1, 1]: what all of a matrix is multiplied by besides

    def values(self) -> torch.Tensor:
        """The numbers that this stands for, fp32 [..., N, K]."""
        scales = self.scales if self.tensor_scale is None else self.scales * self.tensor_scale
        N, K = self.shape[-2:]
        return (self.codes * scales).flatten(-2).flatten(-3, -2)[..., :N, :K]


def tiles(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """[..., N, K] -> fp32 [..., N/rows, rows, K/columns, columns], the edges filled up with zeros."""
    N, K = x.shape[-2:]
    x = x.float()
    if N % rows or K % columns:
        x = F.pad(x, (0, -K % columns, 0, -N % rows))
    return x.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))


def largest(tiled: torch.Tensor) -> torch.Tensor:
    """The largest magnitude in each tile: [..., N/a, 1, K/b, 1]."""
    return tiled.abs().amax((-3, -1), keepdim=True)
