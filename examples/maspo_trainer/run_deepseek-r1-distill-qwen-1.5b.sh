#!/usr/bin/env bash
# MASPO on GSM8K with DeepSeek-R1-Distill-Qwen-1.5B; published alpha for this size: 0.5. Needs GPUs, vLLM and wandb.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export MODEL_PATH="${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B}"
export EXPERIMENT="${EXPERIMENT:-deepseek-r1-distill-qwen-1.5b-maspo}"

exec bash "$here/gsm8k_gpu.sh" \
    actor_rollout_ref.actor.policy_loss.ratio_clip.maspo_alpha=0.5 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    "$@"
