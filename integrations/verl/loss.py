"""The loss as verl calls it."""

from __future__ import annotations

from typing import Any

import torch

import maspo_ext

from . import model_output
from .actor_config import loss_config
from .ratio_clip import parse_ratio_clip


class PolicyLossAdapter:
    """``maspo_ext.policy_loss`` of one ``ratio_mode``, with the signature of verl's policy loss registry.

    Args:
        ratio_mode: one of ``ratio_modes.FUSED``.
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
            config: verl's actor config: ``policy_loss``, ``clip_ratio*`` (for the modes that share them) and
                ``global_batch_info``, the counts over all micro-batches and data-parallel ranks.
            rollout_is_weights: ``[B, T]`` or None; multiplies the token losses.

        Returns:
            The loss, differentiable in ``log_prob``, and the mode's statistics as floats. verl averages each over the
            micro-batches and ranks, ``actor/ratio_min`` and ``actor/ratio_max`` included.

        Raises:
            ValueError: the config has no ``policy_loss``, as in verl's distillation; or a wrong value; or the run does
                not compute the entropy that the loss needs.
        """
        policy_loss = None if config is None else config.get("policy_loss")
        if policy_loss is None:
            raise ValueError(
                f"maspo_ext: loss {self.ratio_mode!r}: expected verl's actor config with a policy_loss section, "
                f"got {type(config).__name__} without one. It serves actor_rollout_ref.actor only; "
                "keep distillation.distillation_loss.policy_loss_mode=vanilla."
            )
        ratio_clip = parse_ratio_clip(policy_loss.get("ratio_clip", {}))
        output = maspo_ext.policy_loss(
            log_prob,
            old_log_prob,
            advantages,
            response_mask,
            ratio_mode=self.ratio_mode,
            config=loss_config(config, ratio_clip, self.ratio_mode),
            rollout_is_weights=rollout_is_weights,
            loss_agg_mode=ratio_clip.loss_agg_mode(self.ratio_mode, loss_agg_mode),
            dual_clip=ratio_clip.dual_clip,
            **self._by_entropy(ratio_clip),
            **self._over_ranks(config.global_batch_info),
            **config.global_batch_info,
        )
        return output.loss, output.stats.to_dict()

    def _by_entropy(self, ratio_clip: Any) -> dict[str, Any]:
        if not ratio_clip.shapes_by_entropy(self.ratio_mode):
            return {}
        if self.ratio_mode == "entropy_adv":  # alpha and kappa are in its config
            return {"entropy": model_output.entropy()}
        return {
            "entropy": model_output.entropy(),
            "entropy_alpha": ratio_clip.entropy_adv_alpha,
            "entropy_kappa": ratio_clip.entropy_adv_kappa,
        }

    def _over_ranks(self, global_batch_info: dict[str, Any]) -> dict[str, Any]:
        # Of the modes only bapo decides anything by sums over the micro-batch; as in its reference, of all ranks.
        if self.ratio_mode != "bapo":
            return {}
        return {"all_reduce_sums": model_output.all_reduce_sums(global_batch_info.get("dp_size"))}
