"""Updates of stock verl's FSDP engines on the CPU with impl_backend=maspo, and the same ones without fused kernels.

Run by test_fused_kernels.py in processes of its own, one per rank: ``python fused_update.py <models folder> <result.pt>``.
"""

import os
import sys

import torch
from fsdp_update import actor_of, data_of_rank, make_worker, verl_update
from plain_update import VOCABULARY, make_batch
from torch.distributed.fsdp import _init_utils as fsdp1
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import no_padding_2_padding

import maspo_ext

ACTOR = "actor_rollout_ref.actor"
FUSED = {"use_fused_kernels": True, "fused_kernel_options": {"impl_backend": "maspo"}}
CHECKPOINTED = {"use_remove_padding": True, "enable_gradient_checkpointing": True}
# By name: which model, its settings, the temperature (verl hands on what the command line says: an int, too), the loss,
# and overrides of the actor.
CASES = {
    "padded": ("untied", {}, 1, "maspo", []),
    "packed": ("untied", {"use_remove_padding": True}, 0.7, "maspo", []),
    "tied": ("tied", {"use_remove_padding": True}, 0.7, "maspo", []),
    "checkpointed": ("untied", CHECKPOINTED, 0.7, "maspo", []),
    "fsdp1": ("tied", {}, 0.7, "maspo", [f"{ACTOR}.strategy=fsdp"]),
    "vision": ("vision", {}, 0.7, "maspo", []),
    "entropy": ("untied", {}, 1.3, "entropy_adv", [f"{ACTOR}.entropy_coeff=0.5"]),
    "lora": ("untied", {"lora_rank": 4}, 0.7, "maspo", []),
    "bfloat16": ("untied", {"use_remove_padding": True}, 0.7, "maspo", [f"{ACTOR}.fsdp_config.mixed_precision=null"]),
}
ULYSSES = [f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size=2"]
CASES_OF_RANKS = {1: CASES, 2: CASES | {"ulysses": ("untied", {"use_remove_padding": True}, 0.7, "maspo", ULYSSES)}}


class Spy:
    """Counts calls of the op, and of heads that make logits; notes the dtypes of hidden states and weight."""

    def __init__(self):
        self.op, self.linear = maspo_ext.linear_logprob, torch.nn.Linear.forward
        self.calls, self.logits, self.dtypes = 0, 0, set()
        maspo_ext.linear_logprob = self.count_op
        torch.nn.Linear.forward = lambda layer, hidden: self.count_linear(layer, hidden)

    def count_op(self, hidden, weight, *rest, **keywords):
        self.calls += 1
        self.dtypes |= {hidden.dtype, weight.dtype}
        return self.op(hidden, weight, *rest, **keywords)

    def count_linear(self, layer, hidden):
        self.logits += layer.out_features == VOCABULARY
        return self.linear(layer, hidden)

    def stop(self):
        maspo_ext.linear_logprob, torch.nn.Linear.forward = self.op, self.linear
        return {"calls": self.calls, "logits": self.logits, "dtypes": self.dtypes}


def run(models, model, settings, temperature, ratio_mode, overrides):
    """What one worker computes: the policy, an update with that as the old policy (one rank), and one with another."""
    torch.manual_seed(0)  # of an adapter's start
    actor = actor_of(ratio_mode, [f"{ACTOR}.ppo_micro_batch_size_per_gpu=1", *overrides])
    worker, batch = make_worker(f"{models}/{model}", actor, **settings), make_batch()
    spy = Spy()
    data = data_of_rank(
        worker, batch, temperature=temperature, calculate_entropy=True, compute_loss=False, micro_batch_size_per_gpu=1
    )
    policy, on_policy = worker.infer_batch(data), None
    if torch.distributed.get_world_size() == 1:
        old_log_probs = no_padding_2_padding(tu.get(policy, "log_probs"), data)
        on_policy, *_ = verl_update(worker, actor, batch | {"old_log_probs": old_log_probs}, temperature)
    metrics, gradients, moved = verl_update(worker, actor, batch, temperature)
    return {
        "policy": None if policy is None else {name: tu.get(policy, name) for name in ("log_probs", "entropy")},
        "on_policy": on_policy,
        "metrics": metrics,
        "gradients": gradients,
        "moved": moved,
        **spy.stop(),
    }


def main(models, result_path):
    # FSDP1 sends the first rank's weights to the others, and insists on doing so from a GPU; Gloo can do it, too.
    fsdp1._check_module_states_for_sync_module_states = lambda module_states: None
    results = {}
    for name, (model, settings, *rest) in CASES_OF_RANKS[int(os.environ["WORLD_SIZE"])].items():
        results[name] = [run(models, model, settings | fused, *rest) for fused in ({}, FUSED)]
    if torch.distributed.get_rank() == 0:
        torch.save(results, result_path)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
