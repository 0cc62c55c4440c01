"""Rows of logits, and hidden states with a head, on a GPU: numbers, waiting, graphs, launches. Run by `make gpu`."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import maspo_ext

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEMPERATURE = 0.7
IGNORED = -100
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)


def make_rows(dtype=torch.float32, rows=(3, 41), words=50257, seed=0):
    """Logits with banned words and a confident row, targets of which one is ignored, and a gradient for each result."""
    draw = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(*rows, words, generator=draw)
    logits[0, :, ::3] = -torch.inf
    logits[1, 0, words // 2] = 60
    target = torch.randint(words // 3, (*rows,), generator=draw) * 3 + 1
    target[-1, -1] = IGNORED
    upstream = torch.randn(2, *rows, generator=draw)
    upstream = upstream.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return [tensor.cuda() for tensor in (logits.to(dtype), target, upstream)]


def step(logits, target, upstream, inplace_backward=False):
    """Results and gradient, all on the device."""
    leaf = logits.detach().requires_grad_()
    logits = leaf.clone() if inplace_backward else leaf  # a leaf's values are not to be lost
    results = torch.ops.maspo.logprob(
        logits, target, TEMPERATURE, ignore_index=IGNORED, inplace_backward=inplace_backward
    )
    (grad,) = torch.autograd.grad(results, leaf, list(upstream))
    return *(result.detach() for result in results), grad


def truth(logits, target, upstream):
    """The same in float64, in plain torch."""
    leaf = logits.detach().double().requires_grad_()
    z = leaf / TEMPERATURE
    kept = target != IGNORED
    log_prob = z.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
    entropy = z.logsumexp(-1) - (z.softmax(-1) * z.masked_fill(z == -torch.inf, 0)).sum(-1)
    results = [torch.where(kept, result, 0) for result in (log_prob, entropy)]
    (grad,) = torch.autograd.grad(results, leaf, list(upstream.double()))
    return *(result.detach() for result in results), grad


def assert_close(actual, expected):
    *results, grad = actual
    double = grad.dtype == torch.float64
    for a, e in zip(results, expected, strict=False):
        torch.testing.assert_close(a.double(), e, rtol=1e-12 if double else 1e-5, atol=1e-12 if double else 1e-5)
    # Rounded once to the gradient's dtype.
    rtol = 1e-10 if double else max(1e-5, torch.finfo(grad.dtype).eps)
    torch.testing.assert_close(grad.double(), expected[-1], rtol=rtol, atol=1e-12 if double else 1e-6)


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@every_dtype
@pytest.mark.parametrize("words", [7, 32000, 50257])
def test_numbers(dtype, words):
    rows = make_rows(dtype, words=words)
    assert_close(step(*rows), truth(*rows))


@every_dtype
def test_the_gradient_takes_the_place_of_the_logits(dtype):
    rows = make_rows(dtype)
    assert_same(step(*rows, inplace_backward=True), step(*rows))


def test_a_slice_of_the_logits():
    """As the last position, which predicts nothing, is left off."""
    logits, target, upstream = make_rows(torch.bfloat16)
    part = logits[:, :-1], target[:, 1:].contiguous(), upstream[..., 1:].contiguous()
    assert_close(step(*part), truth(*part))


def test_a_target_out_of_range_is_nan_in_its_row_alone():
    logits, target, upstream = make_rows(words=1000)
    expected = step(logits, target, upstream)
    target[0, 3], target[1, 2] = 1000, -1
    log_prob, entropy, grad = step(logits, target, upstream)
    wrong = (target == 1000) | (target == -1)
    assert log_prob[wrong].isnan().all() and grad[wrong].isnan().all() and torch.equal(entropy, expected[1])
    assert_same((log_prob[~wrong], grad[~wrong]), (expected[0][~wrong], expected[2][~wrong]))


def test_rows_further_apart_than_32_bits_count():
    stride, words = 2**31 + 8, 1000  # aligned as the near rows are: the same packs, so the same bits
    logits, target, upstream = make_rows(torch.bfloat16, rows=(2, 1), words=words)
    target[1, 0] = 4
    far = torch.empty(stride + words, device="cuda", dtype=torch.bfloat16).as_strided((2, 1, words), (stride, words, 1))
    far.copy_(logits)
    log_prob, entropy, state = torch.ops.maspo.logprob_forward(far, target, TEMPERATURE, IGNORED)
    torch.ops.maspo.logprob_backward_out(*upstream, far, target, entropy, state, TEMPERATURE, IGNORED, grad=far)
    assert_same((log_prob, entropy, far), step(logits, target, upstream))


MIB = 2**20


def test_a_budget_below_the_sums_is_kept_to():
    """Of some words the logits' gradients are kept, of the others the logits made again; with real products, into real memory."""
    draw = torch.Generator(device="cuda").manual_seed(0)
    tokens, width, words = 2048, 512, 32000
    hidden = torch.randn(1, tokens, width, generator=draw, device="cuda").bfloat16()
    weight = (torch.randn(words, width, generator=draw, device="cuda") * width**-0.5).bfloat16()
    target = torch.randint(words, (1, tokens), generator=draw, device="cuda")
    policy = -5 * torch.rand(1, tokens, generator=draw, device="cuda"), torch.randn(1, tokens, generator=draw, device="cuda")

    def gradients(memory_budget):
        given = [value.detach().requires_grad_() for value in (hidden, weight)]
        mask = torch.ones_like(policy[0])
        loss = maspo_ext.linear_loss(*given, target, *policy, mask, memory_budget=memory_budget).loss
        return torch.autograd.grad(loss, given)

    expected = gradients(None)
    budget = 48 * MIB  # float32 sums of the weight's gradient would be 62.5
    gradients(budget)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    actual = gradients(budget)
    peak = torch.cuda.max_memory_allocated() - before - sum(grad.nbytes for grad in actual)
    assert peak <= budget + 2 * MIB  # a token's numbers
    for got, true in zip(actual, expected, strict=True):
        error = (got.double() - true.double()).abs().max()
        assert error <= 2 * torch.finfo(torch.bfloat16).eps * true.double().abs().max()


# ---- how they run


def head_step(hidden, weight, target, old_log_prob, advantages):
    """Log-probabilities, and a loss from the hidden states, with their gradients."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    results = torch.ops.maspo.linear_logprob(hidden, weight, target, TEMPERATURE, ignore_index=IGNORED)
    grads = torch.autograd.grad(results, (hidden, weight), [torch.ones_like(result) for result in results])
    mask = target != IGNORED
    loss = maspo_ext.linear_loss(
        hidden, weight, target, old_log_prob, advantages, mask, temperature=TEMPERATURE, ratio_mode="maspo"
    ).loss
    return *(result.detach() for result in results), *grads, loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def make_head(dtype=torch.bfloat16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(4, 33, 64, generator=draw), 0.2 * torch.randn(5003, 64, generator=draw)
    target = torch.randint(5003, (4, 33), generator=draw)
    target[0, :5] = IGNORED
    old_log_prob, advantages = -5 * torch.rand(4, 33, generator=draw), torch.randn(4, 33, generator=draw)
    return [value.cuda() for value in (hidden.to(dtype), weight.to(dtype), target, old_log_prob, advantages)]


CALLS = {
    "logits": (step, lambda seed: make_rows(torch.bfloat16, seed=seed)),
    "logits in place": (lambda *rows: step(*rows, inplace_backward=True), lambda seed: make_rows(seed=seed)),
    "head": (head_step, lambda seed: make_head(seed=seed)),
}
every_call = pytest.mark.parametrize("run, make", CALLS.values(), ids=CALLS)


@every_call
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_device(run, make):
    tensors = make(0)
    run(*tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(*tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_call
def test_a_graph_is_captured_and_replayed_on_other_numbers(run, make):
    tensors = make(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(*tensors)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*tensors)
    for seed in (1, 2):
        other = make(seed)
        for tensor, numbers in zip(tensors, other, strict=True):
            tensor.copy_(numbers)
        graph.replay()
        if run is head_step:  # cuBLAS may choose another product inside a graph
            torch.testing.assert_close(captured, run(*other), rtol=2e-2, atol=2e-2)
        else:
            assert_same(captured, run(*other))


@every_dtype
def test_twenty_runs_have_the_same_bits(dtype):
    rows = make_rows(dtype)
    first = step(*rows)
    for _ in range(19):
        assert_same(step(*rows), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_head_agrees_with_its_logits(dtype):
    hidden, weight, target, *_ = make_head(dtype)
    log_prob, entropy = torch.ops.maspo.linear_logprob(hidden, weight, target, TEMPERATURE, ignore_index=IGNORED)
    expected = truth(hidden.double() @ weight.double().T, target, torch.zeros(2, *target.shape, device="cuda"))
    tolerance = 1e-3 if dtype == torch.float32 else 0.1  # of logits rounded to bfloat16, or by TF32
    torch.testing.assert_close(log_prob.double(), expected[0], rtol=0, atol=tolerance)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("inplace_backward", [False, True])
def test_one_launch_forward_and_one_backward(inplace_backward):
    rows = make_rows(torch.bfloat16)
    step(*rows)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        step(*rows, inplace_backward=inplace_backward)
        torch.cuda.synchronize()
    names = [event.name for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    ours = [name for name in names if "maspo::" in name]
    assert len(ours) == 2 and not [name for name in names if "Memset" in name], names
