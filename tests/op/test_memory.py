"""What a pass allocates: the saved gradient and the result, and nothing else of the batch's size."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from .cases import op, random_batch

ROWS, COLS = 128, 1024


def large_allocations(function, device):
    """Bytes of every allocation of at least half of one byte per token, as the allocator saw them."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, profile_memory=True) as profiler:
        function()
    events = (event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    return sorted(size for size in events if size >= ROWS * COLS // 2)


# The saved gradient is float32, or float64 for float64; the result has log_prob's dtype.
@pytest.mark.parametrize(
    "dtype, saved, result", [(torch.float32, 4, 4), (torch.bfloat16, 4, 2), (torch.float64, 8, 8)], ids=str
)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64], ids=str)
def test_forward_and_backward(mask_dtype, dtype, saved, result, device):
    batch = random_batch(ROWS, COLS, dtype=dtype, device=device, mask_dtype=mask_dtype)
    batch["advantages"] = batch["advantages"][:, 0].clone()
    batch["log_prob"] = batch["log_prob"].t().contiguous().t()  # no hidden .contiguous() either
    log_prob = batch["log_prob"].requires_grad_()
    kept = []

    def both():
        loss, _ = op(**batch)
        kept.extend(torch.autograd.grad(loss, log_prob))

    assert large_allocations(both, device) == sorted([saved * ROWS * COLS, result * ROWS * COLS])


def test_forward_without_a_gradient(device):
    batch = random_batch(ROWS, COLS, device=device)
    assert large_allocations(lambda: op(**batch), device) == []


def test_the_measure_sees_an_allocation(device):
    batch = random_batch(ROWS, COLS, dtype=torch.float32, device=device)
    kept = []
    assert large_allocations(lambda: kept.append(batch["log_prob"] + 1), device) == [4 * ROWS * COLS]
