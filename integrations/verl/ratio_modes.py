"""The values of ``ratio_mode`` that are ours, and the name of each in verl's policy loss registry."""

from __future__ import annotations

from maspo_ext.methods import RATIO_MODES

PPO = "ppo"  # verl's own loss, as loss_mode says; the fused PPO is grpo
FUSED = tuple(ratio_mode for ratio_mode in RATIO_MODES if ratio_mode != PPO)


def registry_name(ratio_mode: str) -> str:
    """``maspo``, and ``maspo_ext.<mode>`` for the others: verl has losses of its own by such names (``sapo``)."""
    return ratio_mode if ratio_mode == "maspo" else f"maspo_ext.{ratio_mode}"


def ratio_mode_of(loss_mode: str) -> str | None:
    """The ``ratio_mode`` of a name in verl's registry; None where the loss is not ours."""
    return next((ratio_mode for ratio_mode in FUSED if registry_name(ratio_mode) == loss_mode), None)
