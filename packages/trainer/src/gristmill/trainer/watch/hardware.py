"""What a device can do at most, in FLOP/s: a GPU by its name, from its maker's data sheet; a CPU by measuring it.

A GPU that is not in the table has no peak here, rather than a guessed one.
"""

from __future__ import annotations

import re
import time
from functools import cache
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    name: str
    flops: float  # per second
    source: str
    memory_gb: float | None = None  # of the largest version; None where it is not known


# Name, pattern of what drivers call it, TFLOP/s in bf16 on tensor cores, sums in fp32, dense (half of what data sheets
# give "with sparsity"), gigabytes of the largest version, and where that stands.
_GPUS = (
    ("GB200", r"gb200", 2500, 186, "NVIDIA GB200 NVL72 data sheet"),
    ("B200", r"b200", 2250, 180, "NVIDIA DGX B200 data sheet"),
    ("H200", r"h200(-sxm5?)?", 989.5, 141, "NVIDIA H200 data sheet"),
    ("H200-NVL", r"h200-nvl", 835.5, 141, "NVIDIA H200 data sheet"),
    ("H100", r"h100(-sxm5?)?(-80gb)?(-hbm3)?", 989.4, 80, "NVIDIA H100 architecture white paper"),
    ("H800", r"h800(-sxm5?)?", 989.4, 80, "arXiv 2505.09343, table 4"),
    ("H100-PCIe", r"h100-pcie", 756, 80, "NVIDIA H100 architecture white paper"),
    ("H100-NVL", r"h100-nvl", 835.5, 94, "NVIDIA H100 NVL data sheet"),
    ("A100", r"a100(-(sxm4?|pcie|[48]0gb))*", 312, 80, "NVIDIA A100 data sheet"),
    ("A30", r"a30", 165, 24, "NVIDIA A30 data sheet"),
    ("A40", r"a40", 149.7, 48, "NVIDIA A40 data sheet"),
    ("A10", r"a10", 125, 24, "NVIDIA A10 data sheet"),
    ("L40S", r"l40s", 362.05, 48, "NVIDIA L40S data sheet"),
    ("L40", r"l40", 181.05, 48, "NVIDIA L40 data sheet"),
    ("L4", r"l4", 121, 24, "NVIDIA L4 data sheet"),
    ("RTX-4090", r"(rtx-)?4090", 165.2, 24, "NVIDIA Ada GPU architecture white paper"),
    ("RTX-3090", r"(rtx-)?3090", 71, 24, "NVIDIA Ampere GA102 GPU architecture white paper"),
    ("MI300X", r"mi300x", 1307.4, 192, "AMD Instinct MI300X data sheet"),
)
# GB/s that one GPU sends at most: to its node, to other nodes. One way, where data sheets add up both.
_LINKS = {
    "GB200": (900, 50, "NVLink 5 and ConnectX-7, NVIDIA GB200 NVL72 data sheet"),
    "B200": (900, 50, "NVLink 5 and ConnectX-7, NVIDIA DGX B200 data sheet"),
    "H200": (450, 50, "NVLink 4 and ConnectX-7, NVIDIA DGX H200 data sheet"),
    "H100": (450, 50, "NVLink 4 and ConnectX-7, NVIDIA DGX H100 data sheet"),
    "H800": (200, 50, "NVLink and ConnectX-7, arXiv 2505.09343, section 4.2"),
    "A100": (300, 25, "NVLink 3 and ConnectX-6, NVIDIA DGX A100 data sheet"),
}
_MAKERS = re.compile(r"^(nvidia|amd|instinct|geforce)-")
_PRODUCT, _SECONDS = 768, 0.2  # side of the matrices that a CPU is measured with, and about how long that may take


def of_gpu(name: str) -> Peak | None:
    """By the name that torch gives it, or a short one of gpu_names(). A slice of a GPU (MIG) is not known either."""
    plain = re.sub(r"[\s_-]+", "-", name.strip().lower())
    while (shorter := _MAKERS.sub("", plain)) != plain:
        plain = shorter
    for known, pattern, tflops, memory, source in _GPUS:
        if re.fullmatch(pattern, plain):
            return Peak(known, tflops * 1e12, f"{source}, bf16 dense", memory)
    return None


class Links(NamedTuple):
    inside: float  # bytes per second that a GPU sends to those of its node
    between: float  # and to other nodes
    source: str


def links_of(name: str) -> Links | None:
    """By a name of gpu_names(), in its maker's machine of eight."""
    if name not in _LINKS:
        return None
    inside, between, source = _LINKS[name]
    return Links(inside * 1e9, between * 1e9, source)


def gpu_names() -> list[str]:
    return [name for name, *_ in _GPUS]


@cache
def of_cpu(threads: int, dtype: torch.dtype) -> Peak:
    """The best speed of a product of matrices just now, in this process."""
    a, b = (torch.ones(_PRODUCT, _PRODUCT, dtype=dtype) for _ in range(2))
    times: list[float] = []
    while len(times) < 2 or sum(times) < _SECONDS:
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    name = str(dtype).removeprefix("torch.")
    return Peak(f"CPU, {threads} thread(s)", 2 * _PRODUCT**3 / min(times), f"measured: {name} product of {_PRODUCT}²")


def of_device(device: torch.device, dtype: torch.dtype) -> Peak | None:
    """dtype: of the matrix products, which matters for a CPU alone."""
    if device.type == "cuda":
        return of_gpu(torch.cuda.get_device_name(device))
    return of_cpu(torch.get_num_threads(), dtype)
