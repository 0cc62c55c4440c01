"""The memory's bandwidth: by a triad, two arrays read and one written, and by a copy; of random numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

FLOATS = {"cpu": 2**25, "cuda": 2**28}  # of each array: larger than any cache


def triad_bandwidth(device: str, clock: Callable) -> float:
    """Bytes per second, the written array counted once; the best of the runs on a CPU, where others disturb, else the median."""
    a, b = (torch.rand(FLOATS[device], device=device) for _ in range(2))
    out = torch.empty_like(a)
    seconds = [clock(lambda: torch.add(a, b, alpha=2.0, out=out)) for _ in range(10)]
    return 3 * 4 * out.numel() / (min(seconds) if device == "cpu" else statistics.median(seconds))


def copy_bandwidth(device: str, clock: Callable) -> float:
    """Bytes per second, those read and those written; the median."""
    a = torch.rand(FLOATS[device], device=device)
    out = torch.empty_like(a)
    return 2 * 4 * out.numel() / statistics.median(clock(lambda: out.copy_(a)) for _ in range(10))
