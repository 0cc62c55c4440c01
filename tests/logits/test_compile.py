"""torch's own checks of custom ops, and torch.compile."""

import pytest
import torch

import maspo_ext
from maspo_ext.logits import linear_loss

from ..op.cases import DEFAULT_METHODS, OPTIONS, every_mode
from ..op.test_compile import CallsBelow, fresh_dynamo, no_disk_cache  # noqa: F401
from .cases import (
    IGNORED,
    assert_same_bits,
    every_mode_of_the_op,
    loss_batch,
    ops,
    random_head,
    random_rows,
    run_head,
    run_loss,
    run_rows,
)

DTYPES = (torch.float32, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FRONTS = {
    "logprob": (maspo_ext.logprob, run_rows),
    "linear_logprob": (maspo_ext.linear_logprob, run_head),
    "linear_loss": (maspo_ext.linear_loss, run_loss),
}


POSITIONAL = {"logprob": ("logits", "target"), "linear_logprob": ("hidden", "weight", "target")}
POSITIONAL["linear_loss"] = (*POSITIONAL["linear_logprob"], "old_log_prob", "advantages", "response_mask")


def loss_arguments(method, device, dtype=torch.float32, rows=3, cols=5):
    """With every option that the mode takes."""
    arguments = loss_batch(method.full_batch(rows, cols, dtype=dtype, device=device), 6, 21, dtype)
    return {**arguments, **method.keywords, **method.takes(OPTIONS)}


def arguments_of(op, device, dtype=torch.float32, rows=3, cols=5):
    if op == "logprob":
        logits, target = random_rows(rows, cols + 21, dtype, device)
        target[1] = IGNORED
        return {"logits": logits, "target": target}
    if op == "linear_logprob":
        return random_head((rows, cols), 6, 21, dtype, device, bias=True)
    return loss_arguments(DEFAULT_METHODS["ppo"], device, dtype, rows, cols)


def opcheck(function, args, keywords):
    torch.library.opcheck(function, tuple(args), keywords)


@pytest.mark.parametrize("op", FRONTS)
@every_dtype
def test_opcheck(dtype, op, device):
    arguments = {
        name: value.requires_grad_() if name in ("logits", "hidden", "weight", "bias") else value
        for name, value in arguments_of(op, device, dtype).items()
    }
    opcheck(getattr(ops, op).default, [arguments.pop(name) for name in POSITIONAL[op]], arguments)


def calls_below(function):
    """By name, the calls of the ops below, with detached arguments."""

    def detached(value):
        return value.detach().clone() if isinstance(value, torch.Tensor) else value

    with CallsBelow() as recorder:
        function()
    return {
        call._schema.name.removeprefix("maspo::"): (
            call,
            [detached(value) for value in args],
            {name: detached(value) for name, value in keywords.items()},
        )
        for call, args, keywords in recorder.calls
    }


@pytest.mark.parametrize("inplace_backward", [False, True])
@every_dtype
def test_opcheck_below_logprob(dtype, inplace_backward, device):
    logits, target = random_rows(4, 33, dtype, device)
    target[2] = IGNORED

    def function(logits, target):
        return maspo_ext.logprob(logits * 1, target, 0.7, inplace_backward=inplace_backward)

    calls = calls_below(lambda: run_rows(function, logits, target))
    assert list(calls) == ["logprob_forward", "logprob_backward_out" if inplace_backward else "logprob_backward"]
    for call, args, keywords in calls.values():
        if inplace_backward and keywords:
            keywords["grad"] = torch.empty_like(logits)  # the logits' memory is an alias, which opcheck does not know
        opcheck(call, args, keywords)


@every_dtype
def test_opcheck_of_gradients_in_several_places(dtype, device):
    """What ``linear_loss`` calls on a GPU with little memory."""
    logits, target = random_rows(4, 33, dtype, device)
    log_prob, entropy, state = ops.logprob_forward(logits, target, 0.7, IGNORED)
    arguments = (torch.ones_like(log_prob), None, logits, target, entropy, state, 0.7, IGNORED)
    grads = [torch.empty_like(block) for block in logits.split(20, 1)]
    opcheck(ops.logprob_backward_blocks_out.default, arguments, {"grads": grads})


@pytest.mark.parametrize("asked", [("hidden", "weight", "bias"), ("hidden",), ("weight",)], ids="+".join)
@every_dtype
def test_opcheck_below_linear_logprob(dtype, asked, device):
    head = arguments_of("linear_logprob", device, dtype)
    calls = calls_below(lambda: run_head(maspo_ext.linear_logprob, head, asked))
    assert list(calls) == ["linear_logprob_forward", "linear_logprob_backward"]
    for call, args, keywords in calls.values():
        opcheck(call, args, keywords)


@every_mode_of_the_op
def test_opcheck_below_linear_loss(method, device, monkeypatch):
    # By the way of what is traced; else the op's kernel is called at once.
    monkeypatch.setattr(linear_loss, "_pass", lambda *_: ops.linear_loss_forward)
    arguments = loss_arguments(method, device)
    calls = calls_below(lambda: run_loss(ops.linear_loss, arguments))
    # On a GPU backward cannot look at the gradient of the loss.
    assert list(calls) == ["linear_loss_forward", *["scale_"] * (device == "cuda")]
    for call, args, keywords in calls.values():
        opcheck(call, args, keywords)


@pytest.mark.parametrize("op", ["logprob", "linear_logprob"])
@pytest.mark.parametrize("shape", [(3, 5), (0, 5)], ids=str)
@every_dtype
def test_fake_results_have_the_real_shapes_and_dtypes(dtype, shape, op, device):
    arguments = arguments_of(op, device, dtype)
    for name in {"logits", "hidden", "target"} & set(arguments):
        arguments[name] = arguments[name][: shape[0]]
    real = getattr(ops, op)(**arguments)
    fake = getattr(ops, op)(**{name: value.to("meta") for name, value in arguments.items()})
    assert [(r.shape, r.dtype, r.stride()) for r in real] == [(f.shape, f.dtype, f.stride()) for f in fake]


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("op", FRONTS)
@every_dtype
def test_compiled_has_the_bits_of_eager(dtype, op, dynamic, device):
    """Each time of another shape, so that static ones become dynamic, too."""
    front, run = FRONTS[op]

    def function(*args, **keywords):
        results = front(*args, **keywords, temperature=0.7)
        return (results.loss, results.stats.tensor, *results[2:]) if op == "linear_loss" else tuple(results)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows, cols in ((3, 5), (4, 7)):
        arguments = arguments_of(op, device, dtype, rows, cols)
        if op == "linear_loss":
            arguments = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
            arguments |= {"kl_coef": 0.2, "ratio_mode": "ppo"}
        if op == "logprob":
            arguments = list(arguments.values())
            assert_same_bits(run(compiled, *arguments), run(function, *arguments))
        else:
            assert_same_bits(run(compiled, arguments), run(function, arguments))


@pytest.mark.slow
@every_mode
def test_compiled_linear_loss_of_every_mode(method, device):
    arguments = loss_batch(method.full_batch(3, 5, dtype=torch.float32, device=device), 6, 21)
    packed = {name: value.flatten(0, 1) for name, value in arguments.items() if name not in ("weight", "bias")}
    packed |= {name: arguments[name] for name in ("weight", "bias")}
    packed |= {"cu_seqlens": torch.tensor([0, 5, 10, 15], device=device), "max_seqlen": 5}
    options = method.takes({"entropy_alpha": 0.3, "kl_coef": 0.2, "dual_clip": True})

    def function(**arguments):
        loss, stats, *tokens = maspo_ext.linear_loss(**arguments, ratio_mode=method.mode, **options)
        return loss, stats.tensor, *tokens

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for batch in (arguments, packed):
        assert_same_bits(run_loss(compiled, batch), run_loss(function, batch))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled", "ignore:TensorFloat32 tensor cores")
def test_inductor_between_other_operations(no_disk_cache, device):  # noqa: F811
    """The whole compiler: a model in front, and all three ops."""
    head = random_head((3, 5), 6, 21, device=device)
    policy = {name: torch.ones(3, 5, device=device) for name in ("old_log_prob", "advantages", "response_mask")}

    def step(hidden, weight, target):
        hidden = 2 * hidden - hidden
        log_prob, entropy = maspo_ext.linear_logprob(hidden, weight, target)
        loss = maspo_ext.linear_loss(hidden, weight, target, **policy).loss
        more = maspo_ext.logprob(hidden @ weight.T, target).log_prob.sum()
        return log_prob * 2 + 3 * loss + more, entropy + 1

    for actual, expected in zip(run_head(torch.compile(step, fullgraph=True), head), run_head(step, head), strict=True):
        torch.testing.assert_close(actual, expected)


def test_errors_of_the_checks_come_through_compile(device):
    logits, target = random_rows(3, 5, device=device)
    compiled = torch.compile(maspo_ext.logprob, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="maspo_ext: temperature: expected > 0, got 0.0"):
        compiled(logits, target, 0.0)
    with pytest.raises(Exception, match="maspo_ext: target: expected shape"):
        compiled(logits, target[:2])
