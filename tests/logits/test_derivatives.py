"""Which derivatives there are: of each result alone, once or again; none of second order, none of forward mode."""

import pytest
import torch
from torch.autograd import forward_ad

import maspo_ext

from ..op.cases import random_batch
from .cases import (
    FLOAT_DTYPES,
    assert_same_bits,
    loss_batch,
    normal,
    random_head,
    random_rows,
    reference,
    run_rows,
    upstream,
)

INPUTS = {
    "logprob": ("logits",),
    "linear_logprob": ("hidden", "weight", "bias"),
    "linear_loss": ("hidden", "weight", "bias"),
}
every_op = pytest.mark.parametrize("op", INPUTS)
FRONTS = {name: getattr(maspo_ext, name) for name in INPUTS}


def arguments_of(op, device, dtype=torch.float64):
    if op == "logprob":
        return dict(zip(("logits", "target"), random_rows(4, 9, dtype, device), strict=True))
    if op == "linear_logprob":
        return random_head((2, 3), 4, 9, dtype, device, bias=True)
    return loss_batch(random_batch(2, 5, dtype, device, seed=3), 4, 9, dtype)


def first_result(op, **arguments):
    return FRONTS[op](**arguments)[0].sum()


@pytest.mark.parametrize("op", ["logprob", "linear_logprob"])
def test_gradcheck(op, device):
    arguments, names = arguments_of(op, device), INPUTS[op]

    def function(*tensors):
        return tuple(FRONTS[op](**{**arguments, **dict(zip(names, tensors, strict=True))}, temperature=0.7))

    assert torch.autograd.gradcheck(function, tuple(arguments[name].requires_grad_() for name in names))


@pytest.mark.parametrize("memory_budget", [None, 8 * 9 * 3])
@pytest.mark.parametrize("ratio_mode", ["maspo", "ppo", "dac", "sapo"])
def test_difference_quotients_of_linear_loss(ratio_mode, memory_budget, device):
    """gradcheck goes back more than once, which the op refuses. Clips are wide, so that no kink is within reach."""
    arguments = arguments_of("linear_loss", device) | {"ratio_mode": ratio_mode, "memory_budget": memory_budget}
    arguments |= {"temperature": 0.7, "ref_log_prob": arguments["old_log_prob"] - 0.3, "kl_coef": 0.4}
    wide = {"clip_ratio_low": 0.99, "clip_ratio_high": 99.0, "clip_ratio_c": 99.0}
    arguments |= {"maspo": {"gate_gradient": True}, "ppo": wide}.get(ratio_mode, {})
    names, step = INPUTS["linear_loss"], 1e-6
    for name in names:
        arguments[name].requires_grad_()
    grads = torch.autograd.grad(FRONTS["linear_loss"](**arguments).loss, [arguments[name] for name in names])
    for name, grad in zip(names, grads, strict=True):
        value = arguments[name].detach()
        for seed in range(3):
            direction = normal(*value.shape, seed=seed).to(device)
            losses = [
                FRONTS["linear_loss"](**{**arguments, name: value + sign * step * direction}).loss.detach()
                for sign in (1, -1)
            ]
            quotient = float(losses[0] - losses[1]) / (2 * step)
            assert float((grad * direction).sum()) == pytest.approx(quotient, rel=1e-6, abs=1e-8), name


@pytest.mark.parametrize("memory_budget", [8, 8 * 9 * 2, None])
def test_gradcheck_in_chunks(memory_budget, device):
    head = random_head((5,), 3, 300, torch.float64, device)
    keep = torch.arange(5, device=device) != 2

    def function(hidden, weight):
        target = torch.where(keep, head["target"], -100)
        return tuple(maspo_ext.linear_logprob(hidden, weight, target, 1.3, memory_budget=memory_budget))

    assert torch.autograd.gradcheck(
        function, (head["hidden"].requires_grad_(), head["weight"].requires_grad_()), fast_mode=True
    )


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("words", [9, 2051])
@pytest.mark.parametrize("which", [0, 1], ids=["log_prob", "entropy"])
def test_gradient_of_one_result_alone(which, words, dtype, device):
    logits, target = random_rows(5, words, dtype, device)
    grads = []
    for function in (maspo_ext.logprob, reference.logprob):
        leaf = logits.clone().requires_grad_()
        result = function(leaf, target, 0.7)[which]
        grads += torch.autograd.grad(result, leaf, upstream(target.shape)[which].to(result))
    assert grads[0].any()
    torch.testing.assert_close(*grads, rtol=2 * torch.finfo(dtype).eps, atol=1e-15 if dtype == torch.float64 else 5e-7)


def test_both_gradients_are_the_sum_of_each(device):
    logits, target = random_rows(5, 2051, torch.float64, device)
    both = run_rows(maspo_ext.logprob, logits, target).grad
    leaf = logits.requires_grad_()
    results = maspo_ext.logprob(leaf, target)
    parts = [
        torch.autograd.grad(r, leaf, u.to(r), retain_graph=True)[0]
        for r, u in zip(results, upstream(target.shape), strict=True)
    ]
    torch.testing.assert_close(both, parts[0] + parts[1], rtol=1e-12, atol=1e-15)
    # A gradient with the strides of an expanded scalar.
    (expanded,) = torch.autograd.grad(maspo_ext.logprob(leaf, target).entropy.sum(), leaf)
    (full,) = torch.autograd.grad(results.entropy, leaf, torch.ones_like(results.entropy))
    assert_same_bits([expanded], [full])


@pytest.mark.parametrize("op", ["logprob", "linear_logprob"])
def test_retain_graph(op, device):
    arguments = arguments_of(op, device)
    tensors = [arguments[name].requires_grad_() for name in INPUTS[op]]
    loss = sum(result.sum() for result in FRONTS[op](**arguments))
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    assert_same_bits(torch.autograd.grad(loss, tensors), first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, tensors)


@every_op
def test_without_grad_the_same_bits_and_no_graph(op, device):
    arguments = arguments_of(op, device, torch.float32)
    for name in INPUTS[op]:
        arguments[name].requires_grad_()
    expected = FRONTS[op](**arguments)
    assert expected[0].requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results = FRONTS[op](**arguments)
        assert not any(getattr(value, "requires_grad", False) for value in results)
        assert_same_bits([results[0]], [expected[0].detach()])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every_op
def test_a_batch_of_gradients(op, device):
    """As of ``is_grads_batched``: of a size that nothing saved has, and with no number to look at."""
    arguments = arguments_of(op, device)
    tensors = [arguments[name].requires_grad_() for name in INPUTS[op]]
    expected = torch.autograd.grad(first_result(op, **arguments), tensors)
    factors = torch.tensor([1.0, -3.0], dtype=torch.float64, device=device)
    grads = torch.autograd.grad(first_result(op, **arguments), tensors, factors, is_grads_batched=True)
    for grad, once in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, torch.stack([once, once * -3.0]), rtol=1e-12, atol=1e-15)
        assert once.any()


@every_op
def test_second_derivative_is_refused(op, device):
    for name in INPUTS[op]:
        arguments = arguments_of(op, device)
        value = arguments[name].requires_grad_()
        (grad,) = torch.autograd.grad(first_result(op, **arguments), value, create_graph=True)
        with pytest.raises(RuntimeError, match=f"maspo.{op} has no second derivative.*logits.reference.{op} for that"):
            torch.autograd.grad(grad.sum(), value)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@every_op
def test_a_graph_of_the_gradients_of_a_loss_with_a_learned_weight(op, dtype, device):
    """The first derivative is there as without that graph; only the next one is refused."""
    arguments = arguments_of(op, device, dtype)
    tensor = arguments[INPUTS[op][0]].requires_grad_()
    factor = torch.tensor(2.0, device=device, requires_grad=True)
    (expected,) = torch.autograd.grad(first_result(op, **arguments) * factor, tensor)
    grad, _ = torch.autograd.grad(first_result(op, **arguments) * factor, (tensor, factor), create_graph=True)
    assert_same_bits([grad.detach()], [expected])
    with pytest.raises(RuntimeError, match=f"torch.ops.maspo.{op} has no second derivative"):
        torch.autograd.grad(grad.sum(), factor)


@pytest.mark.parametrize("name", ["old_log_prob", "advantages"])
def test_other_derivatives_of_linear_loss_in_the_rest_are_refused(name, device):
    """They would be 0 in silence."""
    arguments = arguments_of("linear_loss", device)
    value = arguments.pop(name)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(value, torch.ones_like(value))
        with pytest.raises(NotImplementedError, match=f"linear_loss has no forward-mode derivative: expected {name} without"):
            first_result("linear_loss", **arguments, **{name: dual})
    with pytest.raises(NotImplementedError, match="linear_loss has no derivative by torch.func"):
        torch.func.grad(lambda value: first_result("linear_loss", **arguments, **{name: value}))(value)


@every_op
def test_forward_mode_is_refused(op, device):
    for name in INPUTS[op]:
        arguments = arguments_of(op, device)
        with forward_ad.dual_level():
            arguments[name] = forward_ad.make_dual(arguments[name], torch.ones_like(arguments[name]))
            with pytest.raises(
                NotImplementedError, match=f"{op} has no forward-mode derivative: expected {name} without"
            ):
                first_result(op, **arguments)
