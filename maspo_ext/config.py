"""Typed, frozen, validated hyper-parameters, one class per ``ratio_mode``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maspo_ext import checks


@dataclass(frozen=True, kw_only=True)
class MaspoConfig:
    """Hyper-parameters of MASPO (arXiv 2602.17550), with the published defaults (``actor.yaml`` of the authors' verl fork).

    Attributes:
        sigma_base: narrowest standard deviation of the gate, in units of the ratio; > 0.
        alpha: exponent of the token's old probability in the width; >= 0. Published: 0.3 for >= 7B, 0.5 for 1.5B.
        sigma_high: upper bound of ``sigma_base / pi_old**alpha``; >= sigma_base.
        adv_low, adv_high: bounds of the advantage's factor of the width; 0 < adv_low <= adv_high.
        beta_pos, beta_neg: how much positive advantages widen and negative ones narrow the gate; >= 0.
        gate_gradient: differentiate through the gate. The reference takes the gate as a constant.
        clip_ratio_low, clip_ratio_high, clip_ratio_c: only for the clip statistics; MASPO applies no clip.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; the message names the field.
    """

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
        checks.check_maspo_hyper(
            self.sigma_base, self.alpha, self.sigma_high, self.adv_low, self.adv_high, self.beta_pos, self.beta_neg
        )
        checks.check_clip_ratios(self.clip_ratio_low, self.clip_ratio_high, self.clip_ratio_c)
        if not isinstance(self.gate_gradient, bool):
            raise TypeError(
                f"maspo_ext: gate_gradient: expected True or False, got {self.gate_gradient!r}. False is the published form."
            )

    def to_kwargs(self) -> dict[str, Any]:
        """The fields as keywords of ``torch.ops.maspo.loss``."""
        # Not dataclasses.asdict: it deep-copies, which torch.compile cannot trace before torch 2.13.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


RATIO_MODES: dict[str, type] = {"maspo": MaspoConfig}


def config_for(ratio_mode: str, config: Any, hyper: dict[str, Any]) -> MaspoConfig:
    """The config object of a call: ``config`` if given, else one made of ``hyper``.

    Raises:
        TypeError, ValueError: unknown mode or keyword, both forms at once, or a config of another mode.
    """
    if not isinstance(ratio_mode, str) or ratio_mode not in RATIO_MODES:
        raise ValueError(
            f"maspo_ext: ratio_mode: expected one of {', '.join(RATIO_MODES)}, got {ratio_mode!r}. Choose one of these."
        )
    config_class = RATIO_MODES[ratio_mode]
    if config is None:
        unknown = sorted(set(hyper) - set(config_class.__dataclass_fields__))
        if unknown:
            raise TypeError(
                f"maspo_ext: policy_loss: expected keywords of {config_class.__name__} "
                f"({', '.join(config_class.__dataclass_fields__)}), got {', '.join(unknown)}. Check the spelling."
            )
        return config_class(**hyper)
    if hyper:
        raise TypeError(
            f"maspo_ext: policy_loss: expected either config or hyper-parameters as keywords, got both ({', '.join(sorted(hyper))}). "
            "Use dataclasses.replace to change a field of a config."
        )
    if not isinstance(config, config_class):
        raise TypeError(
            f"maspo_ext: config: expected a {config_class.__name__} for ratio_mode={ratio_mode!r}, got {type(config).__name__}. "
            "Pass the config class of the mode."
        )
    return config
