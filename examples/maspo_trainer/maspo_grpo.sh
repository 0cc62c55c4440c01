#!/usr/bin/env bash
# What every run in this folder shares: stock verl's main_ppo with GRPO advantages and one of the losses of maspo_ext.
# Overrides given as arguments come last and win.
#
#   RATIO_MODE  maspo (default), grpo, clip_higher, dac, bapo, sapo, entropy_adv (with calculate_entropy=True), or ppo for
#               verl's own loss
#   PYTHON      the interpreter of the environment with verl and maspo_ext (default: python3)
#   CHECK_ONLY  if not empty: compose and check the settings, train nothing
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
program=(-m verl.trainer.main_ppo)
if [ -n "${CHECK_ONLY:-}" ]; then
    program=("$here/check_settings.py")
fi

exec "${PYTHON:-python3}" "${program[@]}" \
    algorithm.adv_estimator=grpo \
    algorithm.use_kl_in_reward=False \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.actor.policy_loss.ratio_clip.ratio_mode="${RATIO_MODE:-maspo}" \
    actor_rollout_ref.actor.policy_loss.ratio_clip.maspo_sigma_base=1.0 \
    actor_rollout_ref.actor.policy_loss.ratio_clip.maspo_alpha=0.3 \
    actor_rollout_ref.actor.policy_loss.ratio_clip.maspo_beta_pos=0.03 \
    actor_rollout_ref.actor.policy_loss.ratio_clip.maspo_beta_neg=0.03 \
    "$@"
