"""Driver side of the CPU rollout: starts one server actor per replica."""

import ray
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.replica import RolloutReplica

from .rollout_server import RolloutServer


def server_name(replica_rank: int) -> str:
    """The Ray name under which the trainer's workers find the server of a replica."""
    return f"hf_cpu_server_{replica_rank}"


class CPUReplica(RolloutReplica):
    """A rollout replica of one process, beside the training worker of the same rank."""

    async def launch_servers(self) -> None:
        if self.is_reward_model or self.is_teacher_model:
            raise NotImplementedError(
                "rollout.name=hf_cpu: serves the policy only, was asked to serve a reward model or a teacher; "
                "set reward.reward_model.enable=False and distillation.enabled=False."
            )
        server = (
            ray.remote(RolloutServer)
            .options(name=server_name(self.replica_rank), max_concurrency=self.max_concurrency)
            .remote(
                config=self.config,
                model_config=omega_conf_to_dataclass(self.model_config),
                replica_rank=self.replica_rank,
            )
        )
        await server.no_op.remote()  # wait until the model is built, and fail here if it can't be
        self.servers = [server]
        self._server_handle = server
        # Only the key of verl's load balancer: there is no HTTP endpoint.
        self._server_address = server_name(self.replica_rank)
