"""Entry point ``maspo_cpu`` of the group ``verl.plugins``: importing this module does the registering.

verl loads it in every process (driver and Ray workers) at the end of ``import verl``, so it must stay light: whatever
needs more of verl than the platform registry waits until verl itself imports that part.
"""

import os

from ..import_hook import when_imported

ROLLOUT_NAME = "hf_cpu"

_PACKAGE = __name__.rpartition(".")[0]


def is_enabled() -> bool:
    """Whether the user asked for the CPU platform (``VERL_PLATFORM=cpu``)."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def install() -> None:
    """Register the CPU platform, the rollout backend and the adaptations with verl."""
    from verl.plugin.platform import PlatformRegistry

    from . import adaptations, requirements
    from .platform import PlatformCPU

    PlatformRegistry.register(platform="cpu")(PlatformCPU)

    # The engines are registered for "cuda" and "npu" only; this is verl's own switch to pick one of those classes
    # whatever the platform's device name is. Their code is device-agnostic.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")

    when_imported("verl.utils.config", requirements.check_before_validate_config)
    when_imported("verl.utils.distributed", adaptations.use_plain_gloo)
    when_imported("verl.workers.engine.fsdp.transformer_impl", adaptations.do_not_pin_memory)
    when_imported("verl.workers.rollout.replica", _register_replica)
    when_imported("verl.workers.rollout.base", _register_adapter)


def _register_replica(replica_module) -> None:
    def load():
        from .rollout_replica import CPUReplica

        return CPUReplica

    replica_module.RolloutReplicaRegistry.register(ROLLOUT_NAME, load)


def _register_adapter(base_module) -> None:
    # verl has no public function for this table of (name, mode) -> class path.
    base_module._ROLLOUT_REGISTRY[(ROLLOUT_NAME, "async")] = f"{_PACKAGE}.rollout_adapter.CPUServerAdapter"


if is_enabled():
    install()
