"""What every method's config class has, and what its plain-torch formula takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from maspo_ext.checks.numbers import check_above, check_non_negative, python_number
from maspo_ext.errors import message


class Token(NamedTuple):
    """What a formula sees: ``[B, T]`` tensors in the dtype of arithmetic, 0 where masked.

    Attributes:
        ratio: ``exp(log_prob - old_log_prob)``, differentiable in log_prob, after the clamps and the dual clip.
        old_log_prob, advantages: without gradient.
        mask: the weight of the token.
        free_ratio: ``ratio`` before the dual clip, without gradient.
        log_prob: as it came; differentiable where ``ratio`` is, so not beyond the clamp and the dual clip.
    """

    ratio: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    mask: Tensor
    free_ratio: Tensor
    log_prob: Tensor


class TokenLoss(NamedTuple):
    """What a formula gives.

    Attributes:
        loss: ``[B, T]``, differentiable in log_prob, without mask and weights.
        clipped: bool ``[B, T]``, counted by ``actor/pg_clipfrac``; None: never.
        stats: the method's own statistics: value and, unless None, the tokens to take its mean over (1 if there are none).
    """

    loss: Tensor
    clipped: Tensor | None
    stats: tuple[tuple[Tensor, Tensor | None], ...] = ()


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Hyper-parameters of a method: frozen, typed, checked when made.

    Class attributes:
        method: the kernel's name for the formula (``csrc/core/methods.h``).
        stat_names: names of its own statistics, at most 5, in the order of the kernel.
        default_loss_agg_mode: the aggregation of the reference where the caller chooses none.
        reports_dual_clip: whether ``actor/pg_clipfrac_lower`` counts where no dual clip is applied.
        dual_clip: whether the method bounds ``A < 0`` with a large ratio by ``clip_ratio_c`` itself.
        clamp_low: whether the log-ratio is clamped from below too.
        aliases: names in the reference implementations for fields that have another name here.

    Every method has a field ``clip_ratio_c``, the bound of the dual clip, its own or the optional one.
    """

    if TYPE_CHECKING:  # no field here, where it would be the first of every subclass: their order is that of ``hyper()``
        clip_ratio_c: float

    method = ""
    stat_names = ()
    default_loss_agg_mode = "token-mean"
    reports_dual_clip = True
    dual_clip = False
    clamp_low = True
    aliases = {
        "clip_low": "clip_ratio_low",
        "clip_high": "clip_ratio_high",
        "clip_c": "clip_ratio_c",
    }

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            number = python_number(value)
            if number is not value:
                object.__setattr__(self, name, number)

    def hyper(self) -> list[float]:
        """``hyper`` of ``torch.ops.maspo.loss``: the fields in their order."""
        return [float(getattr(self, name)) for name in self.__dataclass_fields__]

    def op_keywords(self, ratio_mode: str) -> dict[str, Any]:
        """Keywords of ``torch.ops.maspo.loss`` for this config under the name ``ratio_mode``."""
        return {"ratio_mode": ratio_mode, "hyper": self.hyper()}

    @classmethod
    def from_hyper(cls, hyper: Sequence[float]) -> MethodConfig:
        """The config of such a list; an empty one has the defaults.

        Raises:
            ValueError: another number of values than there are fields, or one out of range.
        """
        names = list(cls.__dataclass_fields__)
        if hyper and len(hyper) != len(names):
            expected = f"{len(names)} values ({', '.join(names)})"
            raise ValueError(message("hyper", expected, len(hyper), f"Use {cls.__name__}(...).hyper()."))
        given = dict(zip(names, hyper, strict=False))  # none of an empty list
        flags = [name for name in given if isinstance(cls.__dataclass_fields__[name].default, bool)]
        return cls(**given | {name: bool(given[name]) for name in flags})

    def kernel_hyper(self) -> list[float]:
        """``hyper`` of ``torch.ops.maspo.loss_forward``, in the order that the method's header reads it."""
        raise NotImplementedError

    def entropy_adv(self) -> tuple[float, float] | None:
        """``(alpha, kappa)`` where the method shapes the advantages by the entropy itself."""
        return None

    def token_loss(self, token: Token) -> TokenLoss:
        """The formula in plain torch: documentation, and oracle of the tests."""
        raise NotImplementedError


def check_clip_ratio_c(clip_ratio_c: Any) -> None:
    remedy = "It is the dual clip's bound; verl's default is 3.0, and inf switches it off."
    check_above("clip_ratio_c", clip_ratio_c, 1, remedy, infinite=True)


def check_clip_ratios(clip_ratio_low: Any, clip_ratio_high: Any, clip_ratio_c: Any) -> None:
    """Ranges of PPO's clip."""
    check_non_negative("clip_ratio_low", clip_ratio_low, "verl's default is 0.2.")
    check_non_negative("clip_ratio_high", clip_ratio_high, "verl's default is 0.2.")
    check_clip_ratio_c(clip_ratio_c)


def beyond_clip(token: Token, low: Tensor | float, high: Tensor | float) -> Tensor:
    """The tokens that a clip of the ratio to ``[low, high]`` stops."""
    return ((token.advantages > 0) & (token.ratio > high)) | ((token.advantages < 0) & (token.ratio < low))


def clip_loss(token: Token, low: Tensor | float, high: Tensor | float) -> TokenLoss:
    """PPO's clipped loss; the dual clip is in ``token.ratio`` already."""
    # torch.where, since a clamp's gradient at a bound depends on the version of torch. Here it is full.
    bound = by_sign(token.advantages, high, low)
    clipped = beyond_clip(token, low, high)
    return TokenLoss(-token.advantages * torch.where(clipped, bound, token.ratio), clipped)


def by_sign(advantages: Tensor, positive: Tensor | float, otherwise: Tensor | float) -> Tensor:
    """``positive`` where ``A > 0``, ``otherwise`` elsewhere, in the dtype of ``advantages``."""
    positive, otherwise = (
        torch.as_tensor(value, dtype=advantages.dtype, device=advantages.device) for value in (positive, otherwise)
    )
    return torch.where(advantages > 0, positive, otherwise)
