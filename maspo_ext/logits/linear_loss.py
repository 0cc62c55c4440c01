"""``torch.ops.maspo.linear_loss``: from hidden states to the policy loss, with the gradients made on the way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library, register_fake

from maspo_ext.checks.rollout_is import parse_threshold
from maspo_ext.checks.tensors import check_tensors
from maspo_ext.config import config_for
from maspo_ext.derivatives import (
    is_known_one,
    is_plain,
    may_be_differentiated_otherwise,
    needs_dispatcher,
    refuse_gradient_of_old,
    refuse_other_derivatives,
    refuse_transforms,
    without_second,
)
from maspo_ext.errors import message
from maspo_ext.fronts import keywords_of
from maspo_ext.functional import policy_loss
from maspo_ext.logits import checks
from maspo_ext.logits.checks import MASKED
from maspo_ext.logits.groups import LogprobOptions
from maspo_ext.logits.head import Gradients, Head
from maspo_ext.logits.linear_logprob import asks_for_gradient, flat, linear_logprob, needed, way_of
from maspo_ext.logits.logprob import empty_results
from maspo_ext.logits.loss_of_tokens import LossOfTokens, masked, with_old
from maspo_ext.methods import BapoConfig, MethodConfig
from maspo_ext.ops import prepared, take_config
from maspo_ext.stats import INVALID_TARGETS, NUM_STATS, PolicyLossStats, stat_names

_library = Library("maspo", "IMPL")
_TWIN = "maspo_ext.logits.reference.linear_loss"
# What goes on to the policy loss, whose log_prob and entropy are made here.
_OPTIONS = frozenset(keywords_of(policy_loss)) - {"log_prob", "entropy"}


class LinearLossOutput(NamedTuple):
    """What :func:`linear_loss` returns.

    Attributes:
        loss: scalar, differentiable in ``hidden``, ``weight`` and ``bias``; float64 for float64 inputs, else float32.
        stats: named statistics, still on the device.
        log_prob, entropy: of each token, without gradient, nats; 0 where masked.
    """

    loss: Tensor
    stats: PolicyLossStats
    log_prob: Tensor
    entropy: Tensor


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    old_log_prob: Tensor | None,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    memory_budget: int | None = None,
    entropy_coef: float = 0.0,
    ratio_mode: str = "maspo",
    config: MethodConfig | None = None,
    **options: Any,
) -> LinearLossOutput:
    """:func:`maspo_ext.policy_loss` of :func:`maspo_ext.linear_logprob`, in three matrix products and without the logits.

    The loss divides by counts that are known before the first group of tokens. So a group's logits become their own gradient
    at once, and the gradients of ``hidden`` and ``weight`` are there when the forward pass is: logits need not be made
    again. They wait in float32, one of the size of ``weight`` among them, and backward hands them over, once.

    On a CPU the logits of the first tokens, about as many as ``H``, lie in the memory of the weight's gradient: up to there it is
    the fastest. On a GPU the logits' gradients are kept for products of many tokens: of all, ``2 V`` bytes a token in half precision, where
    they fit into the budget, else of groups, whose parts of the weight's gradient are added up in float32. A bfloat16 ``weight`` needs ``4 V H``
    bytes for such sums. Where a budget is less, as many gradients as fit are kept, in the memory of the weight's gradient, too, and the
    other logits are made again: up to four products in place of three. bfloat16 gradients wait in bfloat16 there: rounded once, and once
    more by backward where the gradient of the loss is no power of two.

    ``bapo`` needs all log-probabilities before the first gradient: it takes the two functions one after the other.

    Args:
        hidden, weight, target, temperature, bias: as of :func:`maspo_ext.linear_logprob`, ``hidden``
            ``[B, T, H]`` and ``target`` ``[B, T]``; with ``cu_seqlens`` ``[total_tokens, H]`` and ``[total_tokens]``. Masked
            tokens are not used, whatever their target.
        memory_budget: bytes for what is held meanwhile beyond the results; None: 128 MiB on a CPU, 512 MiB on a GPU, and there ``4 V H`` more for
            a bfloat16 ``weight`` that is trained. At least the logits of a tile of tokens are held, as in
            :func:`maspo_ext.linear_logprob`, and where logits are made again a float32 gradient of ``hidden`` and those of 256 words.
        entropy_coef: weight of an entropy bonus: the tokens' entropies, aggregated as their losses are, are taken off the loss so
            many times; not with ``bapo``. A term of your own in the ``entropy`` that is returned has no gradient.
        old_log_prob, advantages, response_mask, ratio_mode, config, **options: as of :func:`maspo_ext.policy_loss`, but for
            ``entropy``: where the advantages are shaped by it (``ratio_mode="entropy_adv"``, ``entropy_alpha``), it is the
            one made here. An ``old_log_prob`` of None is the ``log_prob`` made here.

    Returns:
        ``LinearLossOutput(loss, stats, log_prob, entropy)``; ``log_prob`` has the bits of :func:`maspo_ext.linear_logprob`
        for the same tensors and budget.

    Raises:
        TypeError, ValueError: an argument is wrong.
        RuntimeError: a second backward pass, a second derivative, or a target out of range on a CPU.
        IndexError: by ``stats.to_dict()``, if an unmasked target was out of range on a GPU.

    Source: ``LigerFusedLinearGRPOLoss`` of Liger-Kernel for the idea of gradients made in the forward pass.
    """
    refuse_what_is_made(options)
    hyper = {name: options.pop(name) for name in list(options) if name not in _OPTIONS}
    method = config_for(ratio_mode, config, hyper, "linear_loss")
    shaped = method.entropy_adv() is not None or options.get("entropy_alpha", 0.0) != 0
    policy = (old_log_prob, advantages, response_mask)
    refuse_bonus(method, ratio_mode, entropy_coef)
    if isinstance(method, BapoConfig):
        checks.check_head(hidden, weight, target, temperature, bias)
        packed = {name: options.get(name) for name in ("cu_seqlens", "max_seqlen")}
        checks.check_tokens(hidden, packed["cu_seqlens"] is not None)
        check_tensors(hidden[..., 0], *with_old(policy, hidden[..., 0]), **packed, of="target")
        log_prob, entropy = linear_logprob(
            hidden, weight, masked(target, response_mask), temperature, bias, ignore_index=MASKED, memory_budget=memory_budget
        )
        loss, stats = policy_loss(
            log_prob, *policy, ratio_mode=ratio_mode, config=method, entropy=entropy.detach() if shaped else None, **options
        )  # fmt: skip
        stats = _with_invalid_targets(stats, target, response_mask, weight)
        return LinearLossOutput(loss, stats, log_prob.detach(), entropy.detach())
    if options.pop("all_reduce_sums", None) is not None:
        raise ValueError(message("all_reduce_sums", "None, since only bapo has sums", "a function", "Drop it."))
    threshold = options.pop("rollout_is_threshold", None)
    options["rollout_is_lower"], options["rollout_is_upper"] = parse_threshold(threshold, options.get("rollout_is_weights") is not None)
    op = torch.ops.maspo.linear_loss if needs_dispatcher() else _linear_loss
    loss, stats, log_prob, entropy = op(
        hidden, weight, target, *policy, temperature, bias, memory_budget=memory_budget, entropy_coef=entropy_coef,
        **options, **method.op_keywords(ratio_mode),
    )  # fmt: skip
    names = stat_names(
        ratio_mode,
        entropy_adv=shaped,
        ref_kl=options.get("ref_log_prob") is not None,
        rollout_is=threshold is not None,
    )
    stats = _with_invalid_targets(PolicyLossStats(stats, names), target, response_mask, weight)
    return LinearLossOutput(loss, stats, log_prob, entropy)


def keywords_of_linear_loss() -> tuple[str, ...]:
    """With those that it takes as ``**options``."""
    return tuple(dict.fromkeys((*keywords_of(linear_loss), *sorted(_OPTIONS))))


def refuse_bonus(method: MethodConfig, ratio_mode: str, entropy_coef: float) -> None:
    """An entropy bonus where the loss is not made of one token after the other."""
    if isinstance(method, BapoConfig) and entropy_coef != 0:
        remedy = "Add the bonus to policy_loss of linear_logprob, whose entropy is differentiable."
        raise ValueError(message("entropy_coef", f"0 for ratio_mode={ratio_mode!r}", repr(entropy_coef), remedy))


_MADE_HERE = {
    "log_prob": "Drop it, or call policy_loss, which takes it.",
    "entropy": "Drop it; entropy_alpha and entropy_kappa say how it shapes the advantages.",
}


def refuse_what_is_made(options: dict[str, Any]) -> None:
    """The two arguments of ``policy_loss`` that are made here; a None is taken out of ``options``."""
    for name, remedy in _MADE_HERE.items():
        if options.pop(name, None) is not None:
            raise ValueError(message(name, "nothing, since linear_loss makes it", "a value", remedy))


def _with_invalid_targets(
    stats: PolicyLossStats, target: Tensor, response_mask: Tensor, weight: Tensor
) -> PolicyLossStats:
    """With the count of targets out of range, where the op did not look at them: on a GPU it does not wait for them."""
    if not weight.is_cuda:
        return stats
    invalid = checks.is_outside(target, weight.shape[0]) & (response_mask != 0)
    count = invalid.sum(dtype=stats.tensor.dtype)
    return PolicyLossStats(torch.cat([stats.tensor, count.reshape(1)]), (*stats.names, INVALID_TARGETS))


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, policy, temperature, keywords):
        need = needed(ctx.needs_input_grad, hidden=0, weight=1, bias=2)
        *results, grad_hidden, grad_weight, grad_bias = _pass(hidden, weight)(
            hidden, weight, target, *policy, temperature, bias, **keywords, **need
        )
        ctx.grads = [grad_hidden, grad_weight, grad_bias]
        ctx.save_for_backward(hidden, weight, bias)
        ctx.asked, ctx.dtype = list(need.values()), weight.dtype
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        if grad_loss is None:
            return (None,) * 7
        if ctx.grads is None:
            got = "a second (retain_graph=True), after the gradients made in the forward pass were handed over"
            remedy = "Call it again, or use linear_logprob and policy_loss."
            raise RuntimeError(message("torch.ops.maspo.linear_loss", "one backward pass", got, remedy))
        grads, ctx.grads = ctx.grads, None
        hidden, weight, bias = ctx.saved_tensors
        others = (weight, bias, grad_loss)
        with torch.no_grad():  # which without_second stands for
            grads = [_scaled(grad, grad_loss, ctx.dtype) if asked else None for grad, asked in zip(grads, ctx.asked, strict=True)]
        if grads[0] is not None:
            grads[0] = grads[0].view(hidden.shape)
        return *(None if grad is None else without_second(grad, hidden, "linear_loss", _TWIN, *others) for grad in grads), None, None, None, None


def _scaled(grad: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """``grad * by`` as ``dtype``, in the memory of ``grad``, which nobody else has, where that can be."""
    by = by.reshape(1)  # without a dimension it would be rounded to the dtype of grad before the product
    if not is_plain(grad, by):  # as where torch.compile traces it, and finds the memory itself
        return (grad * by).to(dtype)
    if grad.dtype != dtype:
        return torch.mul(grad, by, out=torch.empty_like(grad, dtype=dtype))
    if grad.is_cuda:
        torch.ops.maspo.scale_(grad, by)
        return grad
    return grad if is_known_one(by) else grad.mul_(by)


def _linear_loss(
    hidden, weight, target, old_log_prob, advantages, response_mask, temperature=1.0, bias=None, *, memory_budget=None,
    entropy_coef=0.0, **keywords,
):  # fmt: skip
    """Kernel of ``maspo::linear_loss`` on every device."""
    checks.check_head(hidden, weight, target, temperature, bias)
    if may_be_differentiated_otherwise():
        inputs = {"hidden": hidden, "weight": weight, "bias": bias, "old_log_prob": old_log_prob, "advantages": advantages}
        inputs |= {name: keywords.get(name) for name in ("rollout_is_weights", "ref_log_prob")}
        refuse_other_derivatives(inputs, "linear_loss", _TWIN)
    refuse_what_is_made(keywords)
    config, ratio_mode = take_config(keywords)
    if isinstance(config, BapoConfig):
        remedy = "Use maspo_ext.linear_loss, which takes the two ops one after the other."
        what, expected = "torch.ops.maspo.linear_loss: ratio_mode", "one that needs no pass over all tokens first"
        raise ValueError(message(what, expected, repr(ratio_mode), remedy))
    checks.check_entropy_coef(entropy_coef)
    checks.check_tokens(hidden, keywords.get("cu_seqlens") is not None)
    shaped = config.entropy_adv() is not None or keywords.get("entropy_alpha", 0.0) != 0
    # Stands for the log-probabilities and the entropy, which have its shape and device.
    like = hidden[..., 0]
    policy = (old_log_prob, advantages, response_mask)
    _, keywords = prepared(
        config, ratio_mode, like, *with_old(policy, like), entropy=like if shaped else None, of="target", **keywords
    )
    keywords |= {"entropy": None, "shaped": shaped, "entropy_coef": float(entropy_coef)}
    keywords["memory_budget"] = checks.memory_budget_of(memory_budget)
    if asks_for_gradient(hidden, weight, bias):
        refuse_transforms("torch.ops.maspo.linear_loss", _TWIN)
        return _LinearLoss.apply(hidden, weight, bias, target, policy, temperature, keywords)
    refuse_gradient_of_old("hidden and weight do", old_log_prob)
    none = {"need_hidden": False, "need_weight": False, "need_bias": False}
    with torch.no_grad():
        return _pass(hidden, weight)(hidden, weight, target, *policy, temperature, bias, **keywords, **none)[:4]


def _pass(hidden: Tensor, weight: Tensor) -> Callable:
    """``maspo::linear_loss_forward``, or its kernel where nobody traces: while the dispatcher looks at so many arguments a GPU waits."""
    return _forward if is_plain(hidden, weight) else torch.ops.maspo.linear_loss_forward


def _forward(
    hidden, weight, target, old_log_prob, advantages, response_mask, temperature=1.0, bias=None, *,
    memory_budget=None, rollout_is_weights=None, ref_log_prob=None, cu_seqlens=None, max_seqlen=None, shaped=False,
    entropy_coef=0.0, need_hidden=True, need_weight=True, need_bias=False, **keywords,
):  # fmt: skip
    """By some tokens at a time: logits, log-probability, its part of the loss, the logits' gradient, its products."""
    checks.check_target(target, hidden.shape[:-1], hidden.device, "hidden")
    head = flat(hidden, weight, bias, memory_budget)
    logprob_options = LogprobOptions(temperature, MASKED)

    @functools.cache
    def loss_of_tokens() -> LossOfTokens:
        """Made when it is asked for: a GPU has the first logits to make meanwhile."""
        options = {**keywords, "rollout_is_weights": rollout_is_weights, "ref_log_prob": ref_log_prob}
        return LossOfTokens(
            head, target, (old_log_prob, advantages, response_mask), options,
            cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, shaped=shaped, entropy_coef=entropy_coef,
        )  # fmt: skip

    grads = Gradients(None, None, None)
    if need_hidden or need_weight or need_bias:
        grads = way_of(head).gradients(
            head, loss_of_tokens, logprob_options, hidden=need_hidden, weight=need_weight, bias=need_bias
        )
    else:
        for _, rows in way_of(head).results(head, loss_of_tokens().target, logprob_options):
            loss_of_tokens().keep(rows)
    results = grads.results(weight)
    if loss_of_tokens().half is not None:
        results = tuple(grad.mul_(loss_of_tokens().half) for grad in results)
    return *loss_of_tokens().of_all(), *results


_library.impl("linear_loss", _linear_loss, "CompositeImplicitAutograd")
for _key in ("CPU", "CUDA"):
    _library.impl("linear_loss_forward", _forward, _key)


@register_fake("maspo::linear_loss_forward")
def _(
    hidden, weight, target, old_log_prob, advantages, response_mask, temperature=1.0, bias=None, *,
    need_hidden=True, need_weight=True, need_bias=False, **_keywords,
):  # fmt: skip
    log_prob, entropy, _ = empty_results(weight, target.shape)
    waiting = Head(hidden, weight, bias, None).gradient_dtype
    return (
        log_prob.new_empty(()),
        log_prob.new_empty((NUM_STATS,), dtype=torch.float64),
        log_prob,
        entropy,
        log_prob.new_empty((target.numel(), hidden.shape[-1]) if need_hidden else 0, dtype=waiting if need_hidden else weight.dtype),
        log_prob.new_empty(weight.shape if need_weight else 0, dtype=waiting if need_weight else weight.dtype),
        log_prob.new_empty(weight.shape[:1] if need_bias else 0, dtype=log_prob.dtype if need_bias else weight.dtype),
    )
