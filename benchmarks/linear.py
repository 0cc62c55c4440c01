"""Time and memory from hidden states to the policy loss: ``python benchmarks/linear.py [--device cuda] [--out FILE.csv]``.

Forward and backward of every peer (``linear_peers.py``), beside the three matrix products that nobody can do without:
the logits, and from their gradient those of the hidden states and of the weight. Times are ratios of paired runs, as in
``loss.py``; the memory is what a peer holds at a time beyond its inputs and the two gradients (``memory.py``).
Times are of the wall clock, on a GPU, too: a call takes it tens of milliseconds, beside which launching is nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import memory
import torch
from extras import LIGER
from linear_peers import PEERS, Batch, Peer, make_batch
from linear_plots import FLOOR, GOALS, OURS, OURS_BEGINS, plot, sizes
from report import Bar, about_this_run, require, save, title
from timing import Clock, Round, median_seconds, ratios, timed_rounds

# Rows, columns, hidden size, vocabulary, dtype: Qwen2.5's 0.5B and 7B.
CASES = {"cpu": (4, 128, 896, 151936, torch.float32), "cuda": (8, 1024, 3584, 152064, torch.bfloat16)}
QUICK = (2, 8, 32, 1000)
THREADS = 2  # of the CPU's case
ROUNDS = {"cpu": 7, "cuda": 20}  # on a CPU one takes half a minute
MIB = 2**20
NEED_CUDA = ("verl triton", "linear_loss (1 GiB)")  # the latter: 1 GiB would be no limit for a CPU's case
REMEDIES = {"Liger (grpo)": LIGER.remedy()}


def names_on(device: str) -> list[str]:
    return [FLOOR, *(name for name in PEERS if device == "cuda" or name not in NEED_CUDA)]


def make_case(device: str, quick: bool) -> Batch:
    *sizes, dtype = CASES[device]
    torch.manual_seed(0)
    return make_batch(*(QUICK if quick else sizes), dtype, device)


def three_gemms(logits: torch.Tensor) -> Callable:
    """The logits go into memory held ready, as nobody needs to keep them; the gradients are new ones, as every peer's are."""

    def call(batch: Batch):
        hidden, weight = batch.hidden.detach().flatten(0, 1), batch.weight.detach()
        of_batch = logits[: len(hidden)]
        torch.mm(hidden, weight.t(), out=of_batch)
        return of_batch @ weight, of_batch.t() @ hidden

    return call


def gradients(peer: Peer) -> Callable:
    return lambda batch: torch.autograd.grad(peer(batch), (batch.hidden, batch.weight))


def call_of(name: str, batch: Batch) -> Callable:
    """What a peer does with a batch, this one at most; ImportError where something is not installed."""
    if name == FLOOR:
        return three_gemms(batch.weight.detach().new_zeros(batch.target.numel(), len(batch.weight)))
    return gradients(PEERS[name]())


def batch_to_warm_up(name: str, batch: Batch) -> Batch:
    """One row is enough to start threads; whatever compiles, tunes, or keeps memory for the next call needs the whole."""
    return batch if batch.weight.is_cuda or name == "torch.compile" else batch.first_row()


def memory_of(name: str, call: Callable, batch: Batch) -> memory.Memory:
    first = batch_to_warm_up(name, batch)
    return memory.measure(lambda: call(first), lambda: call(batch), batch.weight.device.type)


def warmed_up(name: str, batch: Batch, quick: bool) -> tuple[Callable, memory.Memory]:
    call = call_of(name, batch)
    if batch.weight.is_cuda:
        return call, memory_of(name, call, batch)
    call(batch_to_warm_up(name, batch))
    return call, memory.in_fresh_process([__file__, "--memory-of", name, *(["--quick"] if quick else [])])


def run(device: str, quick: bool) -> list[dict]:
    batch = make_case(device, quick)
    run_of, clock, names = about_this_run(device), Clock(device), names_on(device)
    bar = Bar((1 + ROUNDS[device]) * len(names))
    calls, memories = {}, {}
    for name in names:
        bar.step(f"warm-up, memory: {name}")
        try:
            calls[name], memories[name] = warmed_up(name, batch, quick)
        except Exception as error:  # of any kind: a peer that cannot run here is no reason to have no figures
            if name not in PEERS or name.startswith(OURS_BEGINS):
                raise
            bar.close()
            print(f"left out: {name}: {error or type(error).__name__}. {REMEDIES.get(name, '')}", flush=True)
    rounds = timed_rounds(
        {name: partial(call, batch) for name, call in calls.items()},
        clock,
        seconds=0,
        least=ROUNDS[device],
        most=ROUNDS[device],
        before=lambda name: bar.step(f"time: {name}"),
    )
    bar.close()
    rows, cols, hidden_size = batch.hidden.shape
    case = {
        "tokens": rows * cols,
        "hidden": hidden_size,
        "vocabulary": len(batch.weight),
        "dtype": str(batch.weight.dtype).removeprefix("torch."),
    }
    return [run_of | case | {"peer": name} | figures(name, rounds, memories[name]) for name in calls]


def figures(name: str, rounds: list[Round], of_memory: memory.Memory) -> dict[str, str]:
    over_floor = ratios(rounds, name, FLOOR)
    return {
        "seconds": f"{median_seconds(rounds, name):.3e}",
        "over_three_gemms": f"{statistics.median(over_floor):.3f}",
        "least": f"{min(over_floor):.3f}",
        "most": f"{max(over_floor):.3f}",
        "over_ours": f"{statistics.median(ratios(rounds, name, OURS)):.3f}",
        "peak_mib": f"{of_memory.peak / MIB:.1f}",
        "kept_mib": f"{of_memory.kept / MIB:.1f}",
    }


def print_table(rows: list[dict], device: str) -> None:
    first = rows[0]
    print(f"{title(first)}\n{sizes(first)}: time, over {FLOOR} (least - most), over {OURS}; peak memory")
    for row in rows:
        over_floor = f"{row['over_three_gemms']} ({row['least']} - {row['most']})"
        print(
            f"{row['peer']:20}{float(row['seconds']):9.4f} s  {over_floor:24}{row['over_ours']:>8}{row['peak_mib']:>9} MiB"
        )
    ours = next(row for row in rows if row["peer"] == OURS)
    time_goal, memory_goal = GOALS[device]
    print(
        f"goals of {OURS}: {against_goal(ours['over_three_gemms'], time_goal, 'times three GEMMs')}, "
        f"{against_goal(ours['peak_mib'], memory_goal, 'MiB')}"
    )


def against_goal(figure: str, goal: float, what: str) -> str:
    return f"{figure} {what} (at most {goal}: {'reached' if float(figure) <= goal else 'not reached'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, help="the CSV; the plot goes beside it")
    parser.add_argument("--quick", action="store_true", help="a small case, to try the peers: its figures mean nothing")
    parser.add_argument(
        "--memory-of", metavar="PEER", choices=[FLOOR, *PEERS], help="print its peak and kept bytes on this CPU"
    )
    arguments = parser.parse_args()
    require(arguments.device, "linear.py")
    if arguments.device == "cpu":
        torch.set_num_threads(THREADS)
    if arguments.memory_of:
        batch = make_case("cpu", arguments.quick)
        memory.tell(memory_of(arguments.memory_of, call_of(arguments.memory_of, batch), batch))
        return
    rows = run(arguments.device, arguments.quick)
    print_table(rows, arguments.device)
    save("linear-quick" if arguments.quick else "linear", rows, plot, arguments.out)


if __name__ == "__main__":
    main()
