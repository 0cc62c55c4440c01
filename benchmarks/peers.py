"""The losses as their users would write them in eager torch: the official formulas, in this project's words.

Each takes ``[B, T]`` tensors by name, aggregates by a mean over all tokens (SAPO: as its reference, by sequences), and computes the
three statistics that the official codes compute, too. Checked against the golden vectors in ``tests/benchmarks``.
"""

from __future__ import annotations

import torch
from torch import Tensor

Result = tuple[Tensor, Tensor]


def _mean(value: Tensor, mask: Tensor) -> Tensor:
    return (value * mask).sum() / (mask.sum() + 1e-8)


def _statistics(ratio: Tensor, log_ratio: Tensor, adv: Tensor, mask: Tensor, low, high, c: float) -> Tensor:
    clipped = ((adv > 0) & (ratio > high)) | ((adv < 0) & (ratio < low))
    clipped_lower = (adv < 0) & (ratio.clamp(min=low) > c)
    return torch.stack([_mean(clipped, mask), _mean(-log_ratio, mask), _mean(clipped_lower, mask)]).detach()


def maspo(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor) -> Result:
    """The published defaults."""
    log_ratio = torch.clamp(log_prob - old_log_prob, -20.0, 20.0)
    ratio = log_ratio.exp()
    statistics = _statistics(ratio, log_ratio, advantages, response_mask, 0.8, 1.2, 3.0)
    mass = torch.clamp(1.0 / old_log_prob.exp().pow(0.3), 1.0, 10.0)
    sigma_pos = mass * torch.clamp(1 + 0.03 * advantages, 0.1, 10.0)
    sigma_neg = mass * torch.clamp(1 / (1 - 0.03 * advantages), 0.1, 10.0)
    fixed = ratio.detach()
    gate_pos = torch.where(fixed > 1, torch.exp(-((fixed - 1) ** 2) / (2 * sigma_pos**2)), 1.0)
    gate_neg = torch.where(fixed < 1, torch.exp(-((fixed - 1) ** 2) / (2 * sigma_neg**2)), 1.0)
    gate = torch.where(advantages > 0, gate_pos, torch.where(advantages < 0, gate_neg, 1.0))
    return _mean(-advantages * gate * ratio, response_mask), statistics


def clip(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor, low=0.8, high=1.2, c: float = 3.0
) -> Result:
    """PPO's clip with the dual clip; the bounds are numbers or tensors."""
    log_ratio = torch.clamp(log_prob - old_log_prob, -20.0, 20.0)
    ratio = log_ratio.exp()
    unclipped, clipped = -advantages * ratio, -advantages * torch.clamp(ratio, low, high)
    loss = torch.maximum(unclipped, clipped)
    loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * c), loss)
    return _mean(loss, response_mask), _statistics(ratio, log_ratio, advantages, response_mask, low, high, c)


def clip_higher(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor) -> Result:
    return clip(log_prob, old_log_prob, advantages, response_mask, 0.8, 1.28, 10.0)


def dac(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor) -> Result:
    pi = old_log_prob.exp()
    low = 0.5 + 0.5 * (1 - 4 * 0.2 / pi).clamp(min=0).sqrt()
    high = (0.5 + 0.5 * (1 + 4 * 0.28 / pi).sqrt()).clamp(max=10.0)
    return clip(log_prob, old_log_prob, advantages, response_mask, low, high, 10.0)


def entropy_adv(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor, entropy: Tensor, c: float = 10.0
) -> Result:
    shaped = advantages + torch.minimum(0.4 * entropy.detach(), advantages.abs() / 2)
    return clip(log_prob, old_log_prob, shaped, response_mask, 0.8, 1.28, c)


def bapo(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor) -> Result:
    """With the search as published: step by step, each step a pass over the tokens and a wait for its result."""
    ratio = torch.clamp(log_prob - old_log_prob, -20.0, 20.0).exp().detach()

    def unmet(low: float, high: float) -> bool:
        bounded = torch.where(advantages >= 0, ratio.clamp(max=high), ratio.clamp(min=low))
        effect = advantages * bounded * response_mask
        negative = -effect.clamp(max=0).sum().item()
        return negative > 0 and effect.clamp(min=0).sum().item() / (negative + 1e-8) < 1.0

    low, high = 0.6, 1.2
    while unmet(low, high) and low < 0.8:
        low = min(low + 0.05, 0.8)
    while unmet(low, high) and high < 2.0:
        high = min(high + 0.05, 2.0)
    return clip(log_prob, old_log_prob, advantages, response_mask, low, high)


def sapo(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor) -> Result:
    log_ratio = torch.clamp(log_prob - old_log_prob, -20.0, 20.0)
    ratio = log_ratio.exp()
    tau = torch.where(advantages > 0, torch.full_like(ratio, 1.0), torch.full_like(ratio, 1.05))
    loss = -advantages * torch.sigmoid(tau * (ratio - 1)) * (4 / tau)
    tokens = response_mask.sum(-1)
    rows = (loss * response_mask).sum(-1) / (tokens + 1e-8)
    zero = _mean(torch.zeros_like(ratio), response_mask)
    return rows.sum() / (tokens > 0).sum(), torch.stack([zero, _mean(-log_ratio, response_mask), zero]).detach()


EAGER = {
    "maspo": maspo,
    "ppo": clip,
    "clip_higher": clip_higher,
    "dac": dac,
    "entropy_adv": entropy_adv,
    "bapo": bapo,
    "sapo": sapo,
}
