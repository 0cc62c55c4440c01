"""The memory's bandwidth, by a triad: two arrays read, one written."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

FLOATS = {"cpu": 2**25, "cuda": 2**28}  # of each array: larger than any cache


def triad_bandwidth(device: str, clock: Callable) -> float:
    """Bytes per second, the written array counted once; the best of the runs on a CPU, where others disturb, else the median."""
    a, b = (torch.ones(FLOATS[device], device=device) for _ in range(2))
    out = torch.empty_like(a)
    seconds = [clock(lambda: torch.add(a, b, alpha=2.0, out=out)) for _ in range(10)]
    return 3 * 4 * out.numel() / (min(seconds) if device == "cpu" else statistics.median(seconds))
