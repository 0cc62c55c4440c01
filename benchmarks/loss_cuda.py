"""Time of the loss on a GPU, forward and backward, beside eager torch, torch.compile and the floor of its bytes.

``python benchmarks/loss_cuda.py RESULT.json``: every figure is the median of interleaved runs in one process; between runs a
buffer larger than the L2 cache is written. The floor is the bytes that have to move over the bandwidth of a copy, measured here.
"""

from __future__ import annotations

import json
import statistics
import sys

import torch
from peers import eager_maspo

import maspo_ext

SHAPES = [(8, 512), (64, 1024), (64, 4096), (256, 8192), (16384, 4096)]
REPEATS = 30


def timed(function, flush) -> float:
    flush.zero_()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def copy_bandwidth(flush) -> float:
    """Bytes per second of a copy of 1 GiB, read and written."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), flush) for _ in range(20)]
    return 2 * source.numel() * 4 / statistics.median(seconds)


def make_batch(rows, cols, dtype, masked):
    old = -3 * torch.rand(rows, cols, device="cuda")
    batch = [
        (old + 0.3 * torch.randn_like(old)).to(dtype),
        old.to(dtype),
        torch.randn(rows, cols, device="cuda").to(dtype),
    ]
    batch[0].requires_grad_()
    return [*batch, torch.rand(rows, cols, device="cuda") >= masked]


def floor_bytes(rows, cols, dtype) -> int:
    """Forward: three inputs and a mask byte read, the saved gradient (float32) written; backward: it read, the result written."""
    size = torch.finfo(dtype).bits // 8
    return rows * cols * (3 * size + 1 + 4 + 4 + size)


def measure(rows, cols, dtype, masked, compiled, flush, bandwidth) -> dict:
    batch = make_batch(rows, cols, dtype, masked)

    def backward(loss):
        torch.autograd.grad(loss, batch[0])

    candidates = {
        **{
            f"maspo_ext {mode}": (lambda mode=mode: backward(maspo_ext.policy_loss(*batch, ratio_mode=mode).loss))
            for mode in maspo_ext.RATIO_MODES
            if mode != "entropy_adv"
        },
        "eager torch": lambda: backward(eager_maspo(*batch)[0]),
        "torch.compile": lambda: backward(compiled(*batch)[0]),
    }
    for function in candidates.values():
        for _ in range(3):
            function()
    seconds = {name: [] for name in candidates}
    for _ in range(REPEATS):
        for name, function in candidates.items():
            seconds[name].append(timed(function, flush))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    floor = floor_bytes(rows, cols, dtype) / bandwidth
    ours = medians["maspo_ext maspo"]
    return {
        "rows": rows, "cols": cols, "dtype": str(dtype).removeprefix("torch."), "masked": masked, "seconds": medians, "floor_seconds": floor,
        "share_of_floor": floor / ours, "eager_over_ours": medians["eager torch"] / ours, "compile_over_ours": medians["torch.compile"] / ours,
    }  # fmt: skip


def main(path: str) -> None:
    flush = torch.empty(2**27, device="cuda")  # 512 MiB
    bandwidth = copy_bandwidth(flush)
    compiled = torch.compile(eager_maspo, dynamic=True)
    cases = []
    for rows, cols in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            cases.append(measure(rows, cols, dtype, 0.2, compiled, flush, bandwidth))
            case = cases[-1]
            print(
                f"{rows:6} x {cols:5} {case['dtype']:9} {case['seconds']['maspo_ext maspo'] * 1e6:9.1f} us  {case['share_of_floor']:5.2f} of the floor  "
                f"eager {case['eager_over_ours']:6.1f}x  compile {case['compile_over_ours']:5.1f}x", flush=True,
            )  # fmt: skip
    properties = torch.cuda.get_device_properties(0)
    result = {"gpu": properties.name, "torch": torch.__version__, "copy_bytes_per_second": bandwidth, "cases": cases}
    with open(path, "w") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
