"""BAPO: PPO's clip with bounds that are searched per batch."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from maspo_ext.checks.numbers import check_at_least, check_at_most, check_bool, check_non_negative, check_positive
from maspo_ext.errors import did_you_mean, message
from maspo_ext.methods.base import MethodConfig, Token, TokenLoss, check_clip_ratios, clip_loss

MAX_CANDIDATES = 128  # of both bounds together; kMaxBapoCandidates in csrc/core/bapo.h


def steps(start: float, maximum: float, step: float) -> list[float]:
    """The bounds that a search can visit: ``start``, then up by ``step``, the last one ``maximum``.

    Added up in double precision one by one, as the reference does, so that the bounds have its bits.
    """
    visited = [start]
    while visited[-1] < maximum and step > 0 and len(visited) <= MAX_CANDIDATES:
        visited.append(min(visited[-1] + step, maximum))
    return visited


@dataclass(frozen=True, kw_only=True)
class BapoConfig(MethodConfig):
    """Hyper-parameters of BAPO (arXiv 2510.18927). The bounds are of the ratio itself, not distances from 1.

    The search raises the bounds by steps until ``sum over A > 0 of A min(rho, high)`` is at least ``adv_ratio_target`` times
    ``sum over A < 0 of |A| max(rho, low)``. Raising the lower bound can only lower that quotient, in the reference as in the
    paper's Eq. 8: where the start does not meet the target, the lower bound always ends at its maximum, and only the upper
    bound helps.

    Attributes:
        adv_ratio_target: the quotient to reach; >= 0.
        ratio_lower_start, ratio_lower_max, ratio_lower_step: the lower bound's start (None: ``1 - clip_ratio_low``), maximum
            (None: the start, no search) and step (0: no search); together at most 128 bounds to try.
        ratio_upper_start, ratio_upper_max, ratio_upper_step: the same for the upper bound (None: ``1 + clip_ratio_high``).
        upper_first: search the upper bound first, as the paper's Algorithm 1; the reference searches the lower one first.
        eps: added to the divisor of the quotient; >= 0.
        clip_ratio_low, clip_ratio_high: of the starts that are None.
        clip_ratio_c: the dual clip for ``A < 0``; > 1.

    There are four sets of defaults. These are those of the authors' config (``recipe/bapo/config/bapo_trainer.yaml``);
    :meth:`published` has the others.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; the message names the field.
    """

    method = "clip"
    stat_names = ("actor/bapo_clip_low", "actor/bapo_clip_high", "actor/bapo_pos_neg_ratio")
    dual_clip = True

    adv_ratio_target: float = 1.0
    ratio_lower_start: float | None = 0.6
    ratio_lower_max: float | None = 0.8
    ratio_lower_step: float = 0.05
    ratio_upper_start: float | None = 1.2
    ratio_upper_max: float | None = 2.0
    ratio_upper_step: float = 0.05
    upper_first: bool = False
    eps: float = 1e-8
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    clip_ratio_c: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_non_negative("adv_ratio_target", self.adv_ratio_target, "The authors' config has 1.0.")
        check_clip_ratios(self.clip_ratio_low, self.clip_ratio_high, self.clip_ratio_c)
        for bound in ("lower", "upper"):
            start, maximum, step = (getattr(self, f"ratio_{bound}_{what}") for what in ("start", "max", "step"))
            if start is not None:
                check_positive(f"ratio_{bound}_start", start, "It is a bound of the ratio, such as 0.8 or 1.2.")
            if maximum is not None:
                least = f"ratio_{bound}_start"
                check_at_least(
                    f"ratio_{bound}_max", maximum, least, self._start(bound), "None searches nothing."
                )
            check_non_negative(f"ratio_{bound}_step", step, "0 searches nothing.")
        lower, upper = self.candidates.values()
        check_at_most(
            "ratio_lower_max", lower[-1], "", 1.0, "A lower bound above 1 would clip the ratio 1."
        )
        check_at_least(
            "ratio_upper_start", upper[0], "", 1.0, "An upper bound below 1 would clip the ratio 1."
        )
        check_bool("upper_first", self.upper_first, "False is the order of the authors' code.")
        check_non_negative("eps", self.eps, "The authors' config has 1e-8.")
        if len(lower) + len(upper) > MAX_CANDIDATES:
            expected = f"steps that make at most {MAX_CANDIDATES} bounds to try, lower and upper together"
            got = " and ".join(f"about {self._count(bound):.3g} {bound} ones" for bound in ("lower", "upper"))
            raise ValueError(
                message("ratio_lower_step, ratio_upper_step", expected, got, "Take larger steps, or a narrower range.")
            )

    def _start(self, bound: str) -> float:
        start = getattr(self, f"ratio_{bound}_start")
        if start is not None:
            return start
        return 1 - self.clip_ratio_low if bound == "lower" else 1 + self.clip_ratio_high

    def _range(self, bound: str) -> tuple[float, float, float]:
        """Where a search starts, where it ends, and its step."""
        start, maximum = self._start(bound), getattr(self, f"ratio_{bound}_max")
        return start, start if maximum is None else maximum, getattr(self, f"ratio_{bound}_step")

    def _count(self, bound: str) -> float:
        """How many bounds a search would visit, as far as ``steps`` does not count."""
        start, maximum, step = self._range(bound)
        return 1.0 if step == 0 else math.ceil(min((maximum - start) / step, 1e300) * (1 - 1e-12)) + 1.0

    def lower_bounds(self) -> list[float]:
        """The lower bounds to try, in their order."""
        return steps(*self._range("lower"))

    def upper_bounds(self) -> list[float]:
        """The upper bounds to try, in their order."""
        return steps(*self._range("upper"))

    @classmethod
    def published(cls, name: str, **changes: Any) -> BapoConfig:
        """One of the four published sets: ``yaml`` (the defaults), ``script`` and ``readme`` of the authors' repository, ``paper``.

        The paper's target is a share, 0.4 of all; here, as in the authors' code, positive over negative, 0.4 / 0.6.

        Raises:
            ValueError: another name.
        """
        if name not in _PUBLISHED:
            expected, remedy = f"one of {', '.join(_PUBLISHED)}", did_you_mean(name, _PUBLISHED, "Choose one of these.")
            raise ValueError(message("BapoConfig.published", expected, repr(name), remedy))
        return cls(**(_PUBLISHED[name] | changes))

    def hyper(self) -> list[float]:
        lower, upper = self.candidates.values()
        resolved = {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "ratio_lower_start": lower[0],
            "ratio_lower_max": lower[-1],
            "ratio_upper_start": upper[0],
            "ratio_upper_max": upper[-1],
        }
        return [float(value) for value in resolved.values()]

    def kernel_hyper(self) -> list[float]:
        return []  # the kernel reads the bounds that were found

    @functools.cached_property
    def candidates(self) -> dict[str, list[float]]:
        """Keywords of ``torch.ops.maspo.bapo_sums`` and ``bapo_bounds``; kept, since every step needs them twice. Not to be changed."""
        return {"lower": self.lower_bounds(), "upper": self.upper_bounds()}

    def search(self) -> dict[str, Any]:
        """Further keywords of ``torch.ops.maspo.bapo_bounds``."""
        return {"target": self.adv_ratio_target, "eps": self.eps, "upper_first": self.upper_first}

    def token_loss(self, token: Token) -> TokenLoss:
        # Step by step over all tokens, as published; the kernels get there in one pass.
        weighted = (token.advantages * token.mask).double()
        ratio = token.free_ratio.double()  # the reference searches without the dual clip

        def quotient(low: float, high: float) -> float:
            effect = weighted * ratio.clamp(max=high).where(weighted >= 0, ratio.clamp(min=low))
            positive, negative = float(effect.clamp(min=0).sum()), -float(effect.clamp(max=0).sum())
            return float("inf") if negative <= 0 else positive / (negative + self.eps)

        bounds = self.candidates
        at = {"lower": 0, "upper": 0}
        for bound in ("upper", "lower") if self.upper_first else ("lower", "upper"):
            while at[bound] + 1 < len(bounds[bound]):
                if not quotient(bounds["lower"][at["lower"]], bounds["upper"][at["upper"]]) < self.adv_ratio_target:
                    break
                at[bound] += 1
        low, high = bounds["lower"][at["lower"]], bounds["upper"][at["upper"]]
        found = tuple((weighted.new_tensor(value), None) for value in (low, high, quotient(low, high)))
        return clip_loss(token, low, high)._replace(stats=found)


_PUBLISHED: dict[str, dict[str, Any]] = {
    "yaml": {},
    "script": {"adv_ratio_target": 0.5, "ratio_lower_start": 0.8, "ratio_lower_max": 0.95, "ratio_upper_step": 0.1},
    "readme": {"adv_ratio_target": 0.5, "ratio_lower_max": 0.9, "ratio_upper_max": 3.0},
    "paper": {
        "adv_ratio_target": 0.4 / 0.6,
        "ratio_lower_max": 0.9,
        "ratio_lower_step": 0.02,
        "ratio_upper_max": 3.0,
        "upper_first": True,
    },
}
