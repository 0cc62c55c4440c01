"""Two places where stock verl assumes an accelerator and no setting helps. Each function adapts one verl module."""

import functools
from types import ModuleType


def use_plain_gloo(distributed: ModuleType) -> None:
    """``verl.utils.distributed``: open the process group with the backend ``gloo``.

    verl builds ``"cpu:gloo,<device>:<backend>"``, which reads ``"cpu:gloo,cpu:gloo"`` here; torch refuses a device
    named twice.
    """
    distributed.initialize_global_process_group_ray = functools.partial(
        distributed.initialize_global_process_group_ray, backend="gloo"
    )


def do_not_pin_memory(transformer_impl: ModuleType) -> None:
    """``verl.workers.engine.fsdp.transformer_impl``: offloaded parameters of a KL reference in ordinary memory.

    verl pins them for faster copies to the accelerator; torch cannot pin memory without one.
    """
    policy = transformer_impl.CPUOffloadPolicy

    def unpinned_offload_policy(pin_memory: bool = False):
        return policy(pin_memory=False)

    transformer_impl.CPUOffloadPolicy = unpinned_offload_policy
