"""The config class of ``actor_rollout_ref.actor.policy_loss``, named there by ``_target_``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import verl.workers.config
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

from maspo_ext.errors import did_you_mean
from maspo_ext.methods.names import mode_meant_by

from . import actor_config, distillation, registration
from .ratio_clip import (
    ENTROPY_ADV_KEYS,
    KEY,
    POLICY_LOSS_KEY,
    SWITCHES,
    RatioClipConfig,
    key_error,
    keys,
    parse_ratio_clip,
)
from .ratio_modes import FUSED, PPO, ratio_mode_of, registry_name
from .versions import require_supported_verl

_log = logging.getLogger(__name__)
_VERL_DEFAULT = "vanilla"

require_supported_verl()
# Also where the entry point was not loaded (verl hides its errors): whoever can name this class has the loss.
registration.install()
actor_config.install_checks(verl.workers.config.ActorConfig)


@dataclass
class PolicyLossConfig(verl.workers.config.PolicyLossConfig):
    """verl's ``PolicyLossConfig`` with the section ``ratio_clip``.

    ``ratio_clip.ratio_mode=maspo`` and ``loss_mode=maspo`` say the same, and so do ``ratio_mode=dac`` and
    ``loss_mode=maspo_ext.dac``; with ``ratio_mode=ppo`` (the default) and any other ``loss_mode``, the loss is verl's.

    Attributes:
        ratio_clip: :class:`RatioClipConfig`, or the section as a mapping.

    Raises:
        ValueError: a wrong key or value under ``ratio_clip``, or a ``loss_mode`` that contradicts it.
    """

    ratio_clip: RatioClipConfig = field(default_factory=RatioClipConfig)

    def __new__(cls, *_: Any, **given: Any) -> PolicyLossConfig:
        """Refuses keys of ``ratio_clip`` one level too high, of which the generated constructor would not say where they belong."""
        for name, value in given.items():
            if name in keys():
                raise key_error(
                    f"{POLICY_LOSS_KEY}.{name}", "this key one level below, under ratio_clip", value, f"Set {KEY}.{name}={value}."
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        # verl 0.9 has none; a later one may.
        getattr(super(), "__post_init__", lambda: None)()
        ratio_clip = parse_ratio_clip(self.ratio_clip)
        # verl's configs are frozen once set; verl's own classes do the same in __post_init__.
        object.__setattr__(self, "ratio_clip", ratio_clip)
        object.__setattr__(self, "loss_mode", _loss_mode(self.loss_mode, ratio_clip.ratio_mode))
        ratio_mode = ratio_mode_of(self.loss_mode)
        if ratio_mode is None:
            _require_no_switch(ratio_clip, self.loss_mode)
        else:
            distillation.install_refusal()
        _warn_of_unused_keys(ratio_clip, ratio_mode)


def _loss_mode(loss_mode: str, ratio_mode: str) -> str:
    """The name in verl's registry of the loss that both keys ask for."""
    if ratio_mode == PPO:
        _require_no_misspelt_mode(loss_mode)
        return loss_mode
    name = registry_name(ratio_mode)
    if loss_mode not in (_VERL_DEFAULT, name):
        bypass = (
            f" (For {ratio_mode} with the rollout's log-probabilities as the old ones, keep "
            f"loss_mode={_VERL_DEFAULT} and set algorithm.rollout_correction.bypass_mode=True.)"
            if loss_mode == "bypass_mode"
            else ""
        )
        verls_own = loss_mode in POLICY_LOSS_REGISTRY
        instead = f", or set ratio_mode={PPO} to train with {loss_mode}" if verls_own else ""
        raise key_error(
            f"{POLICY_LOSS_KEY}.loss_mode",
            f"{_VERL_DEFAULT} or {name}, since {KEY}.ratio_mode={ratio_mode}",
            loss_mode,
            f"Both choose the loss: drop this one{instead}.{bypass}",
        )
    return name


def _require_no_misspelt_mode(loss_mode: str) -> None:
    """verl says of an unknown loss only when it is called, after the first rollout.

    A loss of the user's own may still come, by a name like one of verl's, too: what resembles none of our modes is warned of only.
    """
    if loss_mode in POLICY_LOSS_REGISTRY:
        return
    meant = mode_meant_by(str(loss_mode).lower().removeprefix("maspo_ext."), FUSED, cutoff=0.75)
    if meant is not None:
        raise key_error(
            f"{POLICY_LOSS_KEY}.loss_mode",
            f"one of verl's losses ({', '.join(sorted(POLICY_LOSS_REGISTRY))})",
            loss_mode,
            f"Did you mean {KEY}.ratio_mode={meant}?",
        )
    known = ", ".join(sorted(POLICY_LOSS_REGISTRY))
    _log.warning(
        "maspo_ext: %s.loss_mode: expected a loss that is registered (%s), got %r. %s If your own code registers it later, all is well; "
        "otherwise verl stops at the first update.",
        POLICY_LOSS_KEY, known, loss_mode, did_you_mean(loss_mode, POLICY_LOSS_REGISTRY, "Check the spelling."),
    )  # fmt: skip


def _require_no_switch(ratio_clip: RatioClipConfig, loss_mode: str) -> None:
    """Refuse what would change the algorithm, where verl's own loss cannot do it."""
    for switch in SWITCHES:
        if getattr(ratio_clip, switch):
            raise key_error(
                f"{KEY}.{switch}",
                f"False, since ratio_mode={PPO} trains with verl's own {loss_mode} loss",
                True,
                f"Set {KEY}.ratio_mode=grpo for PPO's clip with it, or another mode.",
            )


def _warn_of_unused_keys(ratio_clip: RatioClipConfig, ratio_mode: str | None) -> None:
    chosen = f"{PPO}, verl's own loss" if ratio_mode is None else ratio_mode
    for other, changed in ratio_clip.unused_keys(ratio_mode).items():
        could_be_beside = ratio_mode is not None and not ratio_clip.entropy_adv and set(changed) <= set(ENTROPY_ADV_KEYS)
        beside = f", {KEY}.entropy_adv=True to use it beside {chosen}" if could_be_beside else ""
        _log.warning(
            "maspo_ext: %s: %s set but not used by ratio_mode=%s. Set %s.ratio_mode=%s to use it%s, or drop it.",
            KEY, ", ".join(changed), chosen, KEY, other, beside,
        )  # fmt: skip
