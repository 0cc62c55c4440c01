"""Trainer side of the CPU rollout: lives in each training worker and pushes its weights to the replica's server."""

import ray
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.rollout.base import BaseRollout

from .rollout_replica import server_name


class CPUServerAdapter(BaseRollout):
    """Sends full named weights to the server of this rank's replica through Ray's object store."""

    async def resume(self, tags: list[str]) -> None:
        """Nothing was released."""

    async def release(self) -> None:
        """Trainer and server are separate processes in host memory; there is nothing to hand over."""

    async def update_weights(self, weights, global_steps: int | None = None, wire_format="named_tensors", **kwargs):
        """Replace the server's weights by ``weights``, an iterable of ``(name, tensor)``."""
        if wire_format != "named_tensors":
            raise NotImplementedError(
                f"wire_format: the CPU rollout takes 'named_tensors', got {wire_format!r}; "
                "set actor_rollout_ref.rollout.checkpoint_engine.backend=naive."
            )
        if kwargs.get("peft_config") is not None:
            raise NotImplementedError(
                "peft_config: the CPU rollout loads full weights, got LoRA adapters; "
                "set actor_rollout_ref.model.lora.merge=True."
            )
        dtype = PrecisionType.to_dtype(self.config.dtype)
        # Every rank iterates, because gathering a sharded tensor is a collective.
        full = {name: tensor.detach().to(dtype=dtype, copy=True) for name, tensor in weights}
        server = ray.get_actor(server_name(self.device_mesh["dp"].get_local_rank()))
        await server.update_weights.remote(full, global_steps)
