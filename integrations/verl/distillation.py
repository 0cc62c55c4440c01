"""Refuses distillation by policy gradient: verl trains its own PPO loss there, whatever the actor's loss is."""

import functools
from types import ModuleType

from maspo_ext.config import RATIO_MODES

from .import_hook import when_imported

_installed = False


def install_refusal() -> None:
    """Guard ``verl.trainer.distillation.losses`` in this process; does nothing the second time."""
    global _installed
    if not _installed:
        _installed = True
        when_imported("verl.trainer.distillation.losses", _guard)


def _guard(losses: ModuleType) -> None:
    # verl looks this name up at each call, so it also holds in modules that imported distillation_ppo_loss before.
    distillation_loss = losses.distillation_loss

    @functools.wraps(distillation_loss)
    def checked(config, distillation_config, model_output, data):
        loss_mode = config.policy_loss.loss_mode
        if loss_mode in RATIO_MODES and distillation_config.distillation_loss.use_policy_gradient:
            raise ValueError(
                f"maspo_ext: distillation.distillation_loss.use_policy_gradient: expected False with "
                f"ratio_mode={loss_mode}, got True. verl would train its own PPO loss on the distillation signal: "
                f"set it to False (the task rewards then train with {loss_mode}), or use ratio_mode=ppo."
            )
        return distillation_loss(config, distillation_config, model_output, data)

    losses.distillation_loss = checked
