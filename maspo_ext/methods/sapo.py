"""SAPO: a sigmoid gate on both sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from maspo_ext.checks.numbers import check_positive
from maspo_ext.methods.base import MethodConfig, Token, TokenLoss, by_sign, check_clip_ratio_c


@dataclass(frozen=True, kw_only=True)
class SapoConfig(MethodConfig):
    """Hyper-parameters of SAPO, Soft Adaptive Policy Optimization (arXiv 2511.20347).

    Attributes:
        tau_pos, tau_neg: steepness of the gate for ``A > 0`` and for ``A <= 0``; > 0.
        clip_ratio_c: the bound of the optional dual clip, > 1; without it nothing.

    The defaults are those of verl 0.9.1, whose ``compute_policy_loss_sapo`` is the reference. It always aggregates by
    ``seq-mean-token-mean``; here that is the default, and ``loss_agg_mode`` is honoured where it is given.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; the message names the field.
    """

    method = "sapo"
    stat_names = ("actor/sapo_gate_mean_pos", "actor/sapo_gate_mean_neg")
    reports_dual_clip = False
    default_loss_agg_mode = "seq-mean-token-mean"

    tau_pos: float = 1.0
    tau_neg: float = 1.05
    clip_ratio_c: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("tau_pos", self.tau_pos, "It is the gate's steepness for A > 0; published: 1.0.")
        check_positive("tau_neg", self.tau_neg, "It is the gate's steepness for A <= 0; published: 1.05.")
        check_clip_ratio_c(self.clip_ratio_c)

    def kernel_hyper(self) -> list[float]:
        return [self.tau_pos, self.tau_neg]

    def token_loss(self, token: Token) -> TokenLoss:
        ratio, adv = token.ratio, token.advantages
        tau = by_sign(adv, self.tau_pos, self.tau_neg)
        u = tau * (ratio - 1)
        e = torch.where(u < 0, u, -u).exp()  # and not of -u.abs(), whose derivative at 0 is 0
        # Not torch.sigmoid: the derivative of this form keeps its digits where the sigmoid is nearly 1.
        sigmoid = torch.where(u < 0, e, 1.0) / (1 + e)
        gate = 4 * e / (1 + e) ** 2
        return TokenLoss(-adv * (4 / tau) * sigmoid, None, ((gate, adv > 0), (gate, adv < 0)))
