"""From the arguments of a call to the config object of its ``ratio_mode``."""

from __future__ import annotations

from typing import Any

from maspo_ext.errors import message
from maspo_ext.fronts import unknown_keywords
from maspo_ext.methods import RATIO_MODES, MethodConfig
from maspo_ext.methods.names import remedy_for

_DEFAULTS = {ratio_mode: config_class() for ratio_mode, config_class in RATIO_MODES.items()}


def config_class_of(ratio_mode: Any) -> type[MethodConfig]:
    """The config class of a mode.

    Raises:
        ValueError: there is no such mode.
    """
    if not isinstance(ratio_mode, str) or ratio_mode not in RATIO_MODES:
        if modes := _modes_of(type(ratio_mode)):
            remedy = f"That is a config: pass {modes}, and it as config=."
        else:
            remedy = remedy_for(ratio_mode, RATIO_MODES, "Choose one of these.")
        raise ValueError(message("ratio_mode", f"one of {', '.join(RATIO_MODES)}", repr(ratio_mode), remedy))
    return RATIO_MODES[ratio_mode]


def config_for(ratio_mode: str, config: Any, hyper: dict[str, Any], front: str) -> MethodConfig:
    """The config object of a call: ``config`` if given, else one made of ``hyper``.

    Args:
        ratio_mode, config: as of :func:`maspo_ext.policy_loss`.
        hyper: the keywords of the call that ``front`` does not know.
        front: what was called, as in :mod:`maspo_ext.fronts`.

    Raises:
        TypeError, ValueError: unknown mode or keyword, both forms at once, or a config of another mode.
    """
    config_class = config_class_of(ratio_mode)
    if not hyper and (config is None or type(config) is config_class):
        return _DEFAULTS[ratio_mode] if config is None else config
    fields = _fields_of(config_class, hyper, front)
    if config is None:
        return config_class(**fields)
    if type(config) is not config_class:
        expected = f"a {config_class.__name__} for ratio_mode={ratio_mode!r}"
        raise TypeError(message("config", expected, _type_name(config), _config_remedy(config, config_class)))
    got = f"both ({', '.join(sorted(hyper))})"
    remedy = "Use dataclasses.replace to change a field of a config."
    raise TypeError(message(front, "either config or hyper-parameters as keywords", got, remedy))


def _type_name(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _config_remedy(config: Any, config_class: type[MethodConfig]) -> str:
    """What to do with something that is no config of the mode."""
    if isinstance(config, type) and issubclass(config, MethodConfig):
        return f"Make one: config={config.__name__}()."
    modes = _modes_of(type(config))
    return f"Pass {modes} with it." if modes else f"Make one: config={config_class.__name__}(...)."


def _modes_of(config_class: type) -> str:
    """``ratio_mode='dac'``; of PpoConfig, ``ratio_mode='ppo' or 'grpo'``; empty of what is no config."""
    modes = [repr(mode) for mode, other in RATIO_MODES.items() if other is config_class]
    return f"ratio_mode={' or '.join(modes)}" if modes else ""


def _fields_of(config_class: type[MethodConfig], hyper: dict[str, Any], front: str) -> dict[str, Any]:
    """``hyper`` with the reference implementations' names replaced by the fields'."""
    fields = {}
    for name, value in hyper.items():
        field = name if name in config_class.__dataclass_fields__ else config_class.aliases.get(name, name)
        if field in fields:
            got = f"it twice, of which one under a name of the reference implementations ({', '.join(hyper)})"
            raise TypeError(message(front, f"{field} once", got, "Drop one of them."))
        fields[field] = value
    unknown = sorted(set(fields) - set(config_class.__dataclass_fields__))
    if unknown:
        raise unknown_keywords(front, unknown, config_class)
    return fields
