"""The loss as its users would write it in eager torch: the official formula, in this project's words."""

from __future__ import annotations

import torch
from torch import Tensor


def eager_maspo(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """MASPO with the published defaults and a mean over all tokens; also the official statistics, which it computes, too."""
    log_ratio = torch.clamp(log_prob - old_log_prob, -20.0, 20.0)
    ratio = log_ratio.exp()
    mean = response_mask.sum() + 1e-8
    ppo_kl = (-log_ratio * response_mask).sum() / mean
    clipped = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
    clipfrac = (clipped * response_mask).sum() / mean
    clipfrac_lower = ((advantages < 0) * (ratio > 3.0) * response_mask).sum() / mean
    mass = torch.clamp(1.0 / old_log_prob.exp().pow(0.3), 1.0, 10.0)
    sigma_pos = mass * torch.clamp(1 + 0.03 * advantages, 0.1, 10.0)
    sigma_neg = mass * torch.clamp(1 / (1 - 0.03 * advantages), 0.1, 10.0)
    fixed = ratio.detach()
    gate_pos = torch.where(fixed > 1, torch.exp(-((fixed - 1) ** 2) / (2 * sigma_pos**2)), 1.0)
    gate_neg = torch.where(fixed < 1, torch.exp(-((fixed - 1) ** 2) / (2 * sigma_neg**2)), 1.0)
    gate = torch.where(advantages > 0, gate_pos, torch.where(advantages < 0, gate_neg, 1.0))
    loss = (-advantages * gate * ratio * response_mask).sum() / mean
    return loss, torch.stack([clipfrac, ppo_kl, clipfrac_lower]).detach()
