#!/usr/bin/env bash
# Stock verl trains a tiny Qwen2 with MASPO on a CPU, start to end: data, model, training, plot, summary.
#
#   bash examples/maspo_trainer/run_tiny_cpu.sh [verl overrides]
#
#   RATIO_MODE  maspo (default), another method of the README's table, or ppo for verl's own loss
#   PYTHON      the interpreter (default: python3)
#   OUT         where everything goes (default: outputs/train)
#   SEED        seed of the warm start and of the training (default: 0)
#   WARM_START_STEPS  supervised steps of the warm start with a reliable teacher (default: 600)
#
# The console gets one line per training step; everything that verl and Ray print is in $OUT/console.log. A second run
# with the same OUT overwrites the first.
#
# Your own data and model: data.train_files=... data.val_files=... actor_rollout_ref.model.path=... and, for prompts and
# answers longer than a sum, data.max_prompt_length=... data.max_response_length=... (together at most 4096 tokens, or raise
# actor_rollout_ref.actor.ppo_max_token_len_per_gpu). GSM8K gets verl's own reward.
# With GPUs and vLLM see run_deepseek-r1-distill-qwen-7b.sh, the same trainer without the CPU settings.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
examples="$(dirname "$here")"
export PYTHON="${PYTHON:-python3}"
export RATIO_MODE="${RATIO_MODE:-maspo}"
out="${OUT:-outputs/train}"
seed="${SEED:-0}"

mkdir -p "$out"
out="$(cd "$out" && pwd)"

# The CPU platform and rollout of maspo_ext; see maspo_ext/integrations/verl/cpu.
export VERL_PLATFORM=cpu
# About ten Ray processes share the cores and every tensor is small: more threads only get in each other's way.
export OMP_NUM_THREADS=1 TQ_NUM_THREADS=1
# Nothing is downloaded and nothing is reported to anyone.
export HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0
# Where verl's "file" logger writes one JSON object per step.
export VERL_FILE_LOGGER_PATH="$out/metrics.jsonl"

# Each step: 32 prompts x 8 answers, then 4 mini-batches, so that all but the first see ratios other than 1.
# float32 throughout (verl's default is bfloat16): the model is tiny, and rollout and actor agree to the last digits.
# Micro-batches are cut by tokens, which fits any batch size; verl takes the actor's two keys for the log-probabilities of
# rollout and KL reference too.
# Held-out answers are sampled like the training ones: the reward measured is the policy's mean reward.
overrides=(
    data.train_files="$out/data/train.parquet"
    data.val_files="$out/data/test.parquet"
    data.train_batch_size=32
    data.max_prompt_length=32
    data.max_response_length=8
    data.dataloader_num_workers=0
    data.seed="$seed"
    actor_rollout_ref.model.path="$out/model"
    actor_rollout_ref.model.use_remove_padding=False
    actor_rollout_ref.model.enable_gradient_checkpointing=False
    +actor_rollout_ref.model.override_config.attn_implementation=sdpa
    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.actor.optim.lr=3e-4
    actor_rollout_ref.actor.optim.lr_scheduler_type=cosine
    actor_rollout_ref.actor.optim.min_lr_ratio=0.1
    actor_rollout_ref.actor.optim.weight_decay=0.0
    actor_rollout_ref.actor.ppo_mini_batch_size=8
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=4096
    actor_rollout_ref.actor.use_torch_compile=False
    actor_rollout_ref.actor.fsdp_config.use_torch_compile=False
    +actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32
    +actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32
    +actor_rollout_ref.actor.fsdp_config.mixed_precision.buffer_dtype=fp32
    actor_rollout_ref.rollout.name=hf_cpu
    actor_rollout_ref.rollout.dtype=float32
    actor_rollout_ref.rollout.seed="$seed"
    actor_rollout_ref.rollout.n=8
    actor_rollout_ref.rollout.tensor_model_parallel_size=1
    actor_rollout_ref.rollout.agent.num_workers=1
    actor_rollout_ref.rollout.val_kwargs.do_sample=True
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0
    actor_rollout_ref.rollout.val_kwargs.n=2
    reward.num_workers=1
    reward.custom_reward_function.path="$examples/reward/exact_match.py"
    transfer_queue.backend.SimpleStorage.num_data_storage_units=1
    trainer.device=cpu
    trainer.n_gpus_per_node=1
    trainer.nnodes=1
    trainer.logger='[console,file]'
    trainer.project_name=maspo_tiny
    trainer.experiment_name="$RATIO_MODE"
    trainer.total_epochs=1000
    trainer.total_training_steps=30
    trainer.test_freq=6
    trainer.save_freq=30
    trainer.max_actor_ckpt_to_keep=1
    trainer.default_local_dir="$out/checkpoints"
    trainer.resume_mode=disable
    hydra.run.dir="$out/hydra"
    ray_kwargs.ray_init.num_cpus=16
    +ray_kwargs.ray_init.num_gpus=1
    +ray_kwargs.ray_init.include_dashboard=False
    "$@"
)

# First, since a misspelt key should not wait for the warm start.
CHECK_ONLY=1 bash "$here/maspo_grpo.sh" "${overrides[@]}"

"$PYTHON" "$examples/data/make_arithmetic.py" --out "$out/data"
"$PYTHON" "$examples/models/make_tiny_qwen2.py" --data "$out/data/train.parquet" --out "$out/model" \
    --seed "$seed" --steps "${WARM_START_STEPS:-600}"

echo "training: verl starts Ray and about ten processes, which takes up to a minute; their output: $out/console.log"
echo "(step 0 is before training; held-out: mean reward on prompts that are never trained on)"
"$PYTHON" "$here/watch_run.py" --log "$out/console.log" --metrics "$out/metrics.jsonl" -- \
    bash "$here/maspo_grpo.sh" "${overrides[@]}"

"$PYTHON" "$here/plot_metrics.py" "$out/metrics.jsonl" --out "$out/metrics.png" \
    --title "Stock verl on a CPU, ratio_mode=$RATIO_MODE"
echo "checkpoint: $out/checkpoints"
echo "metrics:    $out/metrics.jsonl"
echo "output:     $out/console.log"
"$PYTHON" "$here/summarize_run.py" "$out/metrics.jsonl" --seconds "$SECONDS"
