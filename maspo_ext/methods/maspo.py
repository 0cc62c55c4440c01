"""MASPO: a Gaussian gate on the ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from maspo_ext.checks.numbers import check_at_least, check_bool, check_non_negative, check_positive
from maspo_ext.methods.base import MethodConfig, Token, TokenLoss, beyond_clip, check_clip_ratios


@dataclass(frozen=True, kw_only=True)
class MaspoConfig(MethodConfig):
    """Hyper-parameters of MASPO (arXiv 2602.17550), with the published defaults (``actor.yaml`` of the authors' verl fork).

    Attributes:
        sigma_base: narrowest standard deviation of the gate, in units of the ratio; > 0.
        alpha: exponent of the token's old probability in the width; >= 0. Published: 0.3 for >= 7B, 0.5 for 1.5B.
        sigma_high: upper bound of ``sigma_base / pi_old**alpha``; >= sigma_base.
        adv_low, adv_high: bounds of the advantage's factor of the width; 0 < adv_low <= adv_high.
        beta_pos, beta_neg: how much positive advantages widen and negative ones narrow the gate; >= 0.
        gate_gradient: differentiate through the gate. The reference takes the gate as a constant.
        clip_ratio_low, clip_ratio_high: only for the clip statistics; MASPO applies no clip.
        clip_ratio_c: the bound of the optional dual clip, > 1; without it only for the clip statistics.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; the message names the field.
    """

    method = "maspo"
    stat_names = (
        "actor/maspo_gate_mean_pos",
        "actor/maspo_gate_mean_neg",
        "actor/maspo_gated_frac_pos",
        "actor/maspo_gated_frac_neg",
        "actor/maspo_sigma_mean",
    )

    sigma_base: float = 1.0
    alpha: float = 0.3
    sigma_high: float = 10.0
    adv_low: float = 0.1
    adv_high: float = 10.0
    beta_pos: float = 0.03
    beta_neg: float = 0.03
    gate_gradient: bool = False
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    clip_ratio_c: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            "sigma_base", self.sigma_base, "It is the gate's narrowest standard deviation; the published value is 1.0."
        )
        check_non_negative(
            "alpha", self.alpha, "It is the exponent of the token's probability; published: 0.3 (>= 7B), 0.5 (1.5B)."
        )
        check_at_least(
            "sigma_high",
            self.sigma_high,
            "sigma_base",
            self.sigma_base,
            "It bounds the width from above; published: 10.0.",
            infinite=True,
        )
        check_positive(
            "adv_low", self.adv_low, "It bounds the advantage's factor of the width from below; published: 0.1."
        )
        check_at_least(
            "adv_high",
            self.adv_high,
            "adv_low",
            self.adv_low,
            "It bounds the advantage's factor from above; published: 10.0.",
            infinite=True,
        )
        check_non_negative(
            "beta_pos", self.beta_pos, "It widens the gate with positive advantages; published: 0.03."
        )
        check_non_negative(
            "beta_neg", self.beta_neg, "It narrows the gate with negative advantages; published: 0.03."
        )
        check_bool("gate_gradient", self.gate_gradient, "False is the published form.")
        check_clip_ratios(self.clip_ratio_low, self.clip_ratio_high, self.clip_ratio_c)

    def op_keywords(self, ratio_mode: str = "maspo") -> dict[str, Any]:
        # Not dataclasses.asdict: it deep-copies, which torch.compile cannot trace before torch 2.13.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def kernel_hyper(self) -> list[float]:
        *gate, clip_ratio_low, clip_ratio_high, _ = self.hyper()
        return [*gate, 1 - clip_ratio_low, 1 + clip_ratio_high]

    def token_loss(self, token: Token) -> TokenLoss:
        ratio, old, adv = token.ratio, token.old_log_prob, token.advantages
        mass = (self.sigma_base * (-self.alpha * old.clamp(min=torch.finfo(old.dtype).min)).exp()).clamp(
            self.sigma_base, self.sigma_high
        )
        risk = torch.where(adv > 0, 1 + self.beta_pos * adv, 1 / (1 - self.beta_neg * adv))
        sigma = mass * risk.clamp(self.adv_low, self.adv_high)
        gated_pos, gated_neg = (adv > 0) & (ratio > 1), (adv < 0) & (ratio < 1)
        overshoot = ratio if self.gate_gradient else ratio.detach()
        gate = torch.where(gated_pos | gated_neg, (-0.5 * ((overshoot - 1) / sigma) ** 2).exp(), 1.0)
        stats = ((gate, gated_pos), (gate, gated_neg), (gated_pos, None), (gated_neg, None), (sigma, None))
        clipped = beyond_clip(token, 1 - self.clip_ratio_low, 1 + self.clip_ratio_high)
        return TokenLoss(-adv * gate * ratio, clipped, stats)
