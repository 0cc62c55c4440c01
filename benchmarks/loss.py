"""Time of the loss beside its peers: `make bench`, or ``python benchmarks/loss.py [--device cuda] [--out FILE.csv]``.

Every figure is a ratio of paired runs: in one process, one run of each candidate after the other, many times over; the median of the
ratios and their quartiles. The peers are the published formula in eager torch (``peers.py``), that under torch.compile (MASPO), and
the same loss of other libraries where these are installed (``libraries.py``). Then our time against tokens and threads
(``scaling.py``). ``--compare OLD.csv NEW.csv`` tells what became slower.

On a GPU there are two times. ``seconds`` and its ratios are of the wall clock, from call to result, as on a CPU: that
is the headline, since a caller waits for whichever is slower. For a small batch that is Python and the launches,
where the GPU's time alone would flatter whoever launches least; for a large one the two agree. ``gpu_seconds`` and
the other columns with ``gpu_`` are of the GPU alone, what a call costs where the CPU runs ahead of it. They are empty
for a peer that waits for the device itself, which cannot be queued (``timing.py``).
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from bandwidth import triad_bandwidth
from cases import Case, cases, make_batch
from libraries import library_functions
from loss_plots import plot
from peers import EAGER
from report import Bar, about_this_run, require, save
from scaling import LARGEST, scaling
from timing import clocks_of, median_seconds, ratios, timed_rounds

import maspo_ext

SECONDS = {"cpu": 1.0, "cuda": 0.1}  # spent on one case by each clock
LEAST, MOST = 5, 200  # rounds of it
REGRESSION = 1.1


def candidates_of(case: Case, batch: dict, libraries: dict, compiled) -> dict:
    """By name, what does the forward pass, and the backward pass if asked; ours first."""
    mode = case.mode
    tensors = {name: value for name, value in batch.items() if name != "entropy" or mode == "entropy_adv"}

    def whole(function):
        def call():
            if case.with_backward:
                torch.autograd.grad(function(**tensors)[0], batch["log_prob"])
            else:
                with torch.no_grad():
                    function(**tensors)

        return call

    made = {"maspo_ext": whole(lambda **arguments: maspo_ext.policy_loss(**arguments, ratio_mode=mode))}
    if mode != "ppo":
        made["maspo_ext ppo"] = whole(
            lambda entropy=None, **arguments: maspo_ext.policy_loss(**arguments, ratio_mode="ppo")
        )
    made["eager"] = whole(EAGER[mode])
    if compiled:
        made["torch.compile"] = whole(compiled)
    for name, functions in libraries.items():
        if mode in functions:
            made[name] = whole(functions[mode])
    return made


def runnable(candidates: dict) -> dict:
    """Those that run; what is not ours and does not is no reason to have no figures."""
    found = {}
    for name, function in candidates.items():
        try:
            function()
        except Exception as error:
            if name.startswith("maspo_ext"):
                raise
            print(f"left out: {name}: {error or type(error).__name__}", flush=True)
        else:
            found[name] = function
    return found


class Measured(NamedTuple):
    """By one clock."""

    seconds: float  # the median
    ratio: float  # over ours: the median, the first and the third quartile
    low: float
    high: float


UNKNOWN = Measured(*4 * [math.nan])  # the clock could not tell


def measure(candidates: dict, clock: Callable, budget: float) -> dict[str, Measured]:
    """By name."""
    for function in candidates.values():
        function()
    rounds = timed_rounds(candidates, clock, seconds=budget, least=LEAST, most=MOST)
    result = {}
    for name in candidates:
        over_ours = ratios(rounds, name, "maspo_ext")
        if any(map(math.isnan, over_ours)):
            result[name] = UNKNOWN
            continue
        low, middle, high = statistics.quantiles(over_ours, n=4)
        result[name] = Measured(median_seconds(rounds, name), middle, low, high)
    return result


def columns_of(measured: dict[str, Measured]) -> dict[str, str]:
    """By clock, a peer's figures in a row of the CSV; empty where there are none."""
    columns = {}
    for prefix, (seconds, *of_ratio) in measured.items():
        columns[f"{prefix}seconds"] = number(seconds, ".3e")
        for name, value in zip(("peer_over_ours", "quartile_1", "quartile_3"), of_ratio, strict=True):
            columns[prefix + name] = number(value, ".3f")
    return columns


def number(value: float, digits: str) -> str:
    return "" if math.isnan(value) else format(value, digits)


def said(case: Case, measured: dict[str, dict[str, Measured]], floor: float) -> str:
    """The line of a case: by every clock our time, its share of the bandwidth, and the others'."""
    columns = case.columns()
    what = f"{case.rows}x{case.cols} {columns['dtype']} {case.masked:.0%} {columns['mask']} {case.mode} {columns['pass']}"
    return f"{what:61} " + "; GPU alone".join(by_clock(peers, floor) for peers in measured.values())


def by_clock(peers: dict[str, Measured], floor: float) -> str:
    ours = peers["maspo_ext"].seconds
    others = "  ".join(f"{peer} {one.ratio:.2f}" for peer, one in peers.items() if peer != "maspo_ext")
    return f"{ours * 1e6:10.1f} us ({floor / ours:4.0%} of the bandwidth)  {others}"


def run(device: str) -> Iterator[dict]:
    """The rows of all cases, printed as they come."""
    clocks, libraries, run_of = clocks_of(device), library_functions(), about_this_run(device)
    bandwidth = triad_bandwidth(device, [*clocks.values()][-1])
    todo = cases(device)
    print(
        f"{run_of['machine']}, {run_of['threads']} threads, torch {run_of['torch']}, a triad moves {bandwidth / 1e9:.1f} GB/s; "
        "times of the peers over ours", flush=True,
    )  # fmt: skip
    bar = Bar(len(todo) + (LARGEST - 8) // 2 * (2 if device == "cpu" and run_of["threads"] > 1 else 1))
    for case in todo:
        bar.step(f"{case.rows}x{case.cols} {case.mode}")
        batch = make_batch(case, device)
        floor = case.floor_bytes(device) / bandwidth
        torch._dynamo.reset()  # one shape and dtype at a time: none runs into the limit of recompilations
        compiled = torch.compile(EAGER["maspo"]) if case.is_compiled(device) else None
        candidates = runnable(candidates_of(case, batch, libraries, compiled))
        measured = {prefix: measure(candidates, clock, SECONDS[device]) for prefix, clock in clocks.items()}
        for peer in candidates:
            figures = columns_of({prefix: peers[peer] for prefix, peers in measured.items()})
            yield {**run_of, **case.columns(), "peer": peer, **figures, "floor_seconds": f"{floor:.3e}"}
        bar.close()
        print(said(case, measured, floor), flush=True)
    for threads, case, seconds in scaling(device, clocks, bar.step):
        figures = columns_of({prefix: UNKNOWN._replace(seconds=value) for prefix, value in seconds.items()})
        figures["floor_seconds"] = f"{case.floor_bytes(device) / bandwidth:.3e}"
        yield {**run_of, "threads": threads, **case.columns(), "peer": "scaling", **figures}
        bar.close()
        print(f"{case.rows * case.cols:9} tokens, {threads} threads: {seconds[''] * 1e6:10.1f} us", flush=True)


def compare(old: Path, new: Path) -> int:
    """Prints the cases whose advantage over a peer shrank by more than a tenth; their number."""
    key = ("rows", "cols", "dtype", "masked", "mask", "ratio_mode", "pass", "peer")
    before, after = (
        {tuple(row.get(k, "scattered") for k in key): float(row["peer_over_ours"])  # files of old have no "mask"
            for row in csv.DictReader(path.open()) if row["peer_over_ours"]}
        for path in (old, new)
    )
    slower = {
        case: (before[case], after[case])
        for case in before.keys() & after.keys()
        if before[case] > REGRESSION * after[case]
    }
    for case, (was, now) in sorted(slower.items()):
        print(f"{' '.join(case)}: {was:.2f} -> {now:.2f}")
    print(f"{len(slower)} of {len(before.keys() & after.keys())} figures are worse by more than {REGRESSION - 1:.0%}")
    return len(slower)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, help="the CSV; the plot goes beside it")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD.csv", "NEW.csv"))
    arguments = parser.parse_args()
    if arguments.compare:
        return 1 if compare(*arguments.compare) else 0
    require(arguments.device, "loss.py")
    rows = []
    try:
        rows.extend(run(arguments.device))
    finally:  # stopped before its end, it still leaves what it has
        if rows:
            save("loss", rows, plot, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
