"""The same loss in plain torch: documentation of the op, oracle of its tests, and a form with second derivatives.

Slower and larger in memory than ``torch.ops.maspo.loss``; nothing falls back to it. The formula of each method is
``token_loss`` of its config class in ``maspo_ext.methods``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maspo_ext.errors import did_you_mean, message
from maspo_ext.fronts import keywords_of
from maspo_ext.methods import MaspoConfig, MethodConfig
from maspo_ext.methods.base import Token, TokenLoss
from maspo_ext.methods.entropy_adv import entropy_bonus
from maspo_ext.ops import prepared, take_config
from maspo_ext.stats import METHOD_SLOTS

MAX_LOG_RATIO = 20.0
MAX_K3 = 10.0


def _column(value: Tensor) -> Tensor:
    return value.unsqueeze(-1) if value.dim() == 1 else value


def aggregate(
    token_loss: Tensor,
    mask: Tensor,
    loss_agg_mode: str = "token-mean",
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: float | None = None,
) -> Tensor:
    """One number from ``token_loss`` ``[B, T]`` with weights ``mask`` ``[B, T]``; the rules of verl 0.9.1's ``agg_loss``."""
    row_tokens = mask.sum(-1)
    tokens = row_tokens.sum() if batch_num_tokens is None else batch_num_tokens
    rows = (row_tokens > 0).sum() if global_batch_size is None else global_batch_size
    row_loss = (token_loss * mask).sum(-1)
    if loss_agg_mode == "token-mean":
        scale = torch.full_like(row_loss, dp_size) / tokens
    elif loss_agg_mode == "token-sum":
        scale = torch.full_like(row_loss, dp_size)
    else:
        scale = torch.full_like(row_loss, dp_size) / rows
    if loss_agg_mode == "seq-mean-token-mean":
        scale = scale / row_tokens
    elif loss_agg_mode == "seq-mean-token-sum-norm":
        scale = scale / (loss_scale_factor or mask.shape[-1])
    scale = torch.where(row_tokens < 0, torch.nan, scale)  # no count
    empty = row_tokens == 0
    return torch.where(empty, 0, row_loss * torch.where(empty, 0, scale)).sum()


def kl_penalty(log_prob: Tensor, ref_log_prob: Tensor, kl_type: str) -> Tensor:
    """The estimate of KL(policy || reference) per token; the rules of verl 0.9.1's ``kl_penalty``, and of TRL 1.16."""
    difference = log_prob - ref_log_prob
    if kl_type.endswith("+"):
        k2 = 0.5 * difference**2
        return k2 - k2.detach() + kl_penalty(log_prob, ref_log_prob, kl_type[:-1]).detach()
    if kl_type in ("k1", "kl"):
        return difference
    if kl_type == "abs":
        return difference.abs()
    if kl_type in ("k2", "mse"):
        return 0.5 * difference**2
    bound, highest = (torch.inf, torch.inf) if kl_type == "k3_unbounded" else (MAX_LOG_RATIO, MAX_K3)
    x = clamped(-difference, -bound, bound)
    return clamped(x.exp() - x - 1, -highest, highest)


def bounded_weights(weights: Tensor, lower: float | None, upper: float | None) -> tuple[Tensor, Tensor]:
    """The rollout's weights within their bounds, and which were not: one bound truncates (TIS), two set to 0 (IcePop)."""
    if upper is None:
        return weights, torch.zeros_like(weights, dtype=torch.bool)
    outside = weights > upper
    if lower is not None:
        outside = outside | (weights < lower)
    return torch.where(outside, upper if lower is None else 0.0, weights), outside


def clamped(value: Tensor, low: float, high: float) -> Tensor:
    """``value.clamp(low, high)`` whose gradient passes at the bounds; torch's does or does not, by its version."""
    return torch.where(value > high, high, torch.where(value < low, low, value))


def loss(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor, **keywords: Any
) -> tuple[Tensor, Tensor]:
    """Plain-torch twin of ``torch.ops.maspo.loss``: same arguments, same checks, same results ``(loss, stats)``.

    Not in the twin: ``bapo_sums`` (it searches the tokens it is given) and packed tensors (pad them).

    Raises:
        TypeError, ValueError: an argument is wrong.
        NotImplementedError: it is not in the twin.

    Source: the config class of each mode.
    """
    for name in keywords:
        if name not in _ARGUMENTS:
            remedy = did_you_mean(name, _ARGUMENTS, "Check the spelling.")
            raise TypeError(message("reference.loss", "keywords of torch.ops.maspo.loss", name, remedy))
    for name in ("bapo_sums", "cu_seqlens", "max_seqlen"):
        if keywords.pop(name, None) is not None:
            raise NotImplementedError(
                message(f"reference.loss: {name}", "None", "a value", "Use torch.ops.maspo.loss.")
            )
    config, ratio_mode = take_config(keywords)
    tensors = (log_prob, old_log_prob, advantages, response_mask)
    prepared(config, ratio_mode, *tensors, **keywords, search=False)
    return unchecked_loss(config, *tensors, **keywords)


def unchecked_loss(
    config: MethodConfig,
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    rollout_is_weights: Tensor | None = None,
    loss_agg_mode: str | None = None,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: float | None = None,
    dual_clip: bool = False,
    entropy: Tensor | None = None,
    entropy_alpha: float = 0.0,
    entropy_kappa: float = 2.0,
    ref_log_prob: Tensor | None = None,
    kl_type: str = "k3",
    kl_coef: float = 0.0,
    rollout_is_lower: float | None = None,
    rollout_is_upper: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The formula of :func:`loss`, of whatever it is given: the reference implementations take settings that the op refuses."""
    dtype = torch.float64 if log_prob.dtype == torch.float64 else torch.float32
    mask = response_mask.to(dtype)
    valid = mask != 0

    def unmasked(value: Tensor, otherwise: float = 0.0) -> Tensor:
        return torch.where(valid, _column(value).to(dtype), otherwise)

    new, old, adv = unmasked(log_prob), unmasked(old_log_prob), unmasked(advantages)
    is_weights = torch.ones_like(mask) if rollout_is_weights is None else unmasked(rollout_is_weights, 1.0)
    inputs = [new, old, adv, is_weights]
    bonus = torch.zeros_like(mask)
    if entropy is not None:
        inputs.append(unmasked(entropy))
        bonus = entropy_bonus(adv, inputs[-1], *(config.entropy_adv() or (entropy_alpha, entropy_kappa)))
        adv = adv + bonus

    difference = new - old
    log_ratio = clamped(difference, -MAX_LOG_RATIO if config.clamp_low else -torch.inf, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    beyond_c = (adv < 0) & (ratio > config.clip_ratio_c)
    stopped = (log_ratio < difference) | (log_ratio > difference)  # by the clamp; no NaN, which has to be seen
    bounded = ratio
    if dual_clip or config.dual_clip:
        bounded, stopped = torch.where(beyond_c, config.clip_ratio_c, ratio), stopped | beyond_c
    token = config.token_loss(Token(bounded, old, adv, mask, ratio.detach(), torch.where(stopped, new.detach(), new)))

    is_weights, outside = bounded_weights(is_weights, rollout_is_lower, rollout_is_upper)
    token_loss = token.loss * is_weights
    ref_kl = torch.zeros_like(mask)
    if ref_log_prob is not None:
        inputs.append(unmasked(ref_log_prob))
        ref_kl = kl_penalty(new, inputs[-1], kl_type)
        token_loss = token_loss + kl_coef * ref_kl
    total = aggregate(
        token_loss, mask, loss_agg_mode or config.default_loss_agg_mode, dp_size, batch_num_tokens, global_batch_size,
        loss_scale_factor,
    )  # fmt: skip

    seen = _Seen(mask, inputs, difference, log_ratio, ratio, beyond_c, bonus, ref_kl, outside)
    return total, _statistics(config, dual_clip, token, seen)


# Those of the op.
_ARGUMENTS = (
    *(name for name in keywords_of(unchecked_loss) if name != "config"),
    *MaspoConfig.__dataclass_fields__, "ratio_mode", "hyper", "bapo_sums", "cu_seqlens", "max_seqlen",
)  # fmt: skip


class _Seen(NamedTuple):
    """What the statistics are of, each ``[B, T]``."""

    mask: Tensor
    inputs: list[Tensor]
    difference: Tensor
    log_ratio: Tensor
    ratio: Tensor
    beyond_c: Tensor
    bonus: Tensor
    ref_kl: Tensor
    outside: Tensor


@torch.no_grad()
def _statistics(config: MethodConfig, dual_clip: bool, token: TokenLoss, seen: _Seen) -> Tensor:
    """``[NUM_STATS]``, float64, in the order of ``csrc/core/stats.h``."""
    mask, difference, ratio = seen.mask, seen.difference, seen.ratio
    valid = mask != 0
    tokens = mask.sum(dtype=torch.float64)

    def mean(value: Tensor, where: Tensor | None = None) -> Tensor:
        if value.dim() == 0:
            return value
        weight = mask if where is None else mask * where
        weighted = (value * weight).sum(dtype=torch.float64) / weight.sum(dtype=torch.float64)
        otherwise = 0.0 if where is None else 1.0
        return torch.where(tokens == 0, 0.0, torch.where((weight != 0).any(), weighted, otherwise))

    nothing = tokens.new_zeros(())
    numbers = ratio[valid & ~ratio.isnan()].double()
    finite = torch.stack([value.isfinite() for value in seen.inputs]).all(0)
    of_method = [mean(*stat) for stat in token.stats]
    stats = [
        nothing if token.clipped is None else mean(token.clipped),
        mean(-(seen.log_ratio if config.clamp_low else difference)),
        mean(seen.beyond_c) if dual_clip or config.reports_dual_clip else nothing,
        *of_method,
        *[nothing] * (METHOD_SLOTS - len(of_method)),
        numbers.min() if numbers.numel() else nothing,
        mean(ratio),
        numbers.max() if numbers.numel() else nothing,
        mean(~((difference <= MAX_LOG_RATIO) & ((difference >= -MAX_LOG_RATIO) | (not config.clamp_low)))),
        (~finite & valid).sum(dtype=torch.float64),
        mean(seen.bonus),
        mean(seen.ref_kl),
        mean(seen.outside),
    ]
    return torch.stack([stat.double() for stat in stats])
