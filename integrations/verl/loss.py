"""The loss as verl calls it."""

from __future__ import annotations

from typing import Any

import torch

import maspo_ext

from .ratio_clip import parse_ratio_clip


class PolicyLossAdapter:
    """``maspo_ext.policy_loss`` of one ``ratio_mode``, with the signature of verl's policy loss registry.

    Args:
        ratio_mode: a key of ``maspo_ext.config.RATIO_MODES``.
    """

    def __init__(self, ratio_mode: str) -> None:
        self.ratio_mode = ratio_mode

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.ratio_mode!r})"

    def __call__(
        self,
        old_log_prob: torch.Tensor,
        log_prob: torch.Tensor,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of one micro-batch.

        Args:
            old_log_prob, log_prob, advantages, response_mask: ``[B, T]``; see :func:`maspo_ext.policy_loss`.
            loss_agg_mode: one of verl's five modes.
            config: verl's actor config: ``policy_loss``, ``clip_ratio*`` (for the clip statistics) and
                ``global_batch_info``, the counts over all micro-batches and data-parallel ranks.
            rollout_is_weights: ``[B, T]`` or None; multiplies the token losses.

        Returns:
            The loss, differentiable in ``log_prob``, and the statistics as floats. verl averages each over the
            micro-batches and ranks, ``actor/ratio_min`` and ``actor/ratio_max`` included.

        Raises:
            ValueError: the config has no ``policy_loss``, as in verl's distillation; or a wrong value.
        """
        policy_loss = None if config is None else config.get("policy_loss")
        if policy_loss is None:
            raise ValueError(
                f"maspo_ext: loss {self.ratio_mode!r}: expected verl's actor config with a policy_loss section, "
                f"got {type(config).__name__} without one. It serves actor_rollout_ref.actor only; "
                "keep distillation.distillation_loss.policy_loss_mode=vanilla."
            )
        clip_ratio = config.clip_ratio
        loss_config = parse_ratio_clip(policy_loss.get("ratio_clip", {})).loss_config(
            self.ratio_mode,
            clip_ratio_low=clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low,
            clip_ratio_high=clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high,
            clip_ratio_c=config.get("clip_ratio_c", 3.0),
        )
        output = maspo_ext.policy_loss(
            log_prob,
            old_log_prob,
            advantages,
            response_mask,
            ratio_mode=self.ratio_mode,
            config=loss_config,
            rollout_is_weights=rollout_is_weights,
            loss_agg_mode=loss_agg_mode,
            **config.global_batch_info,
        )
        return output.loss, output.stats.to_dict()
