"""``torch.ops.maspo.loss``: the checked, differentiable op on top of the compiled forward and backward.

Schemas and defaults: ``csrc/torch/schemas.cpp``. Importing this module registers the kernels below.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.library import Library, register_fake

from maspo_ext import checks
from maspo_ext.stats import STAT_NAMES

# Registrations live as long as this object.
_library = Library("maspo", "IMPL")


class _SecondDerivative(torch.autograd.Function):
    """The identity on the gradient, in the graph only so that asking for its derivative raises."""

    @staticmethod
    def forward(ctx, grad, log_prob):
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError(
            "maspo_ext: torch.ops.maspo.loss has no second derivative: expected one backward pass, got a derivative of the "
            "gradient (create_graph=True, gradient penalty, Hessian). Use maspo_ext.reference.maspo_loss for that."
        )


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_prob, old_log_prob, advantages, response_mask, keywords):
        loss, stats, dlogp, row_scale = torch.ops.maspo.loss_forward(
            log_prob, old_log_prob, advantages, response_mask, **keywords, need_grad=True
        )
        ctx.save_for_backward(log_prob, dlogp, row_scale)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return loss, stats

    @staticmethod
    def backward(ctx, grad_loss, _grad_stats):
        if grad_loss is None:
            return None, None, None, None, None
        log_prob, dlogp, row_scale = ctx.saved_tensors
        grad = torch.ops.maspo.loss_backward(grad_loss, dlogp, row_scale, log_prob.dtype)
        if torch.is_grad_enabled():
            grad = _SecondDerivative.apply(grad, log_prob)
        return grad, None, None, None, None


def _loss(
    log_prob,
    old_log_prob,
    advantages,
    response_mask,
    *,
    rollout_is_weights=None,
    sigma_base=1.0,
    alpha=0.3,
    sigma_high=10.0,
    adv_low=0.1,
    adv_high=10.0,
    beta_pos=0.03,
    beta_neg=0.03,
    loss_agg_mode="token-mean",
    dp_size=1,
    batch_num_tokens=None,
    global_batch_size=None,
    loss_scale_factor=None,
    gate_gradient=False,
    clip_ratio_low=0.2,
    clip_ratio_high=0.2,
    clip_ratio_c=3.0,
):
    """Kernel of ``maspo::loss`` on every device; the dispatcher drops arguments at their default, so it repeats them."""
    checks.check_tensors(log_prob, old_log_prob, advantages, response_mask, rollout_is_weights)
    checks.check_maspo_hyper(sigma_base, alpha, sigma_high, adv_low, adv_high, beta_pos, beta_neg)
    checks.check_clip_ratios(clip_ratio_low, clip_ratio_high, clip_ratio_c)
    checks.check_aggregation(loss_agg_mode, dp_size, batch_num_tokens, global_batch_size, loss_scale_factor)
    keywords = {
        "rollout_is_weights": rollout_is_weights,
        "sigma_base": sigma_base,
        "alpha": alpha,
        "sigma_high": sigma_high,
        "adv_low": adv_low,
        "adv_high": adv_high,
        "beta_pos": beta_pos,
        "beta_neg": beta_neg,
        "loss_agg_mode": loss_agg_mode,
        "dp_size": dp_size,
        "batch_num_tokens": batch_num_tokens,
        "global_batch_size": global_batch_size,
        "loss_scale_factor": loss_scale_factor,
        "gate_gradient": gate_gradient,
        "clip_ratio_low": clip_ratio_low,
        "clip_ratio_high": clip_ratio_high,
        "clip_ratio_c": clip_ratio_c,
    }
    if forward_ad.unpack_dual(log_prob).tangent is not None:
        # Without this, the tangent would be dropped in silence.
        raise NotImplementedError(
            "maspo_ext: torch.ops.maspo.loss has no forward-mode derivative: expected a log_prob without a tangent, got a dual "
            "tensor. Use reverse mode (loss.backward()), or maspo_ext.reference.maspo_loss."
        )
    if torch.is_grad_enabled() and log_prob.requires_grad:
        return _Loss.apply(log_prob, old_log_prob, advantages, response_mask, keywords)
    return torch.ops.maspo.loss_forward(log_prob, old_log_prob, advantages, response_mask, **keywords, need_grad=False)[:2]


_library.impl("loss", _loss, "CompositeImplicitAutograd")


def _arithmetic_dtype(log_prob: torch.Tensor) -> torch.dtype:
    return torch.float64 if log_prob.dtype == torch.float64 else torch.float32


@register_fake("maspo::loss_forward")
def _(log_prob, old_log_prob, advantages, response_mask, *, rollout_is_weights=None, need_grad=True, **_keywords):
    checks.check_tensors(log_prob, old_log_prob, advantages, response_mask, rollout_is_weights)
    rows, cols = log_prob.shape
    dtype = _arithmetic_dtype(log_prob)
    return (
        log_prob.new_empty((), dtype=dtype),
        log_prob.new_empty((len(STAT_NAMES),), dtype=torch.float64),
        log_prob.new_empty((rows if need_grad else 0, cols), dtype=dtype),
        log_prob.new_empty((rows,), dtype=torch.float64),
    )


@register_fake("maspo::loss_backward")
def _(grad_loss, dlogp, row_scale, dtype):
    return dlogp.new_empty(dlogp.shape, dtype=dtype)
