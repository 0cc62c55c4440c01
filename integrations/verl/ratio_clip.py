"""The keys under ``actor_rollout_ref.actor.policy_loss.ratio_clip``: names, defaults, errors.

Names and defaults come from the config classes in ``maspo_ext.config.RATIO_MODES``; a field ``alpha`` of the mode
``maspo`` is the key ``maspo_alpha``. The ranges are checked by those classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field, fields, make_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from verl.base_config import BaseConfig

from maspo_ext.config import RATIO_MODES

PPO = "ppo"
ACTOR_KEY = "actor_rollout_ref.actor"
POLICY_LOSS_KEY = f"{ACTOR_KEY}.policy_loss"
KEY = f"{POLICY_LOSS_KEY}.ratio_clip"

# verl's actor config has these; they are not repeated under ratio_clip.
_FROM_ACTOR = ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c")


def key_error(key: str, expected: str, got: Any, remedy: str) -> ValueError:
    """The error of a config key, in one line: Hydra shows errors by their repr."""
    return ValueError(f"maspo_ext: {key}: expected {expected}, got {got!r}. {remedy}")


def did_you_mean(name: Any, names: Any, otherwise: str) -> str:
    """A remedy for a misspelt name."""
    close = get_close_matches(str(name).lower(), list(names), n=1)
    return f"Did you mean {close[0]}?" if close else otherwise


def _hyper_fields(ratio_mode: str) -> list:
    return [f for f in fields(RATIO_MODES[ratio_mode]) if f.name not in _FROM_ACTOR]


class _RatioClip(BaseConfig):
    def __post_init__(self) -> None:
        modes = [PPO, *RATIO_MODES]
        if self.ratio_mode not in modes:
            raise key_error(
                f"{KEY}.ratio_mode",
                f"one of {', '.join(modes)}",
                self.ratio_mode,
                did_you_mean(self.ratio_mode, modes, f"{PPO} leaves the loss to loss_mode, verl's own."),
            )
        for ratio_mode in RATIO_MODES:
            self.loss_config(ratio_mode)

    def changed_keys(self, ratio_mode: str) -> list[str]:
        """The keys of a mode whose values differ from the defaults."""
        names = [(f"{ratio_mode}_{f.name}", f.default) for f in _hyper_fields(ratio_mode)]
        return [name for name, default in names if getattr(self, name) != default]

    def loss_config(self, ratio_mode: str, **from_actor: float) -> Any:
        """The typed config of a mode, ``RATIO_MODES[ratio_mode]``, with what verl's actor config has added.

        Raises:
            ValueError: a value is of the wrong type or out of range; the message names the full key.
        """
        hyper = {f.name: getattr(self, f"{ratio_mode}_{f.name}") for f in _hyper_fields(ratio_mode)}
        try:
            return RATIO_MODES[ratio_mode](**hyper, **from_actor)
        except (TypeError, ValueError) as error:
            raise ValueError(_with_full_keys(str(error), ratio_mode, hyper)) from error


def _with_full_keys(message: str, ratio_mode: str, hyper: Mapping[str, Any]) -> str:
    """The message of a config class, ``maspo_ext: alpha: expected ...``, with the keys that the user typed."""
    start, what, rest = message.split(": ", 2)
    key = f"{KEY}.{ratio_mode}_{what}" if what in hyper else f"{ACTOR_KEY}.{what}"
    return f"{start}: {key}: " + re.sub(rf"\b({'|'.join(hyper)})\b", rf"{ratio_mode}_\1", rest)


def _make_fields() -> list[tuple[str, type, Any]]:
    made = [("ratio_mode", str, field(default=PPO))]
    for ratio_mode, config_class in RATIO_MODES.items():
        types = get_type_hints(config_class)
        for f in _hyper_fields(ratio_mode):
            made.append((f"{ratio_mode}_{f.name}", types[f.name], field(default=f.default)))
    return made


RatioClipConfig = make_dataclass("RatioClipConfig", _make_fields(), bases=(_RatioClip,))
RatioClipConfig.__module__ = __name__  # workers unpickle it by name
RatioClipConfig.__doc__ = f"""The section ``{KEY}``.

``ratio_mode`` is ``ppo`` (verl's own loss, as ``loss_mode`` says) or a mode of ``maspo_ext.config.RATIO_MODES``; the
other fields are that mode's hyper-parameters, ``<mode>_<field>``.

Raises:
    ValueError: unknown mode, or a value of the wrong type or out of range; the message names the full key.
"""


def keys() -> dict[str, Any]:
    """Every key under ``ratio_clip`` with its default."""
    return {f.name: f.default for f in fields(RatioClipConfig) if f.name != "_target_"}


def parse_ratio_clip(section: Any) -> Any:
    """``RatioClipConfig`` of what Hydra hands over: the section as a mapping, which may lack keys.

    Raises:
        ValueError: no mapping, an unknown key, or a wrong value.
    """
    if isinstance(section, RatioClipConfig):
        return section
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        raise key_error(KEY, f"a section with keys out of {', '.join(keys())}", section, f"Set {KEY}.ratio_mode=maspo.")
    given = {name: value for name, value in section.items() if name != "_target_"}
    for name in given:
        if name not in keys():
            raise key_error(
                f"{KEY}.{name}",
                f"one of the keys {', '.join(keys())}",
                name,
                did_you_mean(name, keys(), "Remove it, or check its spelling."),
            )
    return RatioClipConfig(**given)
