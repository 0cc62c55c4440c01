"""What a pass allocates: one chunk of logits within its budget, and nothing of the size of the whole logits."""

import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import maspo_ext
from maspo_ext.logits.head import DEFAULT_BUDGET

from ..op.cases import random_batch
from .cases import HEAD, leaves, random_head, random_rows

TOKENS, WIDTH, WORDS = 2048, 32, 4096
LOGITS = TOKENS * WORDS
ops = torch.ops.maspo
KINDS = [torch.float32, torch.bfloat16]


def make_workspaces():
    """Of cuBLAS, which are torch's memory for the rest of the process: one for this thread, one for autograd's."""
    with torch.enable_grad():
        a = torch.ones(16, 16, device="cuda", requires_grad=True)
        (a @ a).sum().backward()


def memory_events(function, device):
    """Bytes of every allocation, and those of every release as a negative number, in their order."""
    if device == "cuda":
        make_workspaces()
        torch.cuda.empty_cache()  # a free block that is up to 1 MiB too large is taken as a whole
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def allocations(function, device, at_least):
    """Bytes of every allocation of at least so many, the largest first."""
    return sorted((size for size in memory_events(function, device) if size >= at_least), reverse=True)


def passes(op, device, dtype, memory_budget):
    """Forward and backward of an op from hidden states, as a function; its results are kept."""
    arguments = leaves(random_head((8, TOKENS // 8), WIDTH, WORDS, dtype, device))
    if op == "linear_loss":
        policy = random_batch(8, TOKENS // 8, torch.float32, device, weights=False)
        arguments |= {name: policy[name] for name in ("old_log_prob", "advantages", "response_mask")}
    kept = []

    def both():
        result = getattr(maspo_ext, op)(**arguments, memory_budget=memory_budget)[0].sum()
        wanted = [arguments[name] for name in HEAD if name in arguments]
        kept.extend(torch.autograd.grad(result, wanted))

    return both


@pytest.mark.parametrize("memory_budget", [2**20, 2**22])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("op", ["linear_logprob", "linear_loss"])
def test_logits_stay_within_the_budget(op, dtype, memory_budget, device):
    """Nothing is larger but, for a smaller budget, what has the least chunk of words; and there is never more than one."""
    events = memory_events(passes(op, device, dtype, memory_budget), device)
    least = 4 * TOKENS * 256 if op == "linear_logprob" else 0
    in_all = op == "linear_loss" and device == "cuda" and dtype == torch.bfloat16  # nothing is held beside that
    if in_all:  # kept beside the logits of a tile
        least = 2 * TOKENS * 256 + 2 * memory_budget // 3
    chunk = max(memory_budget, least)
    assert memory_budget / 2 <= max(events) <= chunk <= LOGITS / 2
    operands = 4 * (TOKENS + WORDS) * WIDTH  # hidden states and weight as float32, or their gradients
    assert (max(events) if in_all else chunk) < max(itertools.accumulate(events)) <= chunk + (1 if in_all else 3) * operands


@pytest.mark.parametrize("op", ["linear_logprob", "linear_loss"])
def test_without_a_gradient(op, device):
    with torch.no_grad():
        arguments = random_head((TOKENS,), WIDTH, WORDS, device=device)
        if op == "linear_loss":
            arguments |= {
                name: torch.ones(TOKENS, device=device) for name in ("old_log_prob", "advantages", "response_mask")
            }
            arguments |= {"cu_seqlens": torch.tensor([0, TOKENS], device=device), "max_seqlen": TOKENS}
        function = getattr(maspo_ext, op)
        sizes = allocations(lambda: function(**arguments, memory_budget=2**20), device, 2**16)
    assert sizes[0] <= 2**20 and all(size == sizes[0] for size in sizes if size > 2**17)


def test_default_budget(device):
    """More logits than it allows at once, for a gradient of the hidden states alone."""
    budget = DEFAULT_BUDGET[device]
    words = budget // 4 // 512
    head = random_head((1025,), 2, words, device=device)
    head["hidden"].requires_grad_()
    policy = {name: torch.ones(1025, device=device) for name in ("old_log_prob", "advantages", "response_mask")}
    packed = {"cu_seqlens": torch.tensor([0, 1025], device=device), "max_seqlen": 1025}
    sizes = allocations(lambda: maspo_ext.linear_loss(**head, **policy, **packed), device, budget // 8)
    assert len(sizes) == 1 and budget / 2 < sizes[0] <= budget


@pytest.mark.parametrize("memory_budget", [2**20, 2**21])
def test_logits_lie_in_the_gradient_of_the_weight(memory_budget, device):
    """Where there are no more tokens than a hidden state has numbers: nothing of their size is allocated but a block."""
    tokens = width = 256
    arguments = leaves(random_head((8, tokens // 8), width, WORDS, device=device))
    policy = random_batch(8, tokens // 8, torch.float32, device, weights=False)
    arguments |= {name: policy[name] for name in ("old_log_prob", "advantages", "response_mask")}
    kept = []

    def forward():
        kept.append(maspo_ext.linear_loss(**arguments, memory_budget=memory_budget))

    of_weight, of_hidden = 4 * WORDS * width, 4 * tokens * width
    events = memory_events(forward, device)
    assert max(events) == of_weight and events.count(of_weight) == 1
    # The operand and the gradient of the hidden states beside it, and the block.
    assert max(itertools.accumulate(events)) <= of_weight + 2 * of_hidden + memory_budget + 2**18


@pytest.mark.parametrize("inplace_backward", [False, True])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_logprob_makes_nothing_but_the_gradient(dtype, inplace_backward, device):
    logits, target = random_rows(128, WORDS, dtype, device)
    made = logits.requires_grad_() * 1
    kept = []

    def both():
        results = maspo_ext.logprob(made, target, inplace_backward=inplace_backward)
        kept.extend(torch.autograd.grad(results, made, [torch.ones_like(result) for result in results]))

    size = 128 * WORDS * dtype.itemsize
    assert allocations(both, device, size // 16) == [size] * (not inplace_backward)


def test_the_measure_sees_the_logits(device):
    head = random_head((TOKENS,), WIDTH, WORDS, device=device)
    kept = []
    sizes = allocations(lambda: kept.append(head["hidden"] @ head["weight"].T), device, 4 * LOGITS)
    assert sizes == [4 * LOGITS]
