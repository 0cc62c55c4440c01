"""The derivative: gate frozen as published, gate differentiated on request, and none of higher order."""

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import maspo_ext

from .cases import (
    AGG_MODES,
    ALL_TENSORS,
    DEFAULT_METHODS,
    FLOAT_DTYPES,
    METHODS,
    OPTIONS,
    every_mode,
    op,
    random_batch,
    reference,
    run,
)

HYPER = {
    "sigma_base": 0.4,
    "alpha": 0.3,
    "sigma_high": 3.0,
    "adv_low": 0.5,
    "adv_high": 2.0,
    "beta_pos": 0.2,
    "beta_neg": 0.3,
}


def smooth_batch(device, **tensors):
    """A batch without kinks: no log-ratio near 0 or +-20, no advantage near 0, both signs of each."""
    batch = random_batch(4, 6, device=device, **tensors)
    direction = torch.where(torch.arange(24, device=device).reshape(4, 6) % 2 == 0, 1.0, -1.0).double()
    batch["log_prob"] = batch["old_log_prob"] + direction * (0.1 + (batch["log_prob"] - batch["old_log_prob"]).abs())
    batch["advantages"] = torch.where(batch["advantages"] < 0, -0.3, 0.3) + batch["advantages"]
    batch["response_mask"] = batch["response_mask"].double() * 0.75
    return batch


def loss_with_fixed_gate(log_prob, batch, fixed_log_prob, loss_agg_mode):
    """The loss written out once more, with the gate's ratio taken from ``fixed_log_prob``."""
    old, adv, mask = batch["old_log_prob"], batch["advantages"], batch["response_mask"]
    h = HYPER
    mass = (h["sigma_base"] / old.exp() ** h["alpha"]).clamp(h["sigma_base"], h["sigma_high"])
    risk = torch.where(adv > 0, 1 + h["beta_pos"] * adv, 1 / (1 - h["beta_neg"] * adv)).clamp(
        h["adv_low"], h["adv_high"]
    )
    fixed_ratio = (fixed_log_prob - old).exp()
    overshoot = (fixed_ratio - 1) * adv.sign() > 0
    gate = torch.where(overshoot, torch.exp(-((fixed_ratio - 1) ** 2) / (2 * (mass * risk) ** 2)), 1.0)
    token_loss = -adv * gate * (log_prob - old).exp() * batch["rollout_is_weights"] * mask
    tokens = mask.sum(-1)
    rows = (tokens > 0).sum()
    return {
        "token-mean": lambda: token_loss.sum() / tokens.sum(),
        "token-sum": lambda: token_loss.sum(),
        "seq-mean-token-sum": lambda: token_loss.sum() / rows,
        "seq-mean-token-mean": lambda: (token_loss.sum(-1)[tokens > 0] / tokens[tokens > 0]).sum() / rows,
        "seq-mean-token-sum-norm": lambda: token_loss.sum() / rows / mask.shape[1],
    }[loss_agg_mode]()


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
def test_gradient_with_gate_frozen_is_the_difference_quotient_of_the_loss_with_a_fixed_gate(loss_agg_mode, device):
    batch = smooth_batch(device)
    result = run(batch, loss_agg_mode=loss_agg_mode, **HYPER)

    fixed = batch["log_prob"]
    step = 1e-6
    quotient = torch.zeros_like(fixed)
    for i in range(fixed.numel()):
        delta = torch.zeros_like(fixed)
        delta.view(-1)[i] = step
        higher, lower = (loss_with_fixed_gate(fixed + s * delta, batch, fixed, loss_agg_mode) for s in (1, -1))
        quotient.view(-1)[i] = (higher - lower) / (2 * step)
    torch.testing.assert_close(
        result.loss, loss_with_fixed_gate(fixed, batch, fixed, loss_agg_mode), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(result.grad, quotient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
def test_gate_gradient_passes_gradcheck(loss_agg_mode, device):
    batch = smooth_batch(device)

    def loss(log_prob):
        return op(**{**batch, "log_prob": log_prob}, loss_agg_mode=loss_agg_mode, gate_gradient=True, **HYPER)[0]

    assert torch.autograd.gradcheck(loss, (batch["log_prob"].requires_grad_(),), fast_mode=False)


# Modes that take a token's weight for a constant, whose gradient is therefore not the derivative of the loss; and what has
# them differentiate it. None where nothing does: then the autograd of the twin is the check (test_methods.py).
CONSTANT_WEIGHT = {"maspo": {"gate_gradient": True}}
DIFFERENTIABLE = {
    name: method.with_(**CONSTANT_WEIGHT.get(method.mode, {}))
    for name, method in METHODS.items()
    if CONSTANT_WEIGHT.get(method.mode, {}) is not None
}


@pytest.mark.parametrize("mode", CONSTANT_WEIGHT)
def test_a_constant_weight_is_not_differentiated(mode, device):
    batch = smooth_batch(device)

    def loss(log_prob):
        return op(**{**batch, "log_prob": log_prob}, **DEFAULT_METHODS[mode].keywords)[0]

    assert not torch.autograd.gradcheck(loss, (batch["log_prob"].requires_grad_(),), raise_exception=False)


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["without options", "with options"])
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("method", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
def test_every_method_passes_gradcheck(method, loss_agg_mode, options, device):
    batch = smooth_batch(device, entropy=bool(options) or method.mode == "entropy_adv", ref_log_prob=bool(options))

    def loss(log_prob):
        return op(
            **{**batch, "log_prob": log_prob}, loss_agg_mode=loss_agg_mode, **method.keywords, **method.takes(options)
        )[0]

    assert torch.autograd.gradcheck(loss, (batch["log_prob"].requires_grad_(),), fast_mode=False)


def test_gate_gradient_changes_only_gated_tokens(device):
    batch = smooth_batch(device)
    frozen, through = run(batch, **HYPER), run(batch, gate_gradient=True, **HYPER)
    gated = (batch["log_prob"] - batch["old_log_prob"]) * batch["advantages"] > 0
    gated &= batch["response_mask"] != 0
    assert gated.any() and torch.equal(frozen.grad != through.grad, gated)
    assert torch.equal(frozen.loss, through.loss) and torch.equal(frozen.stats, through.stats)


@pytest.mark.parametrize("gate_gradient", [False, True])
def test_gradient_of_one_token_by_hand(gate_gradient, device):
    # exp(-0.3 * -2) = 1.822 is the mass; the risk factor is 1 + 0.03 * 2.
    old, new, adv = -2.0, -1.2, 2.0
    sigma = math.exp(0.3 * 2.0) * 1.06
    ratio = math.exp(new - old)
    expected = -adv * math.exp(-((ratio - 1) ** 2) / (2 * sigma**2)) * ratio
    if gate_gradient:
        expected *= 1 - ratio * (ratio - 1) / sigma**2
    tensors = (torch.tensor([[value]], dtype=torch.float64, device=device) for value in (new, old, adv, 1.0))
    batch = dict(zip(("log_prob", "old_log_prob", "advantages", "response_mask"), tensors, strict=True))
    assert float(run(batch, gate_gradient=gate_gradient).grad) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    "difference, passes", [(20.0, True), (-20.0, True), (20.0 + 2**-10, False), (-20.0 - 2**-10, False)]
)
@pytest.mark.parametrize("gate_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_passes_at_the_clamp_and_stops_outside(dtype, gate_gradient, difference, passes, device):
    one = torch.ones(1, 1, dtype=dtype, device=device)
    # The side on which no gate closes: A < 0 above ratio 1, A > 0 below.
    advantage = -one if difference > 0 else one
    batch = {"log_prob": difference * one, "old_log_prob": 0 * one, "advantages": advantage, "response_mask": one}
    result = run(batch, gate_gradient=gate_gradient)
    assert float(result.loss) == pytest.approx(-float(advantage) * math.exp(math.copysign(20, difference)), rel=1e-6)
    assert float(result.grad) == (float(result.loss) if passes else 0.0)


def test_closed_gate_has_slope_zero_and_no_nan(device):
    """Ratio e^20 at sigma 1: the gate underflows to 0 while the slope's factor is 1e17."""
    one = torch.ones(1, 1, device=device)
    batch = {"log_prob": 19.9 * one, "old_log_prob": 0 * one, "advantages": one, "response_mask": one}
    for gate_gradient in (False, True):
        result = run(batch, gate_gradient=gate_gradient)
        assert float(result.loss) == 0.0 and float(result.grad) == 0.0


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_upstream_gradient_scales_and_keeps_dtype(dtype, device):
    batch = random_batch(5, 7, dtype=dtype, device=device)
    # A power of two, so that scaling and rounding commute.
    one, eight = run(batch), run(batch, upstream=8.0)
    assert one.grad.dtype == dtype and one.grad.any()
    assert torch.equal(eight.grad, one.grad * 8)


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["without options", "with options"])
@every_mode
def test_only_log_prob_gets_a_gradient(method, options, device):
    batch = {
        name: v.requires_grad_() if v.is_floating_point() else v
        for name, v in (method.full_batch if options else method.batch)(3, 5, device=device).items()
    }
    loss, stats = op(**batch, **method.keywords, **method.takes(options))
    loss.backward(retain_graph=True)
    first = batch["log_prob"].grad.clone()
    loss.backward()
    assert first.any() and torch.equal(batch["log_prob"].grad, 2 * first)
    assert all(batch[name].grad is None for name in ALL_TENSORS[1:] if name in batch)
    assert not stats.requires_grad


def test_backward_of_statistics_alone_is_refused(device):
    batch = random_batch(3, 5, device=device)
    _, stats = op(**{**batch, "log_prob": batch["log_prob"].requires_grad_()})
    with pytest.raises(RuntimeError, match="does not require grad"):
        stats.sum().backward()


FACTORS = (1.0, -3.0, 0.5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_batch_of_gradients_of_the_loss(device):
    """vmap has no numbers to look at, and nothing of its size can be written over what is saved."""
    batch = random_batch(3, 5, device=device)
    log_prob = batch.pop("log_prob").requires_grad_()
    (expected,) = torch.autograd.grad(op(log_prob, **batch)[0], log_prob)
    factors = torch.tensor(FACTORS, dtype=torch.float64, device=device)
    (grads,) = torch.autograd.grad(op(log_prob, **batch)[0], log_prob, factors, is_grads_batched=True)
    jacobian = torch.autograd.functional.jacobian(lambda x: op(x, **batch)[0], log_prob.detach(), vectorize=True)
    loss = op(log_prob, **batch)[0]
    mapped = torch.func.vmap(lambda factor: torch.autograd.grad(loss, log_prob, factor)[0])(factors)
    for factor, *both in zip(FACTORS, grads, mapped, strict=True):
        for grad in both:
            # A GPU multiplies the scale by the factor first.
            torch.testing.assert_close(grad, expected * factor, rtol=0 if device == "cpu" else 1e-15, atol=0)
    assert torch.equal(jacobian, expected) and expected.any()


def test_backward_of_shapes_alone():
    batch = {name: value.to("meta") for name, value in random_batch(3, 5).items()}
    batch["log_prob"].requires_grad_()
    op(**batch)[0].backward()
    assert batch["log_prob"].grad.shape == (3, 5) and batch["log_prob"].grad.is_meta


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_a_backward_pass_traced_by_make_fx(tracing_mode):
    """No number of the traced call is built in, such as the gradient 1 that it starts with."""

    def gradient(factor, log_prob, *others):
        return torch.autograd.grad(op(log_prob, *others)[0], log_prob, factor)[0]

    batch = random_batch(3, 5, weights=False)
    log_prob = batch.pop("log_prob").requires_grad_()
    traced = make_fx(gradient, tracing_mode=tracing_mode)(torch.ones(()).double(), log_prob, *batch.values())
    for factor in (1.0, -3.0):
        arguments = (torch.tensor(factor, dtype=torch.float64), log_prob + 0.1, *batch.values())
        assert torch.equal(traced(*arguments), gradient(*arguments))
    assert not any("_out" in str(node.target) for node in traced.graph.nodes), "a graph without writing"


def test_second_derivative_raises_and_says_so(device):
    batch = random_batch(3, 5, device=device)
    log_prob = batch.pop("log_prob").requires_grad_()
    loss, _ = op(log_prob, **batch)
    (grad,) = torch.autograd.grad(loss, log_prob, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative.*reference.loss"):
        torch.autograd.grad(grad.sum(), log_prob)

    loss, _ = reference(log_prob, **batch)
    (grad,) = torch.autograd.grad(loss, log_prob, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), log_prob)
    # With the gate frozen every derivative of A F rho is itself.
    torch.testing.assert_close(second, grad)


@every_mode
def test_derivatives_that_no_method_has(method, device):
    batch = method.full_batch(3, 5, device=device)
    log_prob = batch.pop("log_prob").requires_grad_()
    loss, _ = op(log_prob, **batch, **method.keywords, **method.takes(OPTIONS))
    (grad,) = torch.autograd.grad(loss, log_prob, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative.*reference.loss"):
        torch.autograd.grad(grad.sum(), log_prob)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(log_prob.detach(), torch.ones_like(log_prob))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative.*reference.loss"):
            op(dual, **batch, **method.keywords, **method.takes(OPTIONS))


def test_forward_mode_raises_and_says_so(device):
    batch = random_batch(3, 5, device=device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(batch["log_prob"], torch.ones_like(batch["log_prob"]))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative.*reference.loss"):
            op(**{**batch, "log_prob": dual})


@pytest.mark.parametrize("name", [name for name in ALL_TENSORS if name != "response_mask"])
@pytest.mark.parametrize("front", [op, maspo_ext.policy_loss], ids=["op", "policy_loss"])
def test_other_derivatives_are_refused_for_every_tensor(name, front, device):
    """They would be 0 in silence, whether log_prob is trained or not."""
    batch = {**DEFAULT_METHODS["maspo"].full_batch(3, 5, device=device), "kl_coef": 0.1}
    value = batch.pop(name)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(value, torch.ones_like(value))
        with pytest.raises(NotImplementedError, match=f"no forward-mode derivative: expected {name} without a tangent"):
            front(**batch, **{name: dual})
    with pytest.raises(NotImplementedError, match=r"no derivative by torch\.func"):
        torch.func.grad(lambda value: front(**batch, **{name: value})[0])(value)


def test_gradient_flows_into_a_model(device):
    """log_prob as a graph node, not a leaf: the chain rule through log_softmax, as training does it."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, 11, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    tokens = torch.randint(11, (3, 5, 1), generator=generator).to(device)
    batch = random_batch(3, 5, device=device)
    grads = []
    for function in (op, reference):
        log_prob = logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
        loss, _ = function(**{**batch, "old_log_prob": log_prob.detach() - 0.1, "log_prob": log_prob})
        grads += torch.autograd.grad(loss, logits)
    assert grads[0].any()
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-15)


def test_torch_func_is_refused_with_what_to_do(device):
    batch = random_batch(4, 6, device=device)
    others = {name: value for name, value in batch.items() if name != "log_prob"}
    for function in (op, maspo_ext.policy_loss):
        with pytest.raises(NotImplementedError, match=r"loss has no derivative by torch\.func.*loss\.backward\(\)"):
            torch.func.grad(lambda log_prob: function(log_prob, **others)[0])(batch["log_prob"])
