"""Entropy Adv.: advantages shaped by the entropy, before any method."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from maspo_ext.checks.numbers import check_at_least, check_non_negative
from maspo_ext.methods.ppo import ClipHigherConfig


def check_entropy_adv(alpha: float, kappa: float, prefix: str = "") -> None:
    """Ranges of the transform's hyper-parameters."""
    check_non_negative(f"{prefix}alpha", alpha, "It weighs the entropy; published: 0.4 with GRPO, 0.1 with PPO.")
    check_at_least(
        f"{prefix}kappa",
        kappa,
        "",
        1,
        "It keeps the bonus below |A| / kappa, so that A keeps its sign; published: 2.0.",
    )


def entropy_bonus(advantages: Tensor, entropy: Tensor, alpha: float, kappa: float) -> Tensor:
    """``min(alpha * H, |A| / kappa)``, which goes on top of ``A``, without gradient (arXiv 2506.14758, Eq. 5 and 6).

    Args:
        advantages: ``[B, T]``.
        entropy: ``[B, T]``, nats per token, of the whole vocabulary; a value below 0, which only rounding gives, counts as 0.
    """
    return (alpha * entropy.detach().clamp(min=0)).minimum(advantages.abs() / kappa)


@dataclass(frozen=True, kw_only=True)
class EntropyAdvConfig(ClipHigherConfig):
    """Hyper-parameters of Entropy Adv. (arXiv 2506.14758) on Clip Higher, the baseline that its paper uses.

    Attributes:
        alpha: weight of the entropy; >= 0. Published: 0.4 with GRPO, 0.1 with PPO.
        kappa: the bonus is at most ``|A| / kappa``; >= 1. Published: 2.0.
        clip_ratio_low, clip_ratio_high, clip_ratio_c: as in :class:`ClipHigherConfig`.

    The same shaping goes with every other mode by ``policy_loss(..., entropy=, entropy_alpha=, entropy_kappa=)``.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; the message names the field.
    """

    alpha: float = 0.4
    kappa: float = 2.0

    def __post_init__(self) -> None:
        check_entropy_adv(self.alpha, self.kappa)
        super().__post_init__()

    def entropy_adv(self) -> tuple[float, float] | None:
        return self.alpha, self.kappa
