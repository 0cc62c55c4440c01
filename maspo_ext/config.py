"""From the arguments of a call to the config object of its ``ratio_mode``."""

from __future__ import annotations

from typing import Any

from maspo_ext.methods import RATIO_MODES, MethodConfig

_DEFAULTS = {ratio_mode: config_class() for ratio_mode, config_class in RATIO_MODES.items()}


def config_class_of(ratio_mode: Any) -> type[MethodConfig]:
    """The config class of a mode.

    Raises:
        ValueError: there is no such mode.
    """
    if not isinstance(ratio_mode, str) or ratio_mode not in RATIO_MODES:
        raise ValueError(
            f"maspo_ext: ratio_mode: expected one of {', '.join(RATIO_MODES)}, got {ratio_mode!r}. Choose one of these."
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
            raise TypeError(f"maspo_ext: policy_loss: expected {field} once, got it also as {name}. Drop one of them.")
        fields[field] = value
    unknown = sorted(set(fields) - set(config_class.__dataclass_fields__))
    if unknown:
        raise TypeError(
            f"maspo_ext: policy_loss: expected keywords of {config_class.__name__} "
            f"({', '.join(config_class.__dataclass_fields__)}), got {', '.join(unknown)}. Check the spelling."
        )
    return fields
