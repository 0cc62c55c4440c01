"""Time of the loss beside its peers: `make bench`, or ``python benchmarks/loss.py [--device cuda] [--out FILE.csv]``.

Every figure is a ratio of paired runs: in one process, one run of each candidate after the other, many times over; the median of the
ratios and their quartiles. The peers are the published formula in eager torch (``peers.py``), that under torch.compile (MASPO), and
verl's own functions where verl is installed (PPO's clip, SAPO). ``--compare OLD.csv NEW.csv`` tells what became slower.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import statistics
import sys
from pathlib import Path

import torch
from peers import EAGER
from report import about_this_run, require, save, title
from timing import Clock, median_seconds, ratios, timed_rounds

import maspo_ext

SHAPES = {
    "cpu": [(1, 1), (8, 512), (64, 1024), (64, 4096), (256, 8192)],
    "cuda": [(8, 512), (64, 1024), (64, 4096), (256, 8192), (16384, 4096)],
}
SECONDS = {"cpu": 3.0, "cuda": 0.5}  # spent on one case
LEAST, MOST = 5, 200  # rounds of it
COPIED = {"cpu": 2**26, "cuda": 2**28}  # floats of the copy that measures the bandwidth
REGRESSION = 1.1


def copy_bandwidth(device: str, clock: Clock) -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.ones(COPIED[device], device=device)
    target = torch.ones_like(source)
    seconds = [clock(lambda: target.copy_(source)) for _ in range(10)]
    return 2 * 4 * source.numel() / statistics.median(seconds)


def floor_bytes(rows: int, cols: int, dtype: torch.dtype, with_backward: bool) -> int:
    """What has to move: three inputs and a mask byte read; the saved gradient (float32) written and read, the result written."""
    size = torch.finfo(dtype).bits // 8
    return rows * cols * (3 * size + 1 + (4 + 4 + size if with_backward else 0))


def make_batch(rows: int, cols: int, dtype: torch.dtype, masked: float, device: str) -> dict[str, torch.Tensor]:
    old = -3 * torch.rand(rows, cols, device=device)
    values = {
        "log_prob": old + 0.3 * torch.randn_like(old),
        "old_log_prob": old,
        "advantages": torch.randn(rows, 1, device=device).expand(rows, cols).contiguous(),
        "entropy": torch.rand_like(old),
    }
    batch = {name: value.to(dtype) for name, value in values.items()}
    batch["log_prob"].requires_grad_()
    batch["response_mask"] = torch.rand(rows, cols, device=device) >= masked
    batch["response_mask"][0, 0] = True
    return batch


def verl_functions() -> dict:
    """verl's own losses by our ratio_mode, taking the same tensors; none where verl is not installed."""
    if importlib.util.find_spec("verl") is None:
        return {}
    import verl  # noqa: F401  loads its plugins
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig

    config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1)
    names = {"ppo": "vanilla", "sapo": "sapo"}
    functions = {mode: core_algos.get_policy_loss_fn(name) for mode, name in names.items()}
    return {
        mode: lambda function=function, **batch: function(config=config, loss_agg_mode="token-mean", **batch)
        for mode, function in functions.items()
    }


def candidates_of(mode: str, batch: dict, with_backward: bool, verl: dict, compiled) -> dict:
    """By name, what does the forward pass, and the backward pass if asked; ours first."""
    tensors = {name: value for name, value in batch.items() if name != "entropy" or mode == "entropy_adv"}

    def whole(function):
        def call():
            if with_backward:
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
    if mode in verl:
        made["verl"] = whole(verl[mode])
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


def cases(device: str):
    """(rows, cols, dtype, masked share, mode, with backward): all modes where it matters, MASPO everywhere."""
    for rows, cols in SHAPES[device]:
        large = rows * cols >= 2**18
        for mode in EAGER:
            if mode == "maspo" or (rows, cols) == (64, 4096):
                yield rows, cols, torch.float32, 0.2, mode, True
        if large:
            yield rows, cols, torch.float32, 0.2, "maspo", False
            yield rows, cols, torch.float32, 0.9, "maspo", True
            yield rows, cols, torch.bfloat16, 0.2, "maspo", True


def run(device: str) -> list[dict]:
    """All cases, printed as they come."""
    clock, verl, run_of = Clock(device), verl_functions(), about_this_run(device)
    bandwidth = copy_bandwidth(device, clock)
    rows_of_csv, todo = [], list(cases(device))
    print(
        f"{run_of['machine']}, {run_of['threads']} threads, torch {run_of['torch']}, a copy moves {bandwidth / 1e9:.1f} GB/s; "
        "times of the peers over ours", flush=True,
    )  # fmt: skip
    for number, (rows, cols, dtype, masked, mode, with_backward) in enumerate(todo, 1):
        batch = make_batch(rows, cols, dtype, masked, device)
        floor = floor_bytes(rows, cols, dtype, with_backward) / bandwidth
        torch._dynamo.reset()  # one shape and dtype at a time: none runs into the limit of recompilations
        compiled = torch.compile(EAGER["maspo"])
        measured = measure(candidates_of(mode, batch, with_backward, verl, compiled), clock, SECONDS[device])
        case = {
            "rows": rows, "cols": cols, "dtype": str(dtype).removeprefix("torch."), "masked": masked, "ratio_mode": mode,
            "pass": "forward+backward" if with_backward else "forward",
        }  # fmt: skip
        for peer, (seconds, ratio, low, high) in measured.items():
            figures = {
                "seconds": f"{seconds:.3e}",
                "peer_over_ours": f"{ratio:.3f}",
                "quartile_1": f"{low:.3f}",
                "quartile_3": f"{high:.3f}",
                "floor_seconds": f"{floor:.3e}",
            }
            rows_of_csv.append({**run_of, **case, "peer": peer, **figures})
        ratios = "  ".join(f"{peer} {measured[peer][1]:.2f}" for peer in measured if peer != "maspo_ext")
        what = f"{rows}x{cols} {case['dtype']} {masked:.0%} masked {mode} {case['pass']}"
        ours = measured["maspo_ext"][0]
        print(
            f"[{number:2}/{len(todo)}] {what:58} {ours * 1e6:10.1f} us ({floor / ours:4.0%} of the bandwidth)  {ratios}",
            flush=True,
        )
    return rows_of_csv


def plot(rows: list[dict], path: Path) -> None:
    """The peers' time over ours: MASPO by size, and every mode at 64x4096."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [
        row for row in rows if row["dtype"] == "float32" and row["masked"] == 0.2 and row["pass"] == "forward+backward"
    ]
    figure, (by_size, by_mode) = plt.subplots(1, 2, figsize=(13, 5))
    for peer in ("eager", "torch.compile"):
        chosen = [row for row in shown if row["ratio_mode"] == "maspo" and row["peer"] == peer]
        by_size.plot(
            [f"{row['rows']}x{row['cols']}" for row in chosen],
            [float(row["peer_over_ours"]) for row in chosen],
            "o-",
            label=peer,
        )
    by_size.set(title="maspo, forward + backward, float32", ylabel="time of the peer / ours", xlabel="batch")
    at_one_size = [row for row in shown if (row["rows"], row["cols"]) == (64, 4096)]
    for peer, marker in (("eager", "o"), ("verl", "s"), ("torch.compile", "^")):
        chosen = [row for row in at_one_size if row["peer"] == peer]
        by_mode.plot(
            [row["ratio_mode"] for row in chosen], [float(row["peer_over_ours"]) for row in chosen], marker, label=peer
        )
    by_mode.set(title="64x4096, every mode")
    for axes in (by_size, by_mode):
        axes.set_ylim(bottom=0)
        axes.legend()
        axes.grid(alpha=0.3)
    figure.suptitle(title(rows[0]))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def compare(old: Path, new: Path) -> int:
    """Prints the cases whose advantage over a peer shrank by more than a tenth; their number."""
    key = ("rows", "cols", "dtype", "masked", "ratio_mode", "pass", "peer")
    before, after = (
        {tuple(row[k] for k in key): float(row["peer_over_ours"]) for row in csv.DictReader(path.open())}
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
