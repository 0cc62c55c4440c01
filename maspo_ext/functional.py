"""The policy loss as a function."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from maspo_ext.config import MaspoConfig, config_for
from maspo_ext.stats import PolicyLossStats


class PolicyLossOutput(NamedTuple):
    """What a policy loss returns.

    Attributes:
        loss: scalar, differentiable in log_prob; float64 for float64 inputs, else float32.
        stats: named statistics, still on the device.
    """

    loss: torch.Tensor
    stats: PolicyLossStats


def policy_loss(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    ratio_mode: str = "maspo",
    config: MaspoConfig | None = None,
    rollout_is_weights: torch.Tensor | None = None,
    loss_agg_mode: str = "token-mean",
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: float | None = None,
    **hyper: Any,
) -> PolicyLossOutput:
    """The fused per-token policy loss of a batch of responses, one pass over the data.

    Args:
        log_prob: ``[B, T]``, log-probabilities (nats) of the response tokens under the policy that is trained; float32,
            float64, bfloat16 or float16; arithmetic is in float32 (float64 for float64). Any strides.
        old_log_prob: ``[B, T]``, the same under the policy that generated them.
        advantages: ``[B, T]``, ``[B, 1]`` or ``[B]``.
        response_mask: ``[B, T]``, bool, integer or float; a weight per token. Where it is 0 no input is used, NaN included.
        ratio_mode: the method; ``"maspo"``.
        config: its hyper-parameters, ``MaspoConfig``; or give them as keywords (``sigma_base=1.0, alpha=0.3, ...``).
        rollout_is_weights: ``[B, T]``, ``[B, 1]`` or ``[B]``; multiplies the token losses (statistics are without it).
        loss_agg_mode: ``token-mean``, ``token-sum``, ``seq-mean-token-sum``, ``seq-mean-token-mean`` or
            ``seq-mean-token-sum-norm``, as in verl 0.9.1.
        dp_size: number of data-parallel ranks over which the trainer averages gradients.
        batch_num_tokens: unmasked tokens of the global batch (all ranks and micro-batches); None: of this call. A 0 is taken
            for an empty batch: with unmasked tokens in this call the loss is infinite.
        global_batch_size: sequences of the global batch; None: those of this call with an unmasked token.
        loss_scale_factor: divisor of ``seq-mean-token-sum-norm``; None: T.
        **hyper: fields of the config class, if ``config`` is None.

    Returns:
        ``PolicyLossOutput(loss, stats)``. A batch without unmasked tokens has loss 0 and gradient 0.

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, what was expected, what came and what to do.
        RuntimeError: a second derivative is asked for.

    Source: MASPO, arXiv 2602.17550; ``compute_policy_loss`` (ratio_mode "maspo") of the authors' verl fork;
    aggregation: ``agg_loss`` of verl 0.9.1.
    """
    loss, stats = torch.ops.maspo.loss(
        log_prob,
        old_log_prob,
        advantages,
        response_mask,
        rollout_is_weights=rollout_is_weights,
        loss_agg_mode=loss_agg_mode,
        dp_size=dp_size,
        batch_num_tokens=batch_num_tokens,
        global_batch_size=global_batch_size,
        loss_scale_factor=loss_scale_factor,
        **config_for(ratio_mode, config, hyper).to_kwargs(),
    )
    return PolicyLossOutput(loss, PolicyLossStats(stats))
