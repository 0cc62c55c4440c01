"""Time of the loss beside its peers: `make bench`, or ``python benchmarks/loss.py [--device cuda] [--out FILE.csv]``.

Every figure is a ratio of paired runs: in one process, one run of each candidate after the other, many times over; the median of the
ratios and their quartiles. The peers are the published formula in eager torch (``peers.py``), that under torch.compile (MASPO), and
the same loss of other libraries where these are installed (``libraries.py``). Then our time against tokens and threads
(``scaling.py``). ``--compare OLD.csv NEW.csv`` tells what became slower.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from pathlib import Path

import torch
from bandwidth import triad_bandwidth
from cases import Case, cases, make_batch
from libraries import library_functions
from loss_plots import plot
from peers import EAGER
from report import Bar, about_this_run, require, save
from scaling import LARGEST, scaling
from timing import Clock, median_seconds, ratios, timed_rounds

import maspo_ext

SECONDS = {"cpu": 1.0, "cuda": 0.25}  # spent on one case
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
    if mode == "maspo":
        made["torch.compile"] = whole(compiled)
    for name, functions in libraries.items():
        if mode in functions:
            made[name] = whole(functions[mode])
    return made


def measure(candidates: dict, clock: Clock, budget: float) -> dict[str, tuple[float, float, float, float]]:
    """By name: median seconds; median, first and third quartile of its time over ours."""
    for function in candidates.values():
        function(), function()
    rounds = timed_rounds(candidates, clock, seconds=budget, least=LEAST, most=MOST)
    result = {}
    for name in candidates:
        low, middle, high = statistics.quantiles(ratios(rounds, name, "maspo_ext"), n=4)
        result[name] = (median_seconds(rounds, name), middle, low, high)
    return result


def said(case: Case, measured: dict, floor: float) -> str:
    """The line of a case."""
    ours = measured["maspo_ext"][0]
    columns = case.columns()
    what = f"{case.rows}x{case.cols} {columns['dtype']} {case.masked:.0%} {columns['mask']} {case.mode} {columns['pass']}"
    others = "  ".join(f"{peer} {measured[peer][1]:.2f}" for peer in measured if peer != "maspo_ext")
    return f"{what:61} {ours * 1e6:10.1f} us ({floor / ours:4.0%} of the bandwidth)  {others}"


def run(device: str) -> list[dict]:
    """All cases, printed as they come."""
    clock, libraries, run_of = Clock(device), library_functions(), about_this_run(device)
    bandwidth = triad_bandwidth(device, clock)
    rows_of_csv, todo = [], cases(device)
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
        compiled = torch.compile(EAGER["maspo"])
        measured = measure(candidates_of(case, batch, libraries, compiled), clock, SECONDS[device])
        for peer, (seconds, ratio, low, high) in measured.items():
            figures = {
                "seconds": f"{seconds:.3e}",
                "peer_over_ours": f"{ratio:.3f}",
                "quartile_1": f"{low:.3f}",
                "quartile_3": f"{high:.3f}",
                "floor_seconds": f"{floor:.3e}",
            }
            rows_of_csv.append({**run_of, **case.columns(), "peer": peer, **figures})
        bar.close()
        print(said(case, measured, floor), flush=True)
    nothing = {"peer_over_ours": "", "quartile_1": "", "quartile_3": ""}
    for threads, case, seconds in scaling(device, clock, bar.step):
        figures = {"seconds": f"{seconds:.3e}", **nothing, "floor_seconds": f"{case.floor_bytes(device) / bandwidth:.3e}"}
        rows_of_csv.append({**run_of, "threads": threads, **case.columns(), "peer": "scaling", **figures})
        bar.close()
        print(f"{case.rows * case.cols:9} tokens, {threads} threads: {seconds * 1e6:10.1f} us", flush=True)
    return rows_of_csv


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
    save("loss", run(arguments.device), plot, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
