"""The settings that a CPU run needs, checked in the driver before Ray starts.

Without these checks most of them surface minutes later in some worker, as an error about something else.
"""

import functools
from types import ModuleType

from omegaconf import DictConfig, OmegaConf


def check_before_validate_config(config_module: ModuleType) -> None:
    """``verl.utils.config``: let verl's own ``validate_config`` check the CPU requirements first."""
    validate = config_module.validate_config

    @functools.wraps(validate)
    def validate_config(config, use_reference_policy, use_critic):
        check_config(config, use_critic=use_critic)
        return validate(config, use_reference_policy=use_reference_policy, use_critic=use_critic)

    config_module.validate_config = validate_config


def check_config(config: DictConfig, use_critic: bool) -> None:
    """Raise a ``ValueError`` that lists every setting with which verl cannot run on a CPU, and its remedy."""
    from .plugin import ROLLOUT_NAME

    def get(key):
        return OmegaConf.select(config, key)

    ranks = get("trainer.n_gpus_per_node")
    # key or feature, is it fine, what it is now, what to do
    checks = [
        (
            "algorithm.adv_estimator",
            not use_critic,
            f"{get('algorithm.adv_estimator')} with a critic, whose value model needs flash_attention_2",
            "use an estimator without a critic, for example algorithm.adv_estimator=grpo",
        ),
        (
            "actor_rollout_ref.actor.strategy",
            get("actor_rollout_ref.actor.strategy") == "fsdp2",
            get("actor_rollout_ref.actor.strategy"),
            "set actor_rollout_ref.actor.strategy=fsdp2, the engine that the CPU platform adapts",
        ),
        (
            "trainer.v1.trainer_mode",
            get("trainer.v1.trainer_mode") != "separate_async",
            get("trainer.v1.trainer_mode"),
            "set trainer.v1.trainer_mode=sync or colocate_async (separate_async wants accelerators for the rollout)",
        ),
        (
            "actor_rollout_ref.rollout.name",
            get("actor_rollout_ref.rollout.name") == ROLLOUT_NAME,
            get("actor_rollout_ref.rollout.name"),
            f"set actor_rollout_ref.rollout.name={ROLLOUT_NAME}",
        ),
        (
            "rollout parallelism",
            get("actor_rollout_ref.rollout.tensor_model_parallel_size") == 1
            and get("actor_rollout_ref.rollout.data_parallel_size") == 1
            and get("actor_rollout_ref.rollout.pipeline_model_parallel_size") == 1,
            "tensor x data x pipeline = {} x {} x {}".format(
                get("actor_rollout_ref.rollout.tensor_model_parallel_size"),
                get("actor_rollout_ref.rollout.data_parallel_size"),
                get("actor_rollout_ref.rollout.pipeline_model_parallel_size"),
            ),
            "set actor_rollout_ref.rollout.tensor_model_parallel_size=1 (likewise data_parallel_size, "
            "pipeline_model_parallel_size): each rank has a replica of its own",
        ),
        (
            "attn_implementation",
            get("actor_rollout_ref.model.override_config.attn_implementation") in ("sdpa", "eager"),
            get("actor_rollout_ref.model.override_config.attn_implementation") or "flash_attention_2 (verl's default)",
            "add +actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        ),
        (
            "trainer.device",
            get("trainer.device") == "cpu",
            get("trainer.device"),
            "set trainer.device=cpu",
        ),
        (
            "ray_kwargs.ray_init.num_gpus",
            (get("ray_kwargs.ray_init.num_gpus") or 0) >= ranks,
            get("ray_kwargs.ray_init.num_gpus"),
            f"add +ray_kwargs.ray_init.num_gpus={ranks} (verl counts one Ray 'GPU' per rank; no device is touched)",
        ),
    ]
    wrong = [f"  {name}: got {got}; {remedy}" for name, fine, got, remedy in checks if not fine]
    if wrong:
        raise ValueError("VERL_PLATFORM=cpu: these settings cannot run on a CPU.\n" + "\n".join(wrong))
