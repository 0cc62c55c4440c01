"""One update of stock verl's FSDP2 engine on the CPU per ratio_mode, and the same loss and gradients in plain torch.

Run by test_fsdp_update.py in processes of its own, one per rank (torch's environment variables RANK, WORLD_SIZE, ...):
``python fsdp_update.py <model folder> <result.pt> [override ...]``. All modes in one process: its start takes the time.
"""

import sys
from functools import partial

import torch
import verl  # noqa: F401  loads the plugins
from hydra import compose, initialize_config_module
from hyper import HYPER, overrides_of
from plain_update import ROWS, make_batch, reference_update
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import left_right_2_no_padding

from maspo_ext import RATIO_MODES
from maspo_ext.integrations.verl.ratio_modes import FUSED

BOUNDS = ("actor/bapo_clip_low", "actor/bapo_clip_high")
OVERRIDES = [
    "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
    "actor_rollout_ref.actor.optim.clip_grad=1e9",
    "++actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}",
    "actor_rollout_ref.actor.use_torch_compile=False",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
]


def micro_batches(rows_per_micro_batch, ranks):
    """The rows of each micro-batch, of all ranks together, and those of each rank alone."""
    per_rank = [list(range(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)) for rank in range(ranks)]
    starts = range(0, ROWS // ranks, rows_per_micro_batch)
    alone = [[rows[start : start + rows_per_micro_batch] for rows in per_rank] for start in starts]
    return [sum(parts, []) for parts in alone], alone


def actor_of(ratio_mode, overrides):
    """verl's actor config of a mode."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            [
                *OVERRIDES,
                *overrides,
                *overrides_of(ratio_mode),
                f"actor_rollout_ref.actor.calculate_entropy={ratio_mode == 'entropy_adv'}",
            ],
        )
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def make_worker(model_path, actor, **model_settings):
    """As verl's ActorRolloutRefWorker does."""
    model = HFModelConfig(
        path=model_path,
        load_tokenizer=False,
        override_config={"attn_implementation": "sdpa"},
        **{"use_remove_padding": False, "enable_gradient_checkpointing": False} | model_settings,
    )
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
    return worker


def data_of_rank(worker, batch, **settings):
    """The rows of this data-parallel rank, as verl's trainer sends them."""
    rank, ranks = worker.engine.get_data_parallel_rank(), worker.engine.get_data_parallel_size()
    rows = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
    data = TensorDict({name: value[rows].clone() for name, value in batch.items()}, batch_size=ROWS // ranks)
    data = left_right_2_no_padding(data)
    tu.assign_non_tensor(data, **settings)
    return data


def verl_update(worker, actor, batch, temperature=1.0):
    """Metrics, gradients and largest change of a parameter by one ``TrainingWorker.train_batch``, which is undone."""
    worker.set_loss_fn(partial(ppo_loss, config=actor))
    data = data_of_rank(
        worker,
        batch,
        global_batch_size=ROWS,
        temperature=temperature,
        calculate_entropy=actor.calculate_entropy,
        compute_loss=True,
    )
    parameters = dict(worker.engine.module.named_parameters())
    before, gradients = {name: p.detach().clone() for name, p in parameters.items()}, {}
    # verl clears the gradients after the step.
    hook = worker.engine.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: full(p.grad) for name, p in parameters.items() if p.requires_grad})
    )
    output = worker.train_batch(data)
    hook.remove()
    moved = max((full(p) - full(before[name])).abs().max().item() for name, p in parameters.items())
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(before[name])
    # Of the ranks that share their rows, verl gives one the metrics.
    return None if output is None else tu.get(output, "metrics"), gradients, moved


def full(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def main(model_path, result_path, *overrides):
    batch, results, worker = make_batch(), {}, None
    for ratio_mode in FUSED:
        actor = actor_of(ratio_mode, list(overrides))
        worker = worker or make_worker(model_path, actor)
        metrics, gradients, moved = verl_update(worker, actor, batch)
        model = AutoModelForCausalLM.from_pretrained(model_path, attn_implementation="sdpa", dtype=torch.float32)
        # Only bapo depends on how the batch is cut: it searches per micro-batch.
        together, alone = micro_batches(actor.ppo_micro_batch_size_per_gpu, torch.distributed.get_world_size())
        parts = together if ratio_mode == "bapo" else [list(range(ROWS))]
        # The actor's, unless it is verl's default: then that of the method's reference.
        agg = RATIO_MODES[ratio_mode].default_loss_agg_mode if actor.loss_agg_mode == "token-mean" else actor.loss_agg_mode
        counts = {"batch_num_tokens": int(batch["response_mask"].sum()), "global_batch_size": ROWS}
        plain = partial(reference_update, model, batch, ratio_mode, HYPER[ratio_mode], agg, **counts)
        loss, reference_gradients, stats = plain(parts)
        results[ratio_mode] = {
            "metrics": metrics,
            "gradients": gradients,
            "moved": moved,
            "reference_loss": loss,
            "reference_gradients": reference_gradients,
            "reference_stats": stats,
        }
        if ratio_mode == "bapo":
            by_rank = [plain(rows)[2] for rows in alone]
            results[ratio_mode]["bounds"] = [[part[name] for part in stats] for name in BOUNDS]
            results[ratio_mode]["bounds_alone"] = [
                [[part[rank][name] for part in by_rank] for name in BOUNDS] for rank in range(len(alone[0]))
            ]
    if torch.distributed.get_rank() == 0:
        torch.save(results, result_path)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
