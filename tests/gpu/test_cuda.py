"""What only a GPU can show: streams, graphs, no waiting, launches, memory. Run by `make gpu`."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import maspo_ext

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
every_mode = pytest.mark.parametrize("ratio_mode", maspo_ext.RATIO_MODES)


def make_batch(rows=33, cols=1025, device="cuda", seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, cols, generator=draw)
    batch = {
        "log_prob": old + 0.5 * torch.randn(rows, cols, generator=draw),
        "old_log_prob": old,
        "advantages": 2 * torch.randn(rows, cols, generator=draw),
        "entropy": torch.rand(rows, cols, generator=draw),
    }
    batch = {name: value.to(dtype).to(device) for name, value in batch.items()}
    batch["response_mask"] = (torch.rand(rows, cols, generator=draw) < 0.8).to(device)
    return batch


def step(batch, ratio_mode):
    """Loss, gradient and statistics, all on the device."""
    arguments = {name: value for name, value in batch.items() if name != "entropy" or ratio_mode == "entropy_adv"}
    arguments["log_prob"] = arguments["log_prob"].detach().requires_grad_()
    output = maspo_ext.policy_loss(**arguments, ratio_mode=ratio_mode)
    (grad,) = torch.autograd.grad(output.loss, arguments["log_prob"])
    return output.loss.detach(), grad, output.stats.tensor


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a.cpu(), e.cpu())


def padded(batch, dtype=torch.bool):
    """The same with padding for a mask, of rows with nothing but, some and none: what most batches are."""
    rows, cols = batch["log_prob"].shape
    lengths = torch.linspace(0, 1.5 * cols, rows, device=batch["log_prob"].device).round()
    mask = torch.arange(cols, device=lengths.device) < lengths[:, None]
    return batch | {"response_mask": mask.to(dtype)}


def large(cols, dtype=torch.float32):
    """As many tokens as the kernels that take groups of steps in turn are for (csrc/cuda/groups.h), and some rows."""
    rows = torch.cuda.get_device_properties("cuda").multi_processor_count * 16 * 16 * 512 // cols + 7
    draw = torch.Generator("cuda").manual_seed(0)
    old = -3 * torch.rand(rows, cols, device="cuda", generator=draw)
    batch = {
        "log_prob": old + 0.5 * torch.randn(rows, cols, device="cuda", generator=draw),
        "old_log_prob": old,
        "advantages": torch.randn(rows, 1, device="cuda", generator=draw).repeat(1, cols),
        "entropy": torch.rand(rows, cols, device="cuda", generator=draw),
    }
    return padded({name: value.to(dtype) for name, value in batch.items()})


def names_of_kernels(batch, ratio_mode):
    step(batch, ratio_mode)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        step(batch, ratio_mode)
        torch.cuda.synchronize()
    return [event.name for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]


@every_mode
@pytest.mark.parametrize(
    "cols, dtype", [(512, torch.float32), (3584, torch.float32), (4096, torch.float32), (4096, torch.bfloat16)], ids=str
)
def test_groups_in_turn_like_stretches(cols, dtype, ratio_mode):
    """The other kernels take the same batch where a tensor is not aligned. Gradients have the same bits, and sums another order."""
    batch = large(cols, dtype)
    batch["log_prob"][0, 5] = float("nan")  # masked
    behind = torch.empty(batch["log_prob"].numel() + 1, device="cuda", dtype=dtype)[1:].view_as(batch["log_prob"])
    loss, grad, stats = step(batch, ratio_mode)
    by_stretches = step(batch | {"log_prob": behind.copy_(batch["log_prob"])}, ratio_mode)
    assert loss.isfinite() and torch.equal(grad, by_stretches[1])
    torch.testing.assert_close(loss, by_stretches[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats, by_stretches[2], rtol=1e-5, atol=1e-7)


def test_a_large_batch_is_taken_in_groups():
    assert any("forward_groups_kernel" in name for name in names_of_kernels(large(4096), "maspo"))
    assert not any("forward_groups_kernel" in name for name in names_of_kernels(make_batch(64, 4096), "maspo"))


@every_mode
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cols", [1024, 1025])
def test_padded_batches_like_a_cpu(cols, mask_dtype, ratio_mode):
    """Whole steps have a path of their own; with 1,025 columns most rows begin at no multiple of 16 bytes."""
    batch = padded(make_batch(33, cols), mask_dtype)
    expected = step({name: value.cpu() for name, value in batch.items()}, ratio_mode)
    for a, e in zip(step(batch, ratio_mode), expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("upstream", [1.0, 3.0])
@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"batch_num_tokens": 777},
        {"loss_agg_mode": "token-sum"},
        {"loss_agg_mode": "seq-mean-token-sum", "global_batch_size": 19},
        {"loss_agg_mode": "seq-mean-token-sum-norm", "global_batch_size": 19},
        {"loss_agg_mode": "seq-mean-token-mean", "global_batch_size": 19},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(33, 1025), (70, 1280), (2500, 512)], ids=str)
def test_the_scale_of_given_counts_like_a_cpu(shape, counts, upstream):
    """Forward applies it where it can: then backward has nothing to do for a gradient of 1, and only that of the loss for another."""
    grads = []
    for device in ("cuda", "cpu"):
        batch = padded(make_batch(*shape, device))
        del batch["entropy"]
        log_prob = batch.pop("log_prob").requires_grad_()
        loss = maspo_ext.policy_loss(log_prob, **batch, **counts).loss
        grads += torch.autograd.grad(loss, log_prob, torch.full_like(loss, upstream))
    torch.testing.assert_close(grads[0].cpu(), grads[1], rtol=1e-4, atol=1e-6 * grads[1].abs().max().item())


@every_mode
def test_a_number_that_is_not_finite_in_a_whole_step(ratio_mode):
    batch = padded(make_batch(9, 1024))
    batch["log_prob"][8, 300], batch["old_log_prob"][7, 5] = float("nan"), float("inf")
    on_gpu = step(batch, ratio_mode)
    expected = step({name: value.cpu() for name, value in batch.items()}, ratio_mode)
    assert on_gpu[0].isnan() == expected[0].isnan()
    torch.testing.assert_close(on_gpu[1].cpu(), expected[1], rtol=2e-5, atol=1e-7, equal_nan=True)


@every_mode
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_device(ratio_mode):
    batch = make_batch()
    step(batch, ratio_mode)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch, ratio_mode)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_mode
def test_a_graph_is_captured_and_replayed_on_other_numbers(ratio_mode):
    batch, other = make_batch(), make_batch(seed=1)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step(batch, ratio_mode)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(batch, ratio_mode)
    for numbers in (other, make_batch(seed=2), other):
        for name, value in batch.items():
            value.copy_(numbers[name])
        graph.replay()
        assert_same(captured, step(numbers, ratio_mode))


@every_mode
def test_on_a_side_stream_behind_work_that_is_late(ratio_mode):
    batch = make_batch()
    expected = step(batch, ratio_mode)
    late = {name: torch.zeros_like(value) for name, value in batch.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        for name, value in late.items():
            value.copy_(batch[name])
        result = step(late, ratio_mode)
        torch.cuda.current_stream().synchronize()
    assert_same(result, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_the_second_device_while_the_first_is_current():
    expected = step(make_batch(), "maspo")
    with torch.cuda.device(0):
        result = step(make_batch(device="cuda:1"), "maspo")
    assert result[0].device.index == 1
    assert_same(result, expected)


@every_mode
@pytest.mark.parametrize(
    "make", [lambda: padded(make_batch(512, 4097)), lambda: padded(make_batch(512, 4097, dtype=torch.bfloat16)), lambda: large(4096)],
    ids=["float32", "bfloat16", "large"],
)  # fmt: skip
def test_twenty_runs_have_the_same_bits(make, ratio_mode):
    batch = make()
    first = step(batch, ratio_mode)
    for _ in range(19):
        assert_same(step(batch, ratio_mode), first)


@every_mode
def test_launches(ratio_mode):
    """One forward and one backward; BAPO's search takes three more. No memset, no copy."""
    names = names_of_kernels(make_batch(), ratio_mode)
    ours = [name for name in names if "maspo::" in name]
    assert len(ours) == (5 if ratio_mode == "bapo" else 2), names
    # torch's own: the gradient 1 of the loss
    assert len(names) - len(ours) <= 1 and not [name for name in names if "Memset" in name or "Memcpy" in name], names


def test_memory_is_the_saved_gradient_and_the_result():
    batch = make_batch(1024, 4096)
    arguments = {name: value for name, value in batch.items() if name != "entropy"}
    arguments["log_prob"].requires_grad_()
    size = batch["log_prob"].numel() * 4
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    maspo_ext.policy_loss(**arguments).loss.backward()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 2.1 * size


WRONG = ([0, 100, 90, 400], [0, 100, 200, 401], [5, 100, 200, 400], [0, 300, 350, 400], [0, 0, 0, 5000], [0, -7, 200, 400])


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_cu_seqlens_gives_nan_and_touches_nothing(wrong):
    batch = {name: value.reshape(-1) for name, value in make_batch(4, 100).items() if name != "entropy"}
    log_prob = batch["log_prob"].requires_grad_()
    cu_seqlens = torch.tensor(wrong, device="cuda")
    loss = maspo_ext.policy_loss(**batch, cu_seqlens=cu_seqlens, max_seqlen=200).loss
    loss.backward()
    assert loss.isnan() and log_prob.grad.isnan().any()
    torch.cuda.synchronize()


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_cu_seqlens_of_hidden_states_gives_nan_and_ends_no_process(wrong):
    batch = {name: value.reshape(-1) for name, value in make_batch(4, 100).items() if name not in ("entropy", "log_prob")}
    hidden = torch.randn(400, 16, device="cuda", requires_grad=True)
    weight, target = torch.randn(33, 16, device="cuda"), torch.randint(33, (400,), device="cuda")
    cu_seqlens = torch.tensor(wrong, device="cuda")
    loss = maspo_ext.linear_loss(hidden, weight, target, **batch, cu_seqlens=cu_seqlens, max_seqlen=200).loss
    loss.backward()
    assert loss.isnan() and hidden.grad.isnan().any()
    torch.cuda.synchronize()
