"""PPO's clip, which GRPO shares, and Clip Higher's wider one."""

from __future__ import annotations

from dataclasses import dataclass

from maspo_ext.methods.base import MethodConfig, Token, TokenLoss, check_clip_ratios, clip_loss


@dataclass(frozen=True, kw_only=True)
class PpoConfig(MethodConfig):
    """Hyper-parameters of PPO's clip (arXiv 1707.06347) with a dual clip (arXiv 1912.09729); GRPO's loss is the same.

    Attributes:
        clip_ratio_low, clip_ratio_high: the ratio is clipped to ``[1 - clip_ratio_low, 1 + clip_ratio_high]``; >= 0.
        clip_ratio_c: for ``A < 0`` the ratio counts as at most this; > 1.

    The defaults are those of verl 0.9.1, whose ``compute_policy_loss_vanilla`` is the reference.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; the message names the field.
    """

    method = "clip"
    dual_clip = True

    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    clip_ratio_c: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip_ratios(self.clip_ratio_low, self.clip_ratio_high, self.clip_ratio_c)

    def kernel_hyper(self) -> list[float]:
        return [1 - self.clip_ratio_low, 1 + self.clip_ratio_high]

    def token_loss(self, token: Token) -> TokenLoss:
        return clip_loss(token, 1 - self.clip_ratio_low, 1 + self.clip_ratio_high)


@dataclass(frozen=True, kw_only=True)
class ClipHigherConfig(PpoConfig):
    """Hyper-parameters of Clip Higher (DAPO, arXiv 2503.14476): :class:`PpoConfig` with a higher upper bound.

    The defaults are those of DAPO's run script (``recipe/dapo/run_dapo_qwen2.5_32b.sh`` of verl), ``clip_ratio_c`` included.
    """

    clip_ratio_high: float = 0.28
    clip_ratio_c: float = 10.0
