"""DAC: a clip whose bounds depend on the token's probability."""

from __future__ import annotations

from dataclasses import dataclass

from maspo_ext.checks.numbers import check_non_negative
from maspo_ext.methods.base import MethodConfig, Token, TokenLoss, check_clip_ratio_c, clip_loss

MAX_NEG_LOG_PROB = 80.0
LEAST_CAP = 10.0


@dataclass(frozen=True, kw_only=True)
class DacConfig(MethodConfig):
    """Hyper-parameters of DAC, the dynamic-adaptive clip of DCPO (arXiv 2509.02333).

    Attributes:
        eps_low, eps_high: a ratio ``rho`` is within the bounds if ``|rho - 1| * rho * pi_old <= eps``; >= 0.
        clip_ratio_c: the dual clip for ``A < 0``, > 1; the upper bound is at most ``max(clip_ratio_c, 10)``.

    The defaults are those of the authors' ``run_dcpo.sh`` (0.2, 0.28, 10); their README and paper have 0.16 and 0.2. The
    reference is ``loss_mode: dcpo``, ``clip_type: dynamic`` of their verl fork.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; the message names the field.
    """

    method = "dac"
    stat_names = ("actor/dac_clip_low_mean", "actor/dac_clip_high_mean")
    dual_clip = True
    clamp_low = False
    aliases = {"clip_low": "eps_low", "clip_high": "eps_high", "clip_c": "clip_ratio_c"}

    eps_low: float = 0.2
    eps_high: float = 0.28
    clip_ratio_c: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_non_negative("eps_low", self.eps_low, "The authors' script has 0.2, their paper 0.16.")
        check_non_negative("eps_high", self.eps_high, "The authors' script has 0.28, their paper 0.2.")
        check_clip_ratio_c(self.clip_ratio_c)

    def kernel_hyper(self) -> list[float]:
        return self.hyper()

    def token_loss(self, token: Token) -> TokenLoss:
        four_over_pi = 4 * (-token.old_log_prob).clamp(max=MAX_NEG_LOG_PROB).exp()
        low = 0.5 + 0.5 * (1 - self.eps_low * four_over_pi).clamp(min=0).sqrt()
        high = (0.5 + 0.5 * (1 + self.eps_high * four_over_pi).sqrt()).clamp(max=max(self.clip_ratio_c, LEAST_CAP))
        return clip_loss(token, low, high)._replace(stats=((low, None), (high, None)))
