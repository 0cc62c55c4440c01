"""Time of the loss' kernels on a GPU beside the least that it can be: ``python benchmarks/kernels.py [--out FILE.csv]``.

Of the GPU alone, caches cold (``timing.GpuClock``), and of the ops below ``policy_loss``: no autograd. The floor is the bytes that have to
move over the bandwidth of a copy and over that of a triad, both measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from bandwidth import copy_bandwidth, triad_bandwidth
from cases import Case, make_batch
from kernel_plots import plot
from report import about_this_run, require, save
from timing import GpuClock

from maspo_ext.config import config_class_of
from maspo_ext.ops import forward_pass, prepared

RUNS = 15
LARGE, SHORT_ROWS, MIDDLE, SMALL = (16384, 4096), (131072, 512), (64, 4096), (8, 512)


class Kernel(NamedTuple):
    shape: tuple[int, int]
    mode: str = "maspo"
    dtype: torch.dtype = torch.float32
    mask: torch.dtype = torch.bool
    counts_given: bool = False  # the tokens of the batch, as verl gives them: then forward makes the whole gradient

    def columns(self) -> dict:
        return {
            "rows": self.shape[0], "cols": self.shape[1], "ratio_mode": self.mode, "dtype": _name(self.dtype),
            "mask": _name(self.mask), "counts": "given" if self.counts_given else "of the batch",
        }  # fmt: skip

    def forward_bytes(self) -> int:
        """Of a token: three inputs, the mask, and the float32 gradient."""
        return 3 * self.dtype.itemsize + self.mask.itemsize + 4

    def backward_bytes(self) -> int:
        """Of a token: that gradient read, and the result written. None where it is the result already."""
        return 0 if self.counts_given and self.dtype == torch.float32 else 4 + self.dtype.itemsize


KERNELS = [
    *(Kernel(LARGE, mode) for mode in ("ppo", "dac", "sapo", "maspo")),
    Kernel(LARGE, counts_given=True),
    Kernel(LARGE, mask=torch.int64),
    Kernel(LARGE, dtype=torch.bfloat16),
    Kernel(SHORT_ROWS),
    *(Kernel(shape, mode) for shape in (MIDDLE, SMALL) for mode in ("ppo", "maspo")),
    Kernel(MIDDLE, counts_given=True),
]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def passes(kernel: Kernel) -> dict[str, Callable]:
    """By name, what launches it once: of a batch without padding."""
    batch = make_batch(Case(*kernel.shape, kernel.dtype, masked=0), "cuda")
    log_prob = batch["log_prob"].detach()
    policy = batch["old_log_prob"], batch["advantages"], torch.ones_like(log_prob, dtype=kernel.mask)
    counts = {"batch_num_tokens": log_prob.numel()} if kernel.counts_given else {}
    tensors, keywords = prepared(config_class_of(kernel.mode)(), kernel.mode, log_prob, *policy, **counts)
    loss, _, dlogp, scales = forward_pass(log_prob, tensors, keywords, need_grad=True)
    grad_loss = torch.ones_like(loss)
    in_place = dlogp.dtype == log_prob.dtype
    grad = dlogp if in_place else torch.empty_like(log_prob)
    return {
        "forward": lambda: forward_pass(log_prob, tensors, keywords, need_grad=True),
        "backward": lambda: torch.ops.maspo.loss_backward_out(grad_loss, dlogp, scales, grad=grad),
    }


def run() -> Iterator[dict]:
    """The rows of all kernels, printed as they come."""
    clock, about = GpuClock(), about_this_run("cuda")
    copy, triad = copy_bandwidth("cuda", clock), triad_bandwidth("cuda", clock)
    print(f"{about['machine']}: a copy moves {copy / 1e9:.0f} GB/s, a triad {triad / 1e9:.0f}", flush=True)
    for kernel in KERNELS:
        tokens = kernel.shape[0] * kernel.shape[1]
        of_token = {"forward": kernel.forward_bytes(), "backward": kernel.backward_bytes()}
        seconds = {}
        for name, function in passes(kernel).items():
            function()
            seconds[name] = statistics.median(clock(function) for _ in range(RUNS))
        of_token["both"], seconds["both"] = sum(of_token.values()), sum(seconds.values())
        for name, time in seconds.items():
            least = {of: tokens * of_token[name] / bandwidth for of, bandwidth in (("copy", copy), ("triad", triad))}
            yield {
                **about, **kernel.columns(), "pass": name, "bytes_of_token": of_token[name], "seconds": f"{time:.4e}",
                **{f"floor_{of}": f"{value:.4e}" for of, value in least.items()},
            }  # fmt: skip
            shares = ", ".join(f"{value / time:.0%} of a {of}'s" for of, value in least.items())
            what = " ".join(map(str, kernel.columns().values()))
            print(f"{what:55} {name:8} {time * 1e6:8.1f} us  bandwidth: {shares}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the CSV; the plot goes beside it")
    arguments = parser.parse_args()
    require("cuda", "kernels.py")
    save("kernels", list(run()), plot, arguments.out)


if __name__ == "__main__":
    main()
