#!/usr/bin/env bash
# MASPO on GSM8K with DeepSeek-R1-Distill-Qwen-7B; sigma_base 1 and alpha 0.3 as published. Needs GPUs, vLLM and wandb.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export MODEL_PATH="${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Qwen-7B}"
export EXPERIMENT="${EXPERIMENT:-deepseek-r1-distill-qwen-7b-maspo}"

exec bash "$here/gsm8k_gpu.sh" \
    actor_rollout_ref.actor.policy_loss.ratio_clip.maspo_alpha=0.3 \
    "$@"
