"""The config class of ``actor_rollout_ref.actor.policy_loss``, named there by ``_target_``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import verl.workers.config

from maspo_ext.config import RATIO_MODES

from . import distillation, registration
from .ratio_clip import KEY, POLICY_LOSS_KEY, PPO, RatioClipConfig, key_error, parse_ratio_clip
from .versions import require_supported_verl

_log = logging.getLogger(__name__)
_VERL_DEFAULT = "vanilla"

require_supported_verl()
# Also where the entry point was not loaded (verl hides its errors): whoever can name this class has the loss.
registration.install()


@dataclass
class PolicyLossConfig(verl.workers.config.PolicyLossConfig):
    """verl's ``PolicyLossConfig`` with the section ``ratio_clip``.

    ``ratio_clip.ratio_mode=maspo`` and ``loss_mode=maspo`` say the same; with ``ratio_mode=ppo`` (the default) and any
    other ``loss_mode``, verl's own loss is used and nothing of verl is touched.

    Attributes:
        ratio_clip: :class:`RatioClipConfig`, or the section as a mapping.

    Raises:
        ValueError: a wrong key or value under ``ratio_clip``, or a ``loss_mode`` that contradicts it.
    """

    ratio_clip: RatioClipConfig = field(default_factory=RatioClipConfig)

    def __post_init__(self) -> None:
        # verl 0.9 has none; a later one may.
        getattr(super(), "__post_init__", lambda: None)()
        ratio_clip = parse_ratio_clip(self.ratio_clip)
        # verl's configs are frozen once set; verl's own classes do the same in __post_init__.
        object.__setattr__(self, "ratio_clip", ratio_clip)
        object.__setattr__(self, "loss_mode", _loss_mode(self.loss_mode, ratio_clip.ratio_mode))
        if self.loss_mode in RATIO_MODES:
            distillation.install_refusal()
        else:
            _warn_of_unused_keys(ratio_clip)


def _loss_mode(loss_mode: str, ratio_mode: str) -> str:
    """The name in verl's registry of the loss that both keys ask for."""
    if ratio_mode == PPO:
        return loss_mode
    if loss_mode not in (_VERL_DEFAULT, ratio_mode):
        bypass = (
            f" (For MASPO with the rollout's log-probabilities as the old ones, keep loss_mode={_VERL_DEFAULT} and set "
            "algorithm.rollout_correction.bypass_mode=True.)"
            if loss_mode == "bypass_mode"
            else ""
        )
        raise key_error(
            f"{POLICY_LOSS_KEY}.loss_mode",
            f"{_VERL_DEFAULT} or {ratio_mode}, since {KEY}.ratio_mode={ratio_mode}",
            loss_mode,
            f"Both choose the loss: drop this one, or set ratio_mode={PPO} to train with verl's {loss_mode}.{bypass}",
        )
    return ratio_mode


def _warn_of_unused_keys(ratio_clip: RatioClipConfig) -> None:
    for ratio_mode in RATIO_MODES:
        changed = ratio_clip.changed_keys(ratio_mode)
        if changed:
            _log.warning(
                "maspo_ext: %s: %s set but not used, since ratio_mode=%s trains with verl's own loss. "
                "Set %s.ratio_mode=%s to use it.", KEY, ", ".join(changed), PPO, KEY, ratio_mode,
            )  # fmt: skip
