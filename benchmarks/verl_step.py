"""What share of a training step of stock verl the policy loss is: ``python benchmarks/verl_step.py [--out FILE.csv]``.

One update of verl's FSDP2 engine on the CPU per row: with verl's own losses, with the package's, and with the package's
fused kernels, which make no logits. The loss stage (verl's ``ppo_loss``, from the log-probabilities to the metrics, and
back to their gradient) is called again on the tensors of the first micro-batch, alone: its time, what it allocates, and how
often it reads a number from the device, which on a GPU is a wait each time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

os.environ |= {"VERL_PLATFORM": "cpu", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ.get("MASTER_PORT", "29876")}

import torch  # noqa: E402
import verl  # noqa: E402, F401  loads the plugins
from hydra import compose, initialize_config_module  # noqa: E402
from report import Bar, about_this_run, save, title  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from timing import Clock, timed_rounds  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.utils.config import omega_conf_to_dataclass  # noqa: E402
from verl.workers.config import HFModelConfig, TrainingWorkerConfig  # noqa: E402
from verl.workers.engine_workers import TrainingWorker  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402
from verl.workers.utils.padding import left_right_2_no_padding  # noqa: E402
from verl_step_plots import plot  # noqa: E402

ROWS, PROMPT, RESPONSE, MICRO_BATCH = 8, 64, 192, 4
SIZES = {"vocab_size": 32000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
STEPS, REPLAYS = 5, 100
ACTOR = "actor_rollout_ref.actor"
RATIO_MODE = f"{ACTOR}.policy_loss.ratio_clip.ratio_mode"
FUSED = {"use_fused_kernels": True, "fused_kernel_options": {"impl_backend": "maspo"}}
# By name: overrides of the actor, settings of the model.
RUNS = {
    "verl vanilla (ppo)": ([f"{RATIO_MODE}=ppo"], {}),
    "maspo_ext grpo": ([f"{RATIO_MODE}=grpo"], {}),
    "verl sapo": ([f"{RATIO_MODE}=ppo", f"{ACTOR}.policy_loss.loss_mode=sapo"], {}),
    "maspo_ext sapo": ([f"{RATIO_MODE}=sapo"], {}),
    "maspo_ext maspo": ([f"{RATIO_MODE}=maspo"], {}),
    "maspo_ext maspo, fused kernels": ([f"{RATIO_MODE}=maspo"], FUSED),
}
COMMON = [
    f"{ACTOR}.strategy=fsdp2",
    f"{ACTOR}.ppo_micro_batch_size_per_gpu={MICRO_BATCH}",
    f"++{ACTOR}.fsdp_config.mixed_precision={{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}}",
    f"{ACTOR}.use_torch_compile=False",
    f"{ACTOR}.fsdp_config.use_torch_compile=False",
]


def make_batch() -> TensorDict:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(RESPONSE // 2, RESPONSE + 1, (ROWS, 1), generator=draw)
    response_mask = (torch.arange(RESPONSE) < lengths).long()
    attention_mask = torch.cat([torch.ones(ROWS, PROMPT, dtype=torch.long), response_mask], dim=1)
    input_ids = torch.randint(1, SIZES["vocab_size"], (ROWS, PROMPT + RESPONSE), generator=draw) * attention_mask
    batch = {
        "input_ids": input_ids,
        "prompts": input_ids[:, :PROMPT],
        "responses": input_ids[:, PROMPT:],
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "response_mask": response_mask,
        "advantages": torch.randn(ROWS, 1, generator=draw).expand(ROWS, RESPONSE).contiguous(),
        "old_log_probs": -10.4 + 0.3 * torch.randn(ROWS, RESPONSE, generator=draw),
    }
    return left_right_2_no_padding(TensorDict(batch, batch_size=ROWS))


def make_actor(overrides: list[str]):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", [*COMMON, *overrides])
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def make_worker(folder: str, actor, model_settings: dict) -> TrainingWorker:
    model = HFModelConfig(
        path=folder, load_tokenizer=False, use_remove_padding=True, enable_gradient_checkpointing=False,
        override_config={"attn_implementation": "sdpa"}, **model_settings,
    )  # fmt: skip
    actor.engine.use_dynamic_bsz = False
    actor.engine.micro_batch_size_per_gpu = MICRO_BATCH
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model", model_config=model, engine_config=actor.engine, optimizer_config=actor.optim,
            checkpoint_config=actor.checkpoint,
        )
    )  # fmt: skip
    worker.reset()
    return worker


class LossStage:
    """verl's loss function, which keeps what it was given first."""

    def __init__(self, actor) -> None:
        self.loss, self.given = partial(ppo_loss, config=actor), None

    def __call__(self, model_output, data, **keywords):
        if self.given is None:
            self.given = ({**model_output}, data, keywords)
        return self.loss(model_output=model_output, data=data, **keywords)

    def replay(self) -> None:
        model_output, data, keywords = self.given
        log_probs = model_output["log_probs"].detach().requires_grad_()
        loss, _ = self.loss(model_output={**model_output, "log_probs": log_probs}, data=data, **keywords)
        torch.autograd.grad(loss, log_probs)

    def figures(self) -> dict:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.replay()
        events = profiled.profiler.kineto_results.events()
        allocated = sum(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)
        return {
            "allocated_kib": allocated / 1024,
            "device_reads": sum(event.name() == "aten::_local_scalar_dense" for event in events),
        }


def run() -> list[dict]:
    batch, seconds, stages = make_batch(), {}, {}
    bar, clock = Bar(len(RUNS)), Clock("cpu")
    about = about_this_run("cpu")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        Qwen2ForCausalLM(Qwen2Config(**SIZES, bos_token_id=None, eos_token_id=None)).save_pretrained(folder)
        for name, (overrides, model_settings) in RUNS.items():
            bar.step(name)
            actor = make_actor(overrides)
            worker, stages[name] = make_worker(folder, actor, model_settings), LossStage(actor)
            worker.set_loss_fn(stages[name])

            def step(worker=worker, actor=actor):
                data = batch.clone()
                tu.assign_non_tensor(
                    data, global_batch_size=ROWS, temperature=1.0, calculate_entropy=actor.calculate_entropy, compute_loss=True
                )  # fmt: skip
                worker.train_batch(data)

            step()
            seconds[name] = [clock(step) for _ in range(STEPS)]
    bar.close()
    # The stages one after the other, many times over: what disturbs one disturbs all.
    replays = {name: stage.replay for name, stage in stages.items()}
    rounds = timed_rounds(replays, clock, seconds=0, least=REPLAYS, most=REPLAYS)
    of_stage = {name: statistics.quantiles([one[name] for one in rounds], n=4) for name in RUNS}
    torch.distributed.destroy_process_group()
    return [
        about
        | {"run": name, "step_seconds": statistics.median(seconds[name])}
        | {"step_least": min(seconds[name]), "step_most": max(seconds[name])}
        | dict(zip(("loss_stage_quartile_1", "loss_stage_seconds", "loss_stage_quartile_3"), of_stage[name], strict=True))
        | stages[name].figures()
        | {"share_of_step": of_stage[name][1] * (ROWS // MICRO_BATCH) / statistics.median(seconds[name])}
        for name in RUNS
    ]


def print_table(rows: list[dict]) -> None:
    print(f"{title(rows[0])}\n{ROWS} x {RESPONSE} response tokens, micro-batches of {MICRO_BATCH}, Qwen2 {SIZES}")
    print(f"{'':32}{'step':>10}{'loss stage':>14}{'share':>9}{'allocates':>13}{'device reads':>14}")
    for row in rows:
        print(
            f"{row['run']:32}{row['step_seconds']:8.3f} s{row['loss_stage_seconds'] * 1e6:11.0f} us{row['share_of_step']:9.2%}"
            f"{row['allocated_kib']:9.0f} KiB{row['device_reads']:14}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the CSV; the plot goes beside it")
    arguments = parser.parse_args()
    rows = run()
    print_table(rows)
    save("verl_step", rows, plot, arguments.out)


if __name__ == "__main__":
    main()
