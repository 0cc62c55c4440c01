"""torch's own checks of custom ops, torch.compile, torch.export and the grad modes."""

import numpy
import pytest
import torch
import torch._inductor.config
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import maspo_ext

from .cases import (
    AGG_MODES,
    DEFAULT_METHODS,
    GLOBAL_COUNTS,
    KERNEL,
    OPTIONS,
    Result,
    assert_same_bits,
    every_mode,
    op,
    random_batch,
    run,
)

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


@pytest.fixture
def no_disk_cache():
    """Inductor keeps graphs on disk by what calls the op, not by what the op calls: they outlive another library."""
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


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


class CallsBelow(TorchDispatchMode):
    """The calls of this library's compiled ops, with the arguments that ``loss`` hands to them."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "maspo":
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def calls_below(batch, need_grad=True, function=op, **keywords):
    """Those of a forward pass and of two backward passes, the last of which may use the saved memory, by name."""
    log_prob = batch["log_prob"].requires_grad_(need_grad)
    with CallsBelow() as recorder:
        loss, _ = function(**batch, **keywords)
        if need_grad:
            torch.autograd.grad(loss, log_prob, retain_graph=True)
            torch.autograd.grad(loss, log_prob, torch.full_like(loss, 0.5))

    def detached(values):
        return [value.detach().clone() if isinstance(value, torch.Tensor) else value for value in values]

    return {
        function._schema.name.removeprefix("maspo::"): (
            function,
            detached(args),
            dict(zip(kwargs, detached(kwargs.values()))),
        )
        for function, args, kwargs in recorder.calls
    }


@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize("case", ARGUMENTS)
def test_opcheck_forward_and_backward(case, need_grad, device):
    batch_options, keywords = ARGUMENTS[case]
    calls = calls_below(random_batch(3, 5, device=device, **batch_options), need_grad, **keywords)
    names = ["loss_forward", "loss_backward"] + ["loss_backward_out"] * (batch_options.get("dtype") != torch.bfloat16)
    assert list(calls) == (names if need_grad else names[:1])
    for function, args, kwargs in calls.values():
        torch.library.opcheck(function, args, kwargs)


@pytest.mark.parametrize("counts", [{}, {"batch_num_tokens": 7, "global_batch_size": 3}], ids=["local", "global"])
@pytest.mark.parametrize("need_grad", [True, False])
def test_opcheck_forward_of_the_function(need_grad, counts, device):
    calls = calls_below(random_batch(3, 5, device=device), need_grad, maspo_ext.policy_loss, **counts)
    function, args, kwargs = calls["loss_forward_packed"]
    torch.library.opcheck(function, args, kwargs)


def test_a_graph_of_the_function_says_what_it_computes(device):
    """By names: it may be kept for another version."""
    batch = random_batch(3, 5, device=device)
    log_prob = batch.pop("log_prob")
    graph = make_fx(lambda log_prob: maspo_ext.policy_loss(log_prob, **batch).loss)(log_prob).code
    assert "loss_forward.default(" in graph and "method = 'maspo'" in graph and "packed" not in graph


def with_options(method, packed, device):
    """A batch with all tensors, and the keywords of a method with every option."""
    batch = method.full_batch(3, 5, dtype=torch.float32, device=device)
    keywords = {**method.keywords, **method.takes(OPTIONS)}
    if packed:
        batch = {name: value.flatten() for name, value in batch.items()}
        keywords |= {"cu_seqlens": torch.tensor([0, 5, 10, 15], device=device), "max_seqlen": 5}
    return batch, keywords


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@every_mode
def test_opcheck_loss_of_every_method(method, packed, device):
    batch, keywords = with_options(method, packed, device)
    args, tensors = positional(batch)
    args[0].requires_grad_()
    torch.library.opcheck(ops.loss.default, args, {**tensors, **keywords})


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@every_mode
def test_opcheck_compiled_ops_of_every_method(method, packed, device):
    batch, keywords = with_options(method, packed, device)
    calls = calls_below(batch, **keywords)
    names = ["loss_forward", "loss_backward", "loss_backward_out"]
    assert list(calls) == (["bapo_sums", "bapo_bounds"] if method.mode == "bapo" else []) + names
    for function, args, kwargs in calls.values():
        torch.library.opcheck(function, args, kwargs)


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (3, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_fake_results_have_the_real_shapes_and_dtypes(dtype, shape, device):
    batch = random_batch(*shape, dtype=dtype, device=device)
    for need_grad in (True, False):
        real = ops.loss_forward(**batch, **KERNEL, need_grad=need_grad)
        fake = ops.loss_forward(**{n: value.to("meta") for n, value in batch.items()}, **KERNEL, need_grad=need_grad)
        assert [(r.shape, r.dtype, r.stride()) for r in real] == [(f.shape, f.dtype, f.stride()) for f in fake]


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("case", ARGUMENTS)
def test_compiled_has_the_bits_of_eager(case, loss_agg_mode, device):
    batch_options, keywords = ARGUMENTS[case]
    keywords = {**keywords, "loss_agg_mode": loss_agg_mode}
    batch = random_batch(5, 9, device=device, **batch_options)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_same_bits(run_compiled(compiled, batch, **keywords), run(batch, **keywords))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@every_mode
def test_compiled_method_has_the_bits_of_eager(method, packed, device):
    batch, keywords = with_options(method, packed, device)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_same_bits(run_compiled(compiled, batch, **keywords), run(batch, **keywords))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
@every_mode
def test_inductor_with_every_method(method, no_disk_cache, device):
    batch, keywords = with_options(method, False, device)
    assert_same_bits(run_compiled(torch.compile(op, fullgraph=True), batch, **keywords), run(batch, **keywords))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_inductor_between_other_operations(no_disk_cache, device):
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


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("mode", ["dac", "bapo"])
def test_dynamic_shapes_of_packed_batches(mode, dynamic, device):
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager", dynamic=dynamic or None)
    method = DEFAULT_METHODS[mode]
    for rows, cols in ((2, 5), (3, 7), (6, 4)):
        batch = {name: value.flatten() for name, value in method.full_batch(rows, cols, device=device).items()}
        cu_seqlens = torch.arange(rows + 1, device=device) * cols
        keywords = {**method.keywords, **method.takes(OPTIONS), "cu_seqlens": cu_seqlens, "max_seqlen": cols}
        assert_same_bits(run_compiled(compiled, batch, **keywords), run(batch, **keywords))


FRONTS = {
    "policy_loss": (maspo_ext.policy_loss, {}, "maspo"),
    "PolicyLoss": (maspo_ext.PolicyLoss(alpha=0.5), {}, "maspo"),
    **{f"policy_loss of {mode}": (maspo_ext.policy_loss, {"ratio_mode": mode}, mode) for mode in DEFAULT_METHODS},
    **{f"PolicyLoss of {mode}": (maspo_ext.PolicyLoss(mode), {}, mode) for mode in DEFAULT_METHODS},
}


@pytest.mark.parametrize("front", FRONTS)
def test_the_python_fronts_compile(front, device):
    front, keywords, mode = FRONTS[front]
    batch = random_batch(4, 8, device=device, entropy=True)
    options = DEFAULT_METHODS[mode].takes({"entropy_alpha": 0.2})

    def function(**arguments):
        output = front(**arguments, rollout_is_threshold="0.5_2.0", **options, **keywords)
        return output.loss, output.stats.tensor

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same_bits(run_compiled(compiled, batch), run(batch, function))


@pytest.mark.parametrize("name", ["alpha", "loss_scale_factor", "rollout_is_threshold"])
def test_a_number_may_change_from_call_to_call(name, device):
    batch = random_batch(4, 8, device=device)
    compiled = torch.compile(maspo_ext.policy_loss, fullgraph=True, backend="aot_eager")
    for value in (0.5, 0.75, 1.25, 1.5):
        options = {"loss_agg_mode": "seq-mean-token-sum-norm", name: value}
        got, expected = (function(**batch, **options) for function in (compiled, maspo_ext.policy_loss))
        assert torch.equal(got.loss, expected.loss) and torch.equal(got.stats.tensor, expected.stats.tensor)


def test_a_count_of_the_compiled_function(device):
    """Its value is not known while the graph is made."""
    batch = random_batch(4, 8, device=device)

    def step(**arguments):
        count = arguments["response_mask"].bool().sum().item()
        return maspo_ext.policy_loss(**arguments, batch_num_tokens=count).loss

    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(**batch), step(**batch))


@pytest.mark.parametrize("number", [numpy.float64, numpy.float32, numpy.int64])
def test_numbers_of_numpy_in_a_module_compile(number, device):
    batch = random_batch(4, 8, device=device)
    batch["ref_log_prob"] = batch["old_log_prob"] - 0.1
    module = maspo_ext.PolicyLoss(alpha=number(1), kl_coef=number(2), clip_ratio_c=number(3))
    assert {type(value) for value in (module.config.alpha, module.options["kl_coef"])} <= {float, int}
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**batch).loss, maspo_ext.PolicyLoss(alpha=1, kl_coef=2, clip_ratio_c=3)(**batch).loss)


def test_errors_of_the_checks_come_through_compile(device):
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    batch = random_batch(4, 8, device=device)
    with pytest.raises(Exception, match="maspo_ext: alpha: expected >= 0, got -1.0"):
        compiled(**batch, alpha=-1.0)
    with pytest.raises(Exception, match="maspo_ext: hyper: expected 3 values .*, got 2"):
        compiled(**batch, ratio_mode="sapo", hyper=[1.0, 1.0])


@pytest.mark.parametrize("keywords", [{"alpha": 0.5}, DEFAULT_METHODS["bapo"].keywords], ids=["maspo", "bapo"])
def test_export_with_dynamic_batch_and_width(keywords, device):
    class Loss(torch.nn.Module):
        def forward(self, log_prob, old_log_prob, advantages, response_mask):
            return op(log_prob, old_log_prob, advantages, response_mask, **keywords)

    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    program = torch.export.export(Loss(), positional(random_batch(4, 8, device=device))[0], dynamic_shapes=[sizes] * 4)
    batch = random_batch(7, 5, device=device, weights=False)
    loss, stats = program.module()(*positional(batch)[0])
    expected = op(**batch, **keywords)
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
    _, _, dlogp, _ = ops.loss_forward(**random_batch(5, 9, device=device), **KERNEL, need_grad=False)
    assert dlogp.shape == (0, 9)
