"""Paired timing: in one process, one run of each candidate after the other, in an order of its own each time, many times over."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable

import torch

Round = dict[str, float]  # seconds by candidate


class Clock:
    """Seconds from a call to its result; on a GPU with caches cold, and the wait for the device at its end."""

    def __init__(self, device: str) -> None:
        self.flush = cache_flush() if device == "cuda" else None

    def __call__(self, function) -> float:
        if self.flush is not None:
            self.flush.zero_()
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if self.flush is not None:
            torch.cuda.synchronize()
        return time.perf_counter() - start


class GpuClock:
    """Seconds that the GPU alone is busy with a call, caches cold: nothing of it begins before all of it is queued.

    To that end the GPU sleeps first, for longer than the CPU takes to queue the call: about a millisecond for an eager
    formula of 100 launches. If the sleep ended before that, the run is repeated. A function that waits for the device
    itself can never be queued as a whole, and its time is NaN.
    """

    SLEEP = 4_000_000  # cycles of the GPU: 2 ms at 2 GHz, more at less
    TRIES = 3

    def __init__(self) -> None:
        self.flush = cache_flush()

    def __call__(self, function) -> float:
        for _ in range(self.TRIES):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self.flush.zero_()
            torch.cuda._sleep(self.SLEEP)
            start.record()
            function()
            end.record()
            is_queued = not start.query()  # the GPU still sleeps
            end.synchronize()
            if is_queued:
                return start.elapsed_time(end) * 1e-3
        return math.nan


def cache_flush() -> torch.Tensor:
    """Larger than any GPU's caches: written before a run, it takes their place."""
    return torch.empty(2**27, device="cuda")


def clocks_of(device: str) -> dict[str, Callable]:
    """By the prefix of their columns: the wall clock, whose columns have none, and on a GPU the GPU's own."""
    return {"": Clock(device)} | ({"gpu_": GpuClock()} if device == "cuda" else {})


def timed_rounds(
    candidates: dict[str, Callable],
    clock: Callable,
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
