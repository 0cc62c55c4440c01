"""torch's own checks of custom ops, torch.compile, torch.export and the grad modes."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import maspo_ext

from .cases import AGG_MODES, GLOBAL_COUNTS, Result, assert_same_bits, op, random_batch, run

ops = torch.ops.maspo
ARGUMENTS = {
    "defaults": ({"weights": False}, {}),
    "bfloat16": ({"dtype": torch.bfloat16, "mask_dtype": torch.int64}, {"loss_agg_mode": "seq-mean-token-mean"}),
    "global counts": (
        {"dtype": torch.float32},
        {**GLOBAL_COUNTS, "loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 7.0},
    ),
    "gate_gradient": ({"dtype": torch.float32}, {"gate_gradient": True, "alpha": 0.5}),
}
TENSORS = ("log_prob", "old_log_prob", "advantages", "response_mask")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def positional(batch):
    """Arguments as the schema takes them: four tensors, then keywords."""
    return tuple(batch[name] for name in TENSORS), {k: v for k, v in batch.items() if k not in TENSORS}


def run_compiled(compiled, batch, **keywords):
    return run(batch, lambda **arguments: compiled(**arguments), **keywords)


@pytest.mark.parametrize("case", ARGUMENTS)
def test_opcheck_loss(case, device):
    batch_options, keywords = ARGUMENTS[case]
    args, tensors = positional(random_batch(3, 5, device=device, **batch_options))
    args[0].requires_grad_()
    torch.library.opcheck(ops.loss.default, args, {**tensors, **keywords})


@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize("case", ARGUMENTS)
def test_opcheck_forward_and_backward(case, need_grad, device):
    batch_options, keywords = ARGUMENTS[case]
    args, tensors = positional(random_batch(3, 5, device=device, **batch_options))
    keywords = {**tensors, **keywords, "need_grad": need_grad}
    torch.library.opcheck(ops.loss_forward.default, args, keywords)
    if need_grad:
        loss, _, dlogp, row_scale = ops.loss_forward(*args, **keywords)
        torch.library.opcheck(ops.loss_backward.default, (torch.ones_like(loss), dlogp, row_scale, args[0].dtype))


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (3, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_fake_results_have_the_real_shapes_and_dtypes(dtype, shape, device):
    batch = random_batch(*shape, dtype=dtype, device=device)
    for need_grad in (True, False):
        real = ops.loss_forward(**batch, need_grad=need_grad)
        fake = ops.loss_forward(**{name: value.to("meta") for name, value in batch.items()}, need_grad=need_grad)
        assert [(r.shape, r.dtype, r.stride()) for r in real] == [(f.shape, f.dtype, f.stride()) for f in fake]


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("case", ARGUMENTS)
def test_compiled_has_the_bits_of_eager(case, loss_agg_mode, device):
    batch_options, keywords = ARGUMENTS[case]
    keywords = {**keywords, "loss_agg_mode": loss_agg_mode}
    batch = random_batch(5, 9, device=device, **batch_options)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_same_bits(run_compiled(compiled, batch, **keywords), run(batch, **keywords))


@pytest.mark.slow
def test_inductor_between_other_operations(device):
    """The whole compiler, with code of its own before and behind the op."""
    batch = random_batch(5, 9, dtype=torch.float32, device=device)

    def step(log_prob, **arguments):
        loss, stats = op(2 * log_prob - log_prob, **arguments)
        return 3 * loss, stats + 1

    assert_same_bits(run_compiled(torch.compile(step, fullgraph=True), batch), run(batch, step))


def test_changing_counts_and_shapes_do_not_recompile_each_time(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op, fullgraph=True, backend=counter)
    for batch_num_tokens in (50, 71, 93, 110):
        batch = random_batch(4, 8, dtype=torch.float32, device=device)
        keywords = {"dp_size": 2, "batch_num_tokens": batch_num_tokens}
        assert_same_bits(run_compiled(compiled, batch, **keywords), run(batch, **keywords))
    # One graph for the first value, one for any value.
    assert counter.frame_count <= 2
    for rows, cols in ((4, 8), (5, 8), (6, 11), (7, 13), (9, 21)):
        batch = random_batch(rows, cols, dtype=torch.float32, device=device)
        assert_same_bits(run_compiled(compiled, batch, **keywords), run(batch, **keywords))
    assert counter.frame_count <= 4


@pytest.mark.parametrize("shape", [(2, 3), (6, 17)], ids=str)
def test_dynamic_shapes(shape, device):
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager", dynamic=True)
    run_compiled(compiled, random_batch(4, 8, device=device))
    batch = random_batch(*shape, device=device)
    assert_same_bits(run_compiled(compiled, batch), run(batch))


@pytest.mark.parametrize(
    "front", [maspo_ext.policy_loss, maspo_ext.PolicyLoss(alpha=0.5)], ids=["policy_loss", "PolicyLoss"]
)
def test_the_python_fronts_compile(front, device):
    batch = random_batch(4, 8, device=device)

    def function(**arguments):
        output = front(**arguments)
        return output.loss, output.stats.tensor

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same_bits(run_compiled(compiled, batch), run(batch, function))


def test_errors_of_the_checks_come_through_compile(device):
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="maspo_ext: alpha: expected >= 0, got -1.0"):
        compiled(**random_batch(4, 8, device=device), alpha=-1.0)


def test_export_with_dynamic_batch_and_width(device):
    class Loss(torch.nn.Module):
        def forward(self, log_prob, old_log_prob, advantages, response_mask):
            return op(log_prob, old_log_prob, advantages, response_mask, alpha=0.5)

    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    program = torch.export.export(Loss(), positional(random_batch(4, 8, device=device))[0], dynamic_shapes=[sizes] * 4)
    batch = random_batch(7, 5, device=device, weights=False)
    loss, stats = program.module()(*positional(batch)[0])
    expected = op(**batch, alpha=0.5)
    assert torch.equal(loss, expected[0]) and torch.equal(stats, expected[1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes_give_the_same_numbers_without_a_graph(mode, device):
    batch = random_batch(5, 9, device=device)
    expected = run(batch)
    with mode():
        loss, stats = op(**{**batch, "log_prob": batch["log_prob"].clone().requires_grad_()})
    assert not loss.requires_grad
    assert_same_bits(Result(loss, expected.grad, stats), expected)


def test_inference_tensors_as_inputs_of_training(device):
    """Rollouts are made under inference_mode and are then trained on."""
    with torch.inference_mode():
        batch = random_batch(5, 9, device=device)
    trained = {**batch, "log_prob": batch["log_prob"].clone()}
    assert_same_bits(run(trained), run(random_batch(5, 9, device=device)))


def test_without_a_gradient_none_is_computed(device):
    _, _, dlogp, _ = ops.loss_forward(**random_batch(5, 9, device=device), need_grad=False)
    assert dlogp.shape == (0, 9)
