"""Paired timing: in one process, one run of each candidate after the other, in an order of its own each time, many times over."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch

Round = dict[str, float]  # seconds by candidate


class Clock:
    """Seconds that a call takes on the device, caches cold to it on a GPU."""

    def __init__(self, device: str) -> None:
        self.flush = torch.empty(2**27, device=device) if device == "cuda" else None

    def __call__(self, function) -> float:
        if self.flush is None:
            start = time.perf_counter()
            function()
            return time.perf_counter() - start
        self.flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


def timed_rounds(
    candidates: dict[str, Callable],
    clock: Clock,
    *,
    seconds: float,
    least: int,
    most: int,
    before: Callable[[str], None] = lambda name: None,
) -> list[Round]:
    """As many rounds as fit into the seconds, within the bounds; ``before`` hears what runs next."""
    rounds: list[Round] = []
    order, shuffle = list(candidates), random.Random(0).shuffle
    stop = time.perf_counter() + seconds
    while len(rounds) < least or (time.perf_counter() < stop and len(rounds) < most):
        rounds.append({})
        shuffle(order)  # what ran before decides what the caches hold
        for name in order:
            before(name)
            rounds[-1][name] = clock(candidates[name])
    return rounds


def median_seconds(rounds: list[Round], name: str) -> float:
    return statistics.median(one[name] for one in rounds)


def ratios(rounds: list[Round], name: str, base: str) -> list[float]:
    """The candidate's time over the base's, round by round."""
    return [one[name] / one[base] for one in rounds]
