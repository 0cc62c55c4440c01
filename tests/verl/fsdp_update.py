"""One update of stock verl's FSDP2 engine on the CPU, and the same loss and gradients in plain torch.

Run by test_door_update.py in processes of its own, one per rank (torch's environment variables RANK, WORLD_SIZE, ...):
``python fsdp_update.py <model folder> <result.pt> [override ...]``.
"""

import sys
from functools import partial

import torch
import verl  # noqa: F401  loads the plugins
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import left_right_2_no_padding

from maspo_ext import reference

ROWS, PROMPT, RESPONSE, VOCABULARY = 4, 3, 6, 64
RATIO_CLIP = "actor_rollout_ref.actor.policy_loss.ratio_clip"
OVERRIDES = [
    f"{RATIO_CLIP}.ratio_mode=maspo",
    f"{RATIO_CLIP}.maspo_alpha=0.5",
    f"{RATIO_CLIP}.maspo_sigma_high=1.5",
    "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
    "actor_rollout_ref.actor.optim.clip_grad=1e9",
    "++actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}",
    "actor_rollout_ref.actor.use_torch_compile=False",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
]


def make_batch():
    """A padded batch with responses of different lengths; the same on every rank."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([6, 2, 5, 3])
    response_mask = (torch.arange(RESPONSE) < lengths[:, None]).long()
    attention_mask = torch.cat([torch.ones(ROWS, PROMPT, dtype=torch.long), response_mask], dim=1)
    input_ids = torch.randint(1, VOCABULARY, (ROWS, PROMPT + RESPONSE), generator=draw) * attention_mask
    return {
        "input_ids": input_ids,
        "prompts": input_ids[:, :PROMPT],
        "responses": input_ids[:, PROMPT:],
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "response_mask": response_mask,
        "advantages": torch.randn(ROWS, 1, generator=draw).expand(ROWS, RESPONSE).contiguous(),
        "rollout_is_weights": 0.5 + torch.rand(ROWS, RESPONSE, generator=draw),
        # Off-policy enough for the gate to act on both sides.
        "old_log_probs": -4.2 + 0.8 * torch.randn(ROWS, RESPONSE, generator=draw),
    }


def reference_update(model, batch, loss_agg_mode):
    """Loss and gradients of the whole batch by one plain forward and ``maspo_ext.reference``."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, PROMPT - 1 : -1]
    log_prob = logits.float().log_softmax(-1).gather(-1, batch["responses"].unsqueeze(-1)).squeeze(-1)
    loss, _ = reference.maspo_loss(
        log_prob,
        batch["old_log_probs"],
        batch["advantages"],
        batch["response_mask"],
        rollout_is_weights=batch["rollout_is_weights"],
        alpha=0.5,
        sigma_high=1.5,
        loss_agg_mode=loss_agg_mode,
    )
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def verl_update(model_path, batch, overrides):
    """Metrics, gradients and parameters after one ``TrainingWorker.train_batch``."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", OVERRIDES + overrides)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    model = HFModelConfig(
        path=model_path,
        load_tokenizer=False,
        use_remove_padding=False,
        enable_gradient_checkpointing=False,
        override_config={"attn_implementation": "sdpa"},
    )
    # As verl's ActorRolloutRefWorker does.
    actor.engine.use_dynamic_bsz = False
    actor.engine.micro_batch_size_per_gpu = actor.ppo_micro_batch_size_per_gpu
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=model,
            engine_config=actor.engine,
            optimizer_config=actor.optim,
            checkpoint_config=actor.checkpoint,
        )
    )
    worker.reset()
    worker.set_loss_fn(partial(ppo_loss, config=actor))

    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    rows = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
    data = TensorDict({name: value[rows].clone() for name, value in batch.items()}, batch_size=ROWS // ranks)
    data = left_right_2_no_padding(data)
    tu.assign_non_tensor(data, global_batch_size=ROWS, temperature=1.0)
    before, gradients = parameters(worker), {}
    # verl clears the gradients after the step.
    worker.engine.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: full(p.grad) for name, p in worker.engine.module.named_parameters()})
    )
    output = worker.train_batch(data)
    return tu.get(output, "metrics"), gradients, before, parameters(worker)


def full(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def parameters(worker):
    return {name: full(p) for name, p in worker.engine.module.named_parameters()}


def main(model_path, result_path, *overrides):
    batch = make_batch()
    metrics, gradients, before, after = verl_update(model_path, batch, list(overrides))
    agg = next((o.split("=")[1] for o in overrides if "loss_agg_mode" in o), "token-mean")
    model = AutoModelForCausalLM.from_pretrained(model_path, attn_implementation="sdpa", dtype=torch.float32)
    loss, reference_gradients = reference_update(model, batch, agg)
    if torch.distributed.get_rank() == 0:
        torch.save(
            {
                "metrics": metrics,
                "gradients": gradients,
                "moved": max((after[n] - before[n]).abs().max().item() for n in before),
                "reference_loss": loss,
                "reference_gradients": reference_gradients,
            },
            result_path,
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
