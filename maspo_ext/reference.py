"""The same loss in plain torch: documentation of the op, oracle of its tests, and a form with second derivatives.

Slower and larger in memory than ``torch.ops.maspo.loss``; nothing falls back to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maspo_ext.stats import STAT_NAMES

MAX_LOG_RATIO = 20.0


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
    empty = row_tokens <= 0  # and not `~(row_tokens > 0)`: a NaN in a float mask must be seen
    return torch.where(empty, 0, row_loss * torch.where(empty, 0, scale)).sum()


def maspo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    rollout_is_weights: Tensor | None = None,
    sigma_base: float = 1.0,
    alpha: float = 0.3,
    sigma_high: float = 10.0,
    adv_low: float = 0.1,
    adv_high: float = 10.0,
    beta_pos: float = 0.03,
    beta_neg: float = 0.03,
    loss_agg_mode: str = "token-mean",
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: float | None = None,
    gate_gradient: bool = False,
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.2,
    clip_ratio_c: float = 3.0,
) -> tuple[Tensor, Tensor]:
    """Plain-torch twin of ``torch.ops.maspo.loss``: same arguments, same results ``(loss, stats)``.

    Source: MASPO, arXiv 2602.17550; ``compute_policy_loss`` (ratio_mode "maspo") of the authors' verl fork.
    """
    dtype = torch.float64 if log_prob.dtype == torch.float64 else torch.float32
    mask = response_mask.to(dtype)
    valid = mask != 0

    def unmasked(value: Tensor, otherwise: float) -> Tensor:
        return torch.where(valid, _column(value).to(dtype), otherwise)

    new, old, adv = unmasked(log_prob, 0.0), unmasked(old_log_prob, 0.0), unmasked(advantages, 0.0)
    is_weights = torch.ones_like(mask) if rollout_is_weights is None else unmasked(rollout_is_weights, 1.0)

    difference = new - old
    # Not torch.clamp: whether its gradient passes exactly at a bound depends on the version of torch. Here it passes.
    log_ratio = torch.where(difference.abs() > MAX_LOG_RATIO, difference.detach().sign() * MAX_LOG_RATIO, difference)
    ratio = log_ratio.exp()
    mass = (sigma_base * (-alpha * old.clamp(min=torch.finfo(dtype).min)).exp()).clamp(sigma_base, sigma_high)
    risk = torch.where(adv > 0, 1 + beta_pos * adv, 1 / (1 - beta_neg * adv))
    sigma = mass * risk.clamp(adv_low, adv_high)
    gated_pos, gated_neg = (adv > 0) & (ratio > 1), (adv < 0) & (ratio < 1)
    overshoot = ratio if gate_gradient else ratio.detach()
    gate = torch.where(gated_pos | gated_neg, (-0.5 * ((overshoot - 1) / sigma) ** 2).exp(), 1.0)
    token_loss = -adv * gate * ratio * is_weights
    loss = aggregate(token_loss, mask, loss_agg_mode, dp_size, batch_num_tokens, global_batch_size, loss_scale_factor)

    with torch.no_grad():
        tokens = mask.sum(dtype=torch.float64)

        def mean(value: Tensor) -> Tensor:
            return torch.where(tokens == 0, 0.0, (value * mask).sum(dtype=torch.float64) / tokens)

        def mean_over(value: Tensor, where: Tensor) -> Tensor:
            weight = mask * where
            weighted = (value * weight).sum(dtype=torch.float64) / weight.sum(dtype=torch.float64)
            return torch.where(tokens == 0, 0.0, torch.where(where.any(), weighted, 1.0))

        low, high = 1 - clip_ratio_low, 1 + clip_ratio_high
        nonfinite = ~(new.isfinite() & old.isfinite() & adv.isfinite() & is_weights.isfinite())
        seen = ratio[valid & ~ratio.isnan()].double()
        stats = {
            "actor/pg_clipfrac": mean(((adv > 0) & (ratio > high)) | ((adv < 0) & (ratio < low))),
            "actor/ppo_kl": mean(-log_ratio),
            "actor/pg_clipfrac_lower": mean((adv < 0) & (ratio.clamp(min=low) > clip_ratio_c)),
            "actor/maspo_gate_mean_pos": mean_over(gate, gated_pos & valid),
            "actor/maspo_gate_mean_neg": mean_over(gate, gated_neg & valid),
            "actor/maspo_gated_frac_pos": mean(gated_pos),
            "actor/maspo_gated_frac_neg": mean(gated_neg),
            "actor/maspo_sigma_mean": mean(sigma),
            "actor/ratio_min": seen.min() if seen.numel() else tokens.new_zeros(()),
            "actor/ratio_mean": mean(ratio),
            "actor/ratio_max": seen.max() if seen.numel() else tokens.new_zeros(()),
            "actor/log_ratio_clamped_frac": mean(~(difference.abs() <= MAX_LOG_RATIO)),
            "actor/nonfinite_count": (nonfinite & valid).sum(dtype=torch.float64),
        }
        return loss, torch.stack([stats[name] for name in STAT_NAMES])
