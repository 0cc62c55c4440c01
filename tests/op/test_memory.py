"""What a pass allocates: one gradient, and nothing else of the batch's size. It is made in memory that only the graph kept."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from .cases import bits, op, random_batch

ROWS, COLS = 128, 1024


def large_allocations(function, device):
    """Bytes of every allocation of at least half of one byte per token, as the allocator saw them."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, profile_memory=True) as profiler:
        function()
    events = (event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    return sorted(size for size in events if size >= ROWS * COLS // 2)


# Bytes of a token. The saved gradient is float32, or float64 for float64, and becomes the result where that has its dtype.
@pytest.mark.parametrize("dtype, sizes", [(torch.float32, [4]), (torch.bfloat16, [2, 4]), (torch.float64, [8])], ids=str)
@pytest.mark.parametrize("upstream", [1.0, 0.5])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64], ids=str)
def test_forward_and_backward(mask_dtype, upstream, dtype, sizes, device):
    batch = random_batch(ROWS, COLS, dtype=dtype, device=device, mask_dtype=mask_dtype)
    batch["advantages"] = batch["advantages"][:, 0].clone()
    batch["log_prob"] = batch["log_prob"].t().contiguous().t()  # no hidden .contiguous() either
    log_prob = batch["log_prob"].requires_grad_()
    kept = []

    def both():
        loss, _ = op(**batch)
        kept.extend(torch.autograd.grad(loss, log_prob, torch.full_like(loss, upstream)))

    assert large_allocations(both, device) == [size * ROWS * COLS for size in sizes]


@pytest.mark.parametrize("upstream", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gradient_is_the_caller_s_while_the_graph_is_kept(dtype, upstream, device):
    batch = random_batch(3, 5, dtype=dtype, device=device)
    log_prob = batch["log_prob"].requires_grad_()
    loss, _ = op(**batch)
    upstream = torch.full_like(loss, upstream)
    (first,) = torch.autograd.grad(loss, log_prob, upstream, retain_graph=True)
    expected = bits(first).clone()
    first.fill_(7)
    (second,) = torch.autograd.grad(loss, log_prob, upstream)
    assert torch.equal(bits(second), expected)
    assert (first == 7).all()


def test_backward_passes_add_up(device):
    batch = random_batch(3, 5, dtype=torch.float32, device=device)
    log_prob = batch["log_prob"].requires_grad_()
    for retain_graph in (True, False):
        log_prob.grad = None
        loss, _ = op(**batch)
        loss.backward(retain_graph=retain_graph)
        once = log_prob.grad.clone()
        (loss if retain_graph else op(**batch)[0]).backward()
        assert torch.equal(log_prob.grad, 2 * once)
    with pytest.raises(RuntimeError, match="expected one backward pass, got a second one.*retain_graph=True"):
        loss.backward()


@pytest.mark.parametrize("dtype, sizes", [(torch.float32, [4]), (torch.bfloat16, [2, 4])], ids=str)
def test_backward_gives_the_leaf_its_gradient_without_a_copy(dtype, sizes, device):
    """Though the loss, and so its graph, is still there."""
    batch = random_batch(ROWS, COLS, dtype=dtype, device=device)
    batch["log_prob"].requires_grad_()
    kept = []

    def both():
        kept.append(op(**batch)[0])
        kept[0].backward()

    assert large_allocations(both, device) == [size * ROWS * COLS for size in sizes]
    assert kept[0].grad_fn.kept is None, "what is not needed any more is free"


def test_what_saved_tensor_hooks_give_back_is_not_written_over(device):
    """It may be read-only, or in use elsewhere. Of packed tensors, since nothing of others is saved."""
    batch = {name: value.flatten() for name, value in random_batch(3, 5, dtype=torch.float32, device=device).items()}
    batch |= {"cu_seqlens": torch.tensor([0, 5, 10, 15], device=device), "max_seqlen": 5}
    log_prob = batch["log_prob"].requires_grad_()
    upstream = torch.tensor(0.5, device=device)
    (expected,) = torch.autograd.grad(op(**batch)[0], log_prob, upstream)
    given = []

    def unpacked(tensor):
        given.append((tensor, tensor.clone()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(torch.clone, unpacked):
        loss, _ = op(**batch)
    (gradient,) = torch.autograd.grad(loss, log_prob, upstream)
    assert torch.equal(bits(gradient), bits(expected))
    assert given and all(torch.equal(tensor, before) for tensor, before in given)


def test_under_activation_checkpointing(device):
    batch = random_batch(3, 5, dtype=torch.float32, device=device)
    log_prob = batch.pop("log_prob").requires_grad_()

    def loss_of(log_prob):
        return op(log_prob * 1, **batch)[0] * 3

    (expected,) = torch.autograd.grad(loss_of(log_prob), log_prob)
    for use_reentrant in (False, True):
        loss = checkpoint(loss_of, log_prob, use_reentrant=use_reentrant)
        log_prob.grad = None
        loss.backward()
        assert torch.equal(bits(log_prob.grad), bits(expected))


def test_forward_without_a_gradient(device):
    batch = random_batch(ROWS, COLS, device=device)
    assert large_allocations(lambda: op(**batch), device) == []


def test_the_measure_sees_an_allocation(device):
    batch = random_batch(ROWS, COLS, dtype=torch.float32, device=device)
    kept = []
    assert large_allocations(lambda: kept.append(batch["log_prob"] + 1), device) == [4 * ROWS * COLS]
