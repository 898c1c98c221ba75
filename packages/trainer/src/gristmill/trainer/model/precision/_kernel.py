"""torch's scaled grouped matmul for mxfp8 and nvfp4, on GPUs of compute capability 10 (B200, B300).

It has not run: there was no such GPU to run it on; tests hold what it is handed against the layouts that cuBLAS
documents. So it must earn its use: a small product is computed by it and by the emulation first, and where the two
differ, or torch has no such kernel, the emulation goes on, with a warning.
R rows, E experts, N rows of an operand, K inner dimension, B scales of a row, C columns of scale tiles.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.functional import ScalingType, SwizzleType

from gristmill.trainer.model.precision._elements import TINIEST, Operand
from gristmill.trainer.model.precision._grouped import grouped_mm

log = logging.getLogger("gristmill.trainer")

TILE_ROWS, TILE_SCALES = 128, 4  # of scales in memory (cuBLAS documentation, "1D block scaling factors layout")


@dataclass(frozen=True)
class Kernel:
    """How one format is handed over."""

    recipe: tuple[ScalingType, ...]
    pack: Callable[[torch.Tensor], torch.Tensor]  # fp32 codes [..., N, K] to the hardware's type
    scale_type: torch.dtype

    def takes(self, a: Operand, b: Operand) -> bool:
        """Whether it can and may multiply these two."""
        device = a.codes.device
        if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 10:
            return False
        whole = all(size % TILE_ROWS == 0 for operand in (a, b) for size in operand.shape[-2:])
        return whole and _agrees(self, _block(a), device)

    def multiply(self, a: Operand, b: Operand, ends_E: torch.Tensor) -> torch.Tensor:
        """As Blockwise.multiply; bf16."""
        E = len(ends_E)
        return F.scaled_grouped_mm(  # pyright: ignore[reportAttributeAccessIssue] - not in torch's stubs
            self.pack(_codes(a)),
            self.pack(_codes(b)).transpose(-2, -1),
            scale_a=self.scales(a, None if b.codes.ndim > a.codes.ndim else ends_E, E),
            scale_recipe_a=list(self.recipe),
            scale_b=self.scales(b, None if b.codes.ndim > a.codes.ndim else ends_E, E),
            scale_recipe_b=list(self.recipe),
            swizzle_a=SwizzleType.SWIZZLE_32_4_4,
            swizzle_b=SwizzleType.SWIZZLE_32_4_4,
            offs=ends_E,
            output_dtype=torch.bfloat16,
        )

    def scales(self, operand: Operand, ends_E: torch.Tensor | None, experts: int) -> list[torch.Tensor]:
        """Block scales in the kernel's order, and where the format has them the matrices' scales, one per expert.

        ends_E: where the inner dimension is cut into groups; then each group's tiles lie together.
        """
        tiles_NC = swizzled(operand.scales.squeeze(-1).squeeze(-2))
        if operand.codes.ndim > 4:  # stacked weights
            blocks = tiles_NC.flatten(1)
        else:
            ordered = tiles_NC if ends_E is None else by_group(tiles_NC, ends_E // (TILE_SCALES * _block(operand)))
            blocks = ordered.reshape(operand.shape[-2], -1)
        found = [blocks.contiguous().to(self.scale_type)]
        if operand.tensor_scale is not None:
            found.append(operand.tensor_scale.flatten().expand(experts).contiguous())
        return found


def swizzled(scales_NB: torch.Tensor) -> torch.Tensor:
    """[..., N, B] -> [..., N / 128, B / 4, 512]: tiles, and inside them row r before its next three scales, at
    (r % 32, r / 32)."""
    parts = scales_NB.unflatten(-1, (-1, TILE_SCALES)).unflatten(-3, (-1, 4, 32))  # [..., n, 4, 32, C, 4]
    return parts.movedim(-2, -4).transpose(-3, -2).flatten(-3)


def by_group(tiles_NC: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """[n, C, 512] with columns cut at ends_E -> [n * C, 512]: all of the first group's tiles, then the second's."""
    n, C = tiles_NC.shape[:2]
    column_C = torch.arange(C, device=tiles_NC.device)
    group_C = torch.searchsorted(ends_E, column_C.to(ends_E.dtype), right=True)
    starts_E = F.pad(ends_E, (1, -1))
    start_C, width_C = starts_E[group_C], (ends_E - starts_E)[group_C]
    row_n1 = torch.arange(n, device=tiles_NC.device)[:, None]
    place_nC = n * start_C + row_n1 * width_C + (column_C - start_C)
    ordered = torch.empty_like(tiles_NC).flatten(0, 1)
    ordered[place_nC.flatten()] = tiles_NC.flatten(0, 1)
    return ordered


def pack_e4m3(codes: torch.Tensor) -> torch.Tensor:
    return codes.to(torch.float8_e4m3fn)


def pack_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Four bits each, sign before magnitude; two to a byte, the first one in the lower half."""
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], device=codes.device)
    bits = torch.searchsorted(magnitudes, codes.abs()) + 8 * codes.signbit()
    pairs = bits.to(torch.uint8).unflatten(-1, (-1, 2))
    return (pairs[..., 0] | pairs[..., 1] << 4).view(torch.float4_e2m1fn_x2)


MXFP8 = Kernel((ScalingType.BlockWise1x32,), pack_e4m3, torch.float8_e8m0fnu)
NVFP4 = Kernel((ScalingType.BlockWise1x16, ScalingType.TensorWise), pack_e2m1, torch.float8_e4m3fn)


def _codes(operand: Operand) -> torch.Tensor:
    """[..., N, K], contiguous; its sizes are whole numbers of tiles."""
    return operand.codes.flatten(-2).flatten(-3, -2).contiguous()


def _block(operand: Operand) -> int:
    return operand.codes.shape[-1]


@functools.cache
def _agrees(kernel: Kernel, block: int, device: torch.device) -> bool:
    """Whether this machine's kernel computes what the emulation does: both kinds of product, three unlike groups."""
    generator = torch.Generator().manual_seed(0)
    ends_E = torch.tensor([128, 512, 768], dtype=torch.int32, device=device)

    def operand(*shape: int) -> Operand:
        """Random numbers that both element formats have, and random powers of two as scales."""
        *before, N, K = shape
        codes = torch.randint(-3, 4, (*before, N, 1, K // block, block), generator=generator).float()
        scales = 2.0 ** torch.randint(-2, 3, (*before, N, 1, K // block, 1), generator=generator)
        two_levels = len(kernel.recipe) > 1
        whole = torch.full((*before, 1, 1, 1, 1), 0.5, device=device) if two_levels else None
        return Operand(codes.to(device), scales.to(device), torch.Size(shape), whole)

    try:
        for a, b in ((operand(768, 256), operand(3, 128, 256)), (operand(128, 768), operand(256, 768))):
            wanted = grouped_mm(a.values(), b.values().transpose(-2, -1), ends_E)
            off = (kernel.multiply(a, b, ends_E).float() - wanted).abs().max()
            if not off <= 2.0**-8 * wanted.abs().max().clamp(min=TINIEST):  # bf16 rounds the kernel's result by less
                log.warning("torch's scaled grouped matmul differs from the emulation here; the emulation is used")
                return False
    except (RuntimeError, ValueError, NotImplementedError) as error:
        log.warning("torch's scaled grouped matmul does not run here (%s); the emulation is used", error)
        return False
    return True
