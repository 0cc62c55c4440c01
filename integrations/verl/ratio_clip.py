"""The keys under ``actor_rollout_ref.actor.policy_loss.ratio_clip``: names, defaults, errors.

Names and defaults come from the config classes in ``maspo_ext.methods.RATIO_MODES``; a field ``alpha`` of the mode
``maspo`` is the key ``maspo_alpha``. The ranges are checked by those classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field as dataclass_field
from dataclasses import fields, make_dataclass
from typing import Any, get_args, get_type_hints

from verl.base_config import BaseConfig

from maspo_ext.checks.aggregation import LOSS_AGG_MODES
from maspo_ext.errors import did_you_mean
from maspo_ext.methods import RATIO_MODES, MethodConfig
from maspo_ext.methods.names import remedy_for

from .ratio_modes import FUSED, PPO, ratio_mode_of

ACTOR_KEY = "actor_rollout_ref.actor"
POLICY_LOSS_KEY = f"{ACTOR_KEY}.policy_loss"
KEY = f"{POLICY_LOSS_KEY}.ratio_clip"

# Defaults of verl's actor config.
VERL_CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}
VERL_LOSS_AGG_MODE = "token-mean"

# Keys of every mode: the dual clip where the method has none, and Entropy Adv. before another method.
SWITCHES = ("dual_clip", "entropy_adv")
ENTROPY_ADV_KEYS = ("entropy_adv_alpha", "entropy_adv_kappa")


def key_error(key: str, expected: str, got: Any, remedy: str) -> ValueError:
    """The error of a config key, in one line: Hydra shows errors by their repr."""
    return ValueError(f"maspo_ext: {key}: expected {expected}, got {got!r}. {remedy}")


def from_actor(ratio_mode: str) -> tuple[str, ...]:
    """The hyper-parameters of a mode that verl's actor config gives: PPO's clip, where both have the same defaults.

    Where they differ (Clip Higher's 0.28) they are keys of the mode, so that ``ratio_mode`` alone is the published one.
    """
    defaults = {f.name: f.default for f in fields(RATIO_MODES[ratio_mode]) if f.name in VERL_CLIP}
    return tuple(defaults) if defaults.items() <= VERL_CLIP.items() else ()


def hyper_names(ratio_mode: str) -> list[str]:
    """The hyper-parameters of a mode that are keys of its own, ``<mode>_<name>``."""
    return [f.name for f in fields(RATIO_MODES[ratio_mode]) if f.name not in from_actor(ratio_mode)]


def _agg_mode_key(ratio_mode: str) -> str | None:
    """The key of a mode whose reference aggregates otherwise than verl's default; None for the others."""
    as_verl = RATIO_MODES[ratio_mode].default_loss_agg_mode == VERL_LOSS_AGG_MODE
    return None if as_verl else f"{ratio_mode}_loss_agg_mode"


def _fields_of(ratio_mode: str) -> list[tuple[str, Any, Any]]:
    """``(key, type, default)`` of the keys of one mode."""
    config_class = RATIO_MODES[ratio_mode]
    types, made = get_type_hints(config_class), []
    for name in hyper_names(ratio_mode):
        made.append((f"{ratio_mode}_{name}", types[name], config_class.__dataclass_fields__[name].default))
    agg_mode_key = _agg_mode_key(ratio_mode)
    return made if agg_mode_key is None else [*made, (agg_mode_key, str | None, None)]


class _RatioClip(BaseConfig):
    def __post_init__(self) -> None:
        modes = [PPO, *FUSED]
        if self.ratio_mode not in modes:
            raise key_error(
                f"{KEY}.ratio_mode",
                f"one of {', '.join(modes)}",
                self.ratio_mode,
                _remedy_for_mode(self.ratio_mode, modes),
            )
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise key_error(f"{KEY}.{name}", "True or False", getattr(self, name), "False is the default.")
        for ratio_mode in FUSED:
            self._check_agg_mode(ratio_mode)
            if not self._awaits_actor(ratio_mode):
                self.loss_config(ratio_mode)

    def _check_agg_mode(self, ratio_mode: str) -> None:
        key = _agg_mode_key(ratio_mode)
        if key is not None and getattr(self, key) not in (None, *LOSS_AGG_MODES):
            raise key_error(
                f"{KEY}.{key}",
                f"null or one of {', '.join(LOSS_AGG_MODES)}",
                getattr(self, key),
                did_you_mean(
                    getattr(self, key), LOSS_AGG_MODES, f"null is {RATIO_MODES[ratio_mode].default_loss_agg_mode}."
                ),
            )

    def _awaits_actor(self, ratio_mode: str) -> bool:
        """Whether a null stands for a value out of the actor's clip ratios, so that the ranges depend on them."""
        nullable = [key for key, type_, _ in _fields_of(ratio_mode) if type(None) in get_args(type_)]
        return any(getattr(self, key) is None for key in nullable if key != _agg_mode_key(ratio_mode))

    def changed_keys(self, ratio_mode: str) -> list[str]:
        """The keys of a mode whose values differ from the defaults."""
        return [key for key, _, default in _fields_of(ratio_mode) if getattr(self, key) != default]

    def unused_keys(self, ratio_mode: str | None) -> dict[str, list[str]]:
        """By mode, its changed keys that ``ratio_mode`` (None: verl's own loss) does not read."""
        used = ENTROPY_ADV_KEYS if self.entropy_adv else ()
        unused = {other: [key for key in self.changed_keys(other) if key not in used] for other in FUSED}
        return {other: changed for other, changed in unused.items() if changed and other != ratio_mode}

    def shapes_by_entropy(self, ratio_mode: str) -> bool:
        """Whether the entropy goes into the advantages."""
        return self.entropy_adv or ratio_mode == "entropy_adv"

    def loss_agg_mode(self, ratio_mode: str, of_actor: str) -> str:
        """The aggregation of a mode, where the actor config has ``of_actor``.

        A mode whose reference aggregates otherwise than verl's default takes its own key first, then the actor's if
        that is not the default, then its reference's.
        """
        key = _agg_mode_key(ratio_mode)
        if key is None:
            return of_actor
        reference = RATIO_MODES[ratio_mode].default_loss_agg_mode
        return getattr(self, key) or (reference if of_actor == VERL_LOSS_AGG_MODE else of_actor)

    def loss_config(self, ratio_mode: str, **of_actor: float) -> MethodConfig:
        """The typed config of a mode, ``RATIO_MODES[ratio_mode]``, with what verl's actor config has added.

        Raises:
            ValueError: a value is of the wrong type or out of range; the message names the full key.
        """
        hyper = {name: getattr(self, f"{ratio_mode}_{name}") for name in hyper_names(ratio_mode)}
        for name, value in hyper.items():
            _require_no_yaml_inf(f"{KEY}.{ratio_mode}_{name}", value)
        try:
            return RATIO_MODES[ratio_mode](**hyper, **of_actor)
        except (TypeError, ValueError) as error:
            raise ValueError(_with_full_keys(str(error), ratio_mode)) from error


def _remedy_for_mode(name: Any, modes: list[str]) -> str:
    # Not above: verl's registry imports this module, to have our losses.
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    if isinstance(name, str) and name in POLICY_LOSS_REGISTRY and ratio_mode_of(name) is None:
        return f"For verl's own loss of that name set {POLICY_LOSS_KEY}.loss_mode={name} and {KEY}.ratio_mode={PPO}."
    return remedy_for(name, modes, f"{PPO} leaves the loss to loss_mode, verl's own.")


def _require_no_yaml_inf(key: str, value: Any) -> None:
    """A YAML file has ``.inf``; Hydra's command line reads that as a word."""
    if isinstance(value, str) and value.lower() in (".inf", "+.inf"):
        raise key_error(key, "a number", value, f"On a command line it has no dot: {key}=inf.")


def _with_full_keys(message: str, ratio_mode: str) -> str:
    """The message of a config class, ``maspo_ext: alpha: expected ...``, with the keys that the user typed."""
    start, what, rest = message.split(": ", 2)
    keys_of_mode = {name: f"{ratio_mode}_{name}" for name in hyper_names(ratio_mode)}
    full = {name: f"{KEY}.{key}" for name, key in keys_of_mode.items()}
    full |= {name: f"{ACTOR_KEY}.{name}" for name in from_actor(ratio_mode)}
    return f"{start}: {_replace_words(what, full)}: {_replace_words(rest, keys_of_mode)}"


def _replace_words(text: str, by: Mapping[str, str]) -> str:
    return re.sub(r"\w+", lambda word: by.get(word[0], word[0]), text)


_FIELDS = [
    ("ratio_mode", str, PPO),
    *(made for ratio_mode in FUSED for made in _fields_of(ratio_mode)),
    *((name, bool, False) for name in SWITCHES),
]
RatioClipConfig = make_dataclass(
    "RatioClipConfig",
    [(key, type_, dataclass_field(default=default)) for key, type_, default in _FIELDS],
    bases=(_RatioClip,),
)
RatioClipConfig.__module__ = __name__  # workers unpickle it by name
RatioClipConfig.__doc__ = f"""The section ``{KEY}``.

Attributes:
    ratio_mode: ``ppo`` (verl's own loss, as ``loss_mode`` says) or another mode of ``maspo_ext.methods.RATIO_MODES``.
    <mode>_<field>: that mode's hyper-parameters. Those of PPO's clip are the actor's ``clip_ratio_*``, where the mode
        has verl's defaults.
    sapo_loss_agg_mode: its aggregation; None: the actor's ``loss_agg_mode`` where that is not ``token-mean``, verl's
        default, else ``seq-mean-token-mean``.
    dual_clip: for ``A < 0`` count the ratio as at most ``clip_ratio_c``, with any fused mode.
    entropy_adv: Entropy Adv. with ``entropy_adv_alpha`` and ``entropy_adv_kappa`` before any fused mode.

Raises:
    ValueError: unknown mode, or a value of the wrong type or out of range; the message names the full key.
"""


def keys() -> dict[str, Any]:
    """Every key under ``ratio_clip`` with its default."""
    return {key: default for key, _, default in _FIELDS}


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
