"""What torch's scaled grouped matmul is handed, packed numbers and scales in order, held against what cuBLAS documents
("1D block scaling factors layout"); and that a kernel which does not compute what the emulation does is not used. The
kernel itself needs a GPU of compute capability 10, and does not run here.
"""

import itertools
import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import ScalingType, SwizzleType

from gristmill.trainer.model.precision import _kernel
from gristmill.trainer.model.precision._kernel import MXFP8, NVFP4
from gristmill.trainer.model.precision.blockwise import Blockwise
from gristmill.trainer.model.precision.fp8 import Fp8
from gristmill.trainer.model.precision.mxfp8 import Mxfp8
from gristmill.trainer.model.precision.nvfp4 import Nvfp4

ENDS = torch.tensor([128, 128, 512], dtype=torch.int32)


@pytest.fixture(autouse=True)
def _fresh():
    torch.set_num_threads(1)
    _kernel._agrees.cache_clear()
    yield
    _kernel._agrees.cache_clear()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def laid_out(scales: torch.Tensor) -> torch.Tensor:
    """Scales [N, B] in memory: tiles of 128 x 4, (row, column) of one at 16 (row % 32) + 4 (row // 32) + column."""
    rows, columns = scales.shape
    flat = torch.empty(rows * columns)
    for row, column in itertools.product(range(rows), range(columns)):
        tile = row // 128 * (columns // 4) + column // 4
        flat[tile * 512 + 16 * (row % 32) + 4 * (row % 128 // 32) + column % 4] = scales[row, column]
    return flat


def test_fp4_numbers_are_packed_sign_first_and_the_first_of_two_below():
    packed = _kernel.pack_e2m1(torch.tensor([[0.0, 0.5, -1.0, 1.5], [-6.0, 2.0, 3.0, -4.0]]))
    assert packed.dtype == torch.float4_e2m1fn_x2
    assert packed.view(torch.uint8).tolist() == [[0b0001_0000, 0b0011_1010], [0b0100_1111, 0b1110_0101]]


def test_scales_lie_in_the_documented_tiles():
    scales = torch.arange(256 * 12).float().view(256, 12)
    assert torch.equal(_kernel.swizzled(scales).flatten(), laid_out(scales))
    stacked = torch.stack((scales, -scales))
    assert torch.equal(_kernel.swizzled(stacked).flatten(1), torch.stack([laid_out(one) for one in stacked]))


def test_scales_of_a_weight_gradient_lie_group_by_group():
    """Each group's own columns laid out, one after another; a group may be empty."""
    scales = torch.arange(256 * 16).float().view(256, 16)
    ends = torch.tensor([1, 1, 4], dtype=torch.int32)  # in tiles of four columns
    wanted = torch.cat([laid_out(scales[:, :4]), laid_out(scales[:, 4:])])
    assert torch.equal(_kernel.by_group(_kernel.swizzled(scales), ends).flatten(), wanted)


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """Either element type as fp32 [..., N, K]."""
    if packed.dtype == torch.float8_e4m3fn:
        return packed.float()
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = torch.cat((numbers, -numbers))
    byte = packed.view(torch.uint8).long()
    return torch.stack((table[byte & 15], table[byte >> 4]), dim=-1).flatten(-2)


def unswizzled(flat: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The inverse of laid_out, of the first rows * columns entries."""
    places = laid_out(torch.arange(rows * columns).float().view(rows, columns)).long()
    return torch.empty(rows * columns).scatter(0, places, flat.flatten()[: rows * columns]).view(rows, columns)


def reference(mat_a, mat_b, scale_a, scale_recipe_a, scale_b, scale_recipe_b, swizzle_a, swizzle_b, offs, output_dtype):
    """A kernel in plain torch that reads its arguments as the documentation and tests of scaled_grouped_mm have it."""
    assert swizzle_a == swizzle_b == SwizzleType.SWIZZLE_32_4_4 and output_dtype == torch.bfloat16
    assert mat_a.is_contiguous() and mat_b.stride(-2) == 1 and scale_recipe_a == scale_recipe_b
    block = 32 if scale_recipe_a == [ScalingType.BlockWise1x32] else 16
    assert scale_a[0].dtype == (torch.float8_e8m0fnu if block == 32 else torch.float8_e4m3fn)
    assert all(one.numel() == len(offs) and one.dtype == torch.float32 for one in scale_a[1:] + scale_b[1:])
    a, b = unpacked(mat_a), unpacked(mat_b.transpose(-2, -1))
    starts = [0, *offs.tolist()]
    out = []
    for group, (start, end) in enumerate(itertools.pairwise(starts)):
        if b.ndim == 3:
            own_a, own_b = a[start:end], b[group]
            flat_a, flat_b = scale_a[0].float().flatten()[start * a.shape[1] // block :], scale_b[0][group].float()
        else:
            own_a, own_b = a[:, start:end], b[:, start:end]
            flat_a = scale_a[0].float().flatten()[start // block * a.shape[0] :]
            flat_b = scale_b[0].float().flatten()[start // block * b.shape[0] :]
        for side, own, flat in (("a", own_a, flat_a), ("b", own_b, flat_b)):
            rows, inner = own.shape
            scales = unswizzled(flat, rows, inner // block).repeat_interleave(block, dim=1) if own.numel() else 1.0
            whole = scale_a[1:] if side == "a" else scale_b[1:]
            value = own * scales * (whole[0][group] if whole else 1.0)
            own_a, own_b = (value, own_b) if side == "a" else (own_a, value)
        out.append(own_a @ own_b.t())
    return (torch.cat(out) if b.ndim == 3 else torch.stack(out)).to(output_dtype)


@pytest.mark.parametrize("family", [Mxfp8(), Nvfp4()])
def test_a_kernel_that_reads_its_arguments_so_computes_what_the_emulation_does(family, monkeypatch):
    monkeypatch.setattr(F, "scaled_grouped_mm", reference)
    block = family.activation(normal(1, 32)).codes.shape[-1]
    assert _kernel._agrees(family.kernel, block, torch.device("cpu"))
    pairs = [
        (family.activation(normal(512, 256)), family.weight(normal(3, 128, 256, seed=1))),
        (family.activation(normal(512, 128).t()), family.activation(normal(512, 256, seed=1).t())),
    ]
    for a, b in pairs:
        wanted = Blockwise(family).multiply(a, b, ENDS)
        found = family.kernel.multiply(a, b, ENDS)
        torch.testing.assert_close(found.float(), wanted, rtol=2**-7, atol=2**-7 * float(wanted.abs().max()))


@pytest.mark.parametrize("kernel", [MXFP8, NVFP4])
def test_a_kernel_that_differs_or_fails_is_not_used(kernel, monkeypatch, caplog):
    device, block = torch.device("cpu"), 32 if kernel is MXFP8 else 16

    def wrong(*args, **kwargs):
        return reference(*args, **kwargs) * 1.02

    with caplog.at_level(logging.WARNING, "gristmill.trainer"):
        assert not _kernel._agrees(kernel, block, device)  # torch has none for this device
        assert "does not run here" in caplog.text
        _kernel._agrees.cache_clear()
        monkeypatch.setattr(F, "scaled_grouped_mm", wrong)
        assert not _kernel._agrees(kernel, block, device)
        assert "differs from the emulation" in caplog.text


def test_only_a_gpu_of_that_kind_is_asked_and_only_for_whole_tiles(monkeypatch):
    whole, part = Mxfp8().activation(normal(128, 128)), Mxfp8().activation(normal(128, 96))
    assert not MXFP8.takes(whole, whole)  # here is a CPU
    assert Fp8().kernel is None
    monkeypatch.setattr(_kernel, "_agrees", lambda *_: True)
    codes = SimpleNamespace(device=torch.device("cuda", 0), shape=whole.codes.shape)
    whole, part = whole._replace(codes=codes), part._replace(codes=codes)
    for capability, takes in (((9, 0), False), ((10, 0), True), ((12, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, found=capability: found)
        assert MXFP8.takes(whole, whole) is takes
        assert not MXFP8.takes(whole, part) and not MXFP8.takes(part, whole)
