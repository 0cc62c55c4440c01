"""What a loss takes from the rest of verl's actor config, and the checks that need all of it."""

from __future__ import annotations

import functools
import logging
from typing import Any

from maspo_ext.checks.numbers import check_positive
from maspo_ext.methods import RATIO_MODES, MethodConfig

from .model_output import missing_entropy
from .ratio_clip import ACTOR_KEY, KEY, VERL_CLIP, from_actor, hyper_names, key_error, parse_ratio_clip
from .ratio_modes import ratio_mode_of

_log = logging.getLogger(__name__)


def loss_config(actor: Any, ratio_clip: Any, ratio_mode: str) -> MethodConfig:
    """The config of a mode, out of ``ratio_clip`` and, where the mode shares them, the actor's ``clip_ratio_*``.

    Raises:
        ValueError: a value is out of range; the message names the full key.
    """
    of_actor = {
        "clip_ratio_low": actor.clip_ratio if actor.clip_ratio_low is None else actor.clip_ratio_low,
        "clip_ratio_high": actor.clip_ratio if actor.clip_ratio_high is None else actor.clip_ratio_high,
        "clip_ratio_c": actor.get("clip_ratio_c", VERL_CLIP["clip_ratio_c"]),
    }
    return ratio_clip.loss_config(ratio_mode, **{name: of_actor[name] for name in from_actor(ratio_mode)})


def install_checks(actor_config_class: type) -> None:
    """Have verl's ``ActorConfig`` check itself against our loss, too, as soon as it is made: in the driver."""
    post_init = actor_config_class.__post_init__

    @functools.wraps(post_init)
    def checked(self) -> None:
        post_init(self)
        ratio_mode = ratio_mode_of(self.policy_loss.get("loss_mode"))
        if ratio_mode is not None:
            _check(self, ratio_mode)

    actor_config_class.__post_init__ = checked


def _check(actor: Any, ratio_mode: str) -> None:
    ratio_clip = parse_ratio_clip(actor.policy_loss.get("ratio_clip", {}))
    loss_config(actor, ratio_clip, ratio_mode)
    # verl's trainers compute the entropy in these two cases.
    if ratio_clip.shapes_by_entropy(ratio_mode) and not (actor.get("calculate_entropy") or actor.entropy_coeff != 0):
        raise missing_entropy()
    factor = actor.get("loss_scale_factor")
    if factor is not None:  # as the loss does at the first update, which is after the first rollout
        check_positive(f"{ACTOR_KEY}.loss_scale_factor", factor, "It divides the sequence sums; null takes the padded width.")
    megatron = actor.get("megatron")
    if ratio_mode == "bapo" and megatron is not None and megatron.get("dynamic_context_parallel", False):
        raise key_error(
            f"{ACTOR_KEY}.megatron.dynamic_context_parallel",
            f"False, since {KEY}.ratio_mode=bapo",
            True,
            "There the ranks of a micro-batch vary, and verl has no group to search its bounds over: set it to False.",
        )
    _warn_of_unused_settings(actor, ratio_mode)


def _warn_of_unused_settings(actor: Any, ratio_mode: str) -> None:
    """Clip ratios and taus of the actor that verl's loss of that kind reads, and ours has keys of its own for."""
    own = hyper_names(ratio_mode)
    candidates = {*VERL_CLIP, *own} - {*from_actor(ratio_mode)}
    for name, field in actor.__dataclass_fields__.items():
        value = getattr(actor, name)
        if name in candidates and value is not None and value != field.default:
            # The reference implementations' names are verl's without "ratio".
            field_of_mode = RATIO_MODES[ratio_mode].aliases.get(name.replace("ratio_", ""), name)
            has_own = field_of_mode in own
            instead = f"which has a key of its own: {KEY}.{ratio_mode}_{field_of_mode}" if has_own else "which has none: drop it"
            _log.warning(
                "maspo_ext: %s.%s=%r set but not used by ratio_mode=%s, %s.", ACTOR_KEY, name, value, ratio_mode, instead
            )
