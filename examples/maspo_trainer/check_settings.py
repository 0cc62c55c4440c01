"""Compose verl's settings from overrides and let verl and maspo_ext check them, as ``main_ppo`` does before it starts Ray.

    CHECK_ONLY=1 bash examples/maspo_trainer/maspo_grpo.sh [verl overrides]

It takes seconds, so that a misspelt key or mode does not wait for what comes before the training.
"""

import sys
import warnings

import verl  # noqa: F401  loads the plug-ins, which add keys to verl's config
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device


def check(overrides: list[str]):
    """The composed config.

    Raises:
        Exception: whatever Hydra, verl or maspo_ext have against it.
    """
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides)
    auto_set_device(config)
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    return config


def main() -> None:
    warnings.filterwarnings("ignore", message="Disabled critic")  # as it should be with GRPO's advantages
    try:
        config = check(sys.argv[1:])
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
        while error.__cause__ is not None:  # Hydra wraps what a config class says
            error = error.__cause__
        sys.exit(f"settings: {error}")
    print(f"settings: fine (ratio_mode={config.actor_rollout_ref.actor.policy_loss.ratio_clip.ratio_mode})")


if __name__ == "__main__":
    main()
