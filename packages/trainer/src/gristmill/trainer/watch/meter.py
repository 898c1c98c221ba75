"""What steps cost: tokens a second, the share of the device's peak that became training, memory, and money."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from gristmill.trainer.watch.hardware import Peak


class Meter:
    def __init__(self, device: torch.device, peak: Peak | None, flops_per_token: float, price_per_hour: float) -> None:
        """peak: None where it is not known; then no share of it is told. price_per_hour: 0 where none is known."""
        self.device, self.peak = device, peak
        self.flops_per_token, self.price_per_hour = flops_per_token, price_per_hour

    def read(self, tokens: int, seconds: float, seconds_so_far: float) -> dict[str, float | None]:
        """For a step event. The model's FLOPs are those that learning needs (6 per active weight and token, and
        attention's), whatever is computed again to save memory (MFU, arXiv 2204.02311, appendix B)."""
        speed = tokens / seconds
        return {
            "tokens_per_second": round(speed, 1),
            "mfu": round(speed * self.flops_per_token / self.peak.flops, 4) if self.peak else None,
            "memory_gb": round(peak_memory(self.device) / 1e9, 3),
            "cost": round(seconds_so_far / 3600 * self.price_per_hour, 4) if self.price_per_hour else None,
        }


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was held at once so far, on the GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # whose ru_maxrss begins, in a child, with what its parent held
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts in bytes, others in KiB
