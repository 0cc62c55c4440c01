"""Refuses distillation by policy gradient: verl trains its own PPO loss there, whatever the actor's loss is."""

import functools
from types import ModuleType

from .import_hook import when_imported
from .ratio_modes import ratio_mode_of


def install_refusal() -> None:
    """Guard ``verl.trainer.distillation.losses`` in this process; a second call changes nothing."""
    when_imported("verl.trainer.distillation.losses", _guard)


def _guard(losses: ModuleType) -> None:
    # verl looks this name up at each call, so it also holds in modules that imported distillation_ppo_loss before.
    distillation_loss = losses.distillation_loss

    @functools.wraps(distillation_loss)
    def checked(config, distillation_config, model_output, data):
        ratio_mode = ratio_mode_of(config.policy_loss.loss_mode)
        if ratio_mode is not None and distillation_config.distillation_loss.use_policy_gradient:
            raise ValueError(
                f"maspo_ext: distillation.distillation_loss.use_policy_gradient: expected False with "
                f"ratio_mode={ratio_mode}, got True. verl would train its own PPO loss on the distillation signal: "
                f"set it to False (the task rewards then train with {ratio_mode}), or use ratio_mode=ppo."
            )
        return distillation_loss(config, distillation_config, model_output, data)

    losses.distillation_loss = checked
