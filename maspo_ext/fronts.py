"""The keywords that the functions and modules take besides hyper-parameters, and what to do about one that none of them is.

Read from their signatures, and only when a call is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from maspo_ext.errors import closest, message
from maspo_ext.methods import RATIO_MODES, MethodConfig

# What others call it: by names that every mode has its own for (``MethodConfig.aliases``), or by ours.
_ELSEWHERE = {
    "bapo_sums": ("all_reduce_sums",),
    "beta": ("kl_coef",),
    "clip_eps": ("clip_low", "clip_high"),
    "clip_ratio": ("clip_low", "clip_high"),
    "cliprange": ("clip_low", "clip_high"),
    "delta": ("clip_c",),
    "eps_clip": ("clip_low", "clip_high"),
    "epsilon": ("clip_low", "clip_high"),
    "epsilon_low": ("clip_low",),
    "epsilon_high": ("clip_high",),
    "hyper": ("config",),
    "loss_type": ("ratio_mode", "loss_agg_mode"),
    "mask": ("response_mask",),
    "reduction": ("loss_agg_mode",),
    "rollout_is_lower": ("rollout_is_threshold",),
    "rollout_is_upper": ("rollout_is_threshold",),
}


class _Place(NamedTuple):
    """Keywords, and what takes them."""

    what: str
    names: tuple[str, ...]


def unknown_keywords(front: str, names: list[str], config_class: type[MethodConfig]) -> TypeError:
    """The error of keywords that ``front`` (``"policy_loss"``, ``"LinearPolicyLoss"``, ...) does not take."""
    fields = ", ".join(config_class.__dataclass_fields__)
    return TypeError(
        message(
            front,
            f"keywords of {config_class.__name__} ({fields}), or those of {front} itself",
            ", ".join(names),
            _remedy(lambda: _places_of_front(front, config_class), names[0], config_class),
        )
    )


def require_call_keywords(front: str, options: dict[str, Any], config_class: type[MethodConfig], own: frozenset[str]) -> None:
    """Of the call of a module: ``own`` are the keywords that it takes.

    Raises:
        TypeError: one belongs to the construction of the module, or to nothing.
    """
    names = [name for name in options if name not in own]
    if not names:
        return
    made_with = ("ratio_mode", "config", *config_class.__dataclass_fields__, *config_class.aliases)
    fixed = [name for name in names if name in made_with]
    if fixed:
        expected, got = "the method and its hyper-parameters at construction", f"{', '.join(fixed)} in a call"
        raise TypeError(message(front, expected, got, "Make another module, or call the function."))
    places = [_Place("a call", tuple(sorted(own))), _Place("the construction of the module", made_with), _linear_module()]
    expected = f"in a call keywords out of {', '.join(places[0].names)}"
    raise TypeError(message(front, expected, ", ".join(names), _remedy(lambda: places, names[0], config_class)))


def keywords_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """All that it names; its ``**options`` and ``**hyper`` are not among them."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD)


def _policy_loss() -> tuple[str, ...]:
    from maspo_ext.functional import policy_loss  # which needs this module

    return keywords_of(policy_loss)


def _linear_loss() -> tuple[str, ...]:
    from maspo_ext.logits.linear_loss import keywords_of_linear_loss  # as above

    return keywords_of_linear_loss()


def _linear_module() -> _Place:
    from maspo_ext.modules import LinearPolicyLoss  # as above

    return _Place("maspo_ext.LinearPolicyLoss", LinearPolicyLoss.settings)


def _places_of_front(front: str, config_class: type[MethodConfig]) -> list[_Place]:
    """The front's own keywords first, then what is near."""
    fields = tuple(config_class.__dataclass_fields__)
    if front == "policy_loss":
        return [_Place(front, fields + _policy_loss()), _Place("maspo_ext.linear_loss", _linear_loss())]
    if front == "linear_loss":
        return [_Place(front, fields + _linear_loss())]
    from maspo_ext import modules  # as above

    module = getattr(modules, front)
    settings = ("ratio_mode", "config", *module.settings)
    of_call = _Place("a call of the module", tuple(sorted(module.keywords_of_call)))
    return [_Place(front, fields + settings), of_call, _linear_module()]


def _remedy(find_places: Callable[[], list[_Place]], name: str, config_class: type[MethodConfig]) -> str:
    """What was meant, as far as the name shows it; among the keywords of what was called, which come first, and of what is near."""
    if torch.compiler.is_compiling():  # which cannot trace what follows
        return "Check the spelling."
    places = find_places()
    meant = [config_class.aliases.get(other, other) for other in _ELSEWHERE.get(name, ())]
    if any(all(word not in place.names for place in places) for word in meant):
        return f"It would be {' and '.join(meant)}, which {config_class.__name__} does not have: drop it."
    if meant:
        return f"Did you mean {' and '.join(meant)}{_belonging(meant[0], places)}?"
    modes = [mode for mode, other in RATIO_MODES.items() if name in other.__dataclass_fields__]
    if modes:
        return f"It belongs to ratio_mode={' or '.join(map(repr, modes))}."
    if any(name in place.names for place in places):
        return f"It belongs to {next(place.what for place in places if name in place.names)}."
    close = closest(name, [word for place in places for word in place.names])
    return "Check the spelling." if close is None else f"Did you mean {close}{_belonging(close, places)}?"


def _belonging(name: str, places: list[_Place]) -> str:
    """Where else than in what was called a name belongs."""
    place = next(place for place in places if name in place.names)
    return "" if place is places[0] else f", which belongs to {place.what}"
