"""From the arguments of a call to the config object of its ``ratio_mode``."""

from __future__ import annotations

import inspect
from typing import Any

from maspo_ext.checks import did_you_mean, message
from maspo_ext.methods import RATIO_MODES, MethodConfig

_DEFAULTS = {ratio_mode: config_class() for ratio_mode, config_class in RATIO_MODES.items()}


def config_class_of(ratio_mode: Any) -> type[MethodConfig]:
    """The config class of a mode.

    Raises:
        ValueError: there is no such mode.
    """
    if not isinstance(ratio_mode, str) or ratio_mode not in RATIO_MODES:
        raise ValueError(
            message(
                "ratio_mode",
                f"one of {', '.join(RATIO_MODES)}",
                repr(ratio_mode),
                did_you_mean(ratio_mode, RATIO_MODES, "Choose one of these."),
            )
        )
    return RATIO_MODES[ratio_mode]


def config_for(ratio_mode: str, config: Any, hyper: dict[str, Any]) -> MethodConfig:
    """The config object of a call: ``config`` if given, else one made of ``hyper``.

    Raises:
        TypeError, ValueError: unknown mode or keyword, both forms at once, or a config of another mode.
    """
    config_class = config_class_of(ratio_mode)
    if config is None:
        return config_class(**_fields_of(config_class, hyper)) if hyper else _DEFAULTS[ratio_mode]
    if hyper:
        raise TypeError(
            f"maspo_ext: policy_loss: expected either config or hyper-parameters as keywords, got both ({', '.join(sorted(hyper))}). "
            "Use dataclasses.replace to change a field of a config."
        )
    if type(config) is not config_class:
        raise TypeError(
            f"maspo_ext: config: expected a {config_class.__name__} for ratio_mode={ratio_mode!r}, got {type(config).__name__}. "
            "Pass the config class of the mode."
        )
    return config


def _fields_of(config_class: type[MethodConfig], hyper: dict[str, Any]) -> dict[str, Any]:
    """``hyper`` with the reference implementations' names replaced by the fields'."""
    fields = {}
    for name, value in hyper.items():
        field = name if name in config_class.__dataclass_fields__ else config_class.aliases.get(name, name)
        if field in fields:
            raise TypeError(
                f"maspo_ext: policy_loss: expected {field} once, got it twice, of which one under a name of the reference "
                f"implementations ({', '.join(hyper)}). Drop one of them."
            )
        fields[field] = value
    unknown = sorted(set(fields) - set(config_class.__dataclass_fields__))
    if unknown:
        raise TypeError(
            message(
                "policy_loss",
                f"keywords of {config_class.__name__} ({', '.join(config_class.__dataclass_fields__)}), or those of policy_loss itself",
                ", ".join(unknown),
                _remedy_of_unknown(unknown[0], config_class),
            )
        )
    return fields


# What others call it.
_ELSEWHERE = {
    "beta": "kl_coef",
    "delta": "clip_ratio_c",
    "epsilon": "clip_ratio_low and clip_ratio_high",
    "epsilon_low": "clip_ratio_low",
    "epsilon_high": "clip_ratio_high",
    "mask": "response_mask",
    "reduction": "loss_agg_mode",
}


def _remedy_of_unknown(name: str, config_class: type[MethodConfig]) -> str:
    """What was meant, as far as the name shows it."""
    from maspo_ext.functional import policy_loss  # which needs this module

    if name in _ELSEWHERE:
        return f"Did you mean {_ELSEWHERE[name]}?"
    options = [option for option in inspect.signature(policy_loss).parameters if option != "hyper"]
    close = did_you_mean(name, [*config_class.__dataclass_fields__, *options], "")
    modes = [mode for mode, other in RATIO_MODES.items() if name in other.__dataclass_fields__]
    of_modes = f"It belongs to ratio_mode={' or '.join(map(repr, modes))}." if modes else "Check the spelling."
    return of_modes if modes or not close else close
