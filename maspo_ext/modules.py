"""The policy loss as a module."""

from __future__ import annotations

from typing import Any

import torch

from maspo_ext import checks
from maspo_ext.config import config_for
from maspo_ext.functional import PolicyLossOutput, policy_loss
from maspo_ext.methods import MethodConfig


class PolicyLoss(torch.nn.Module):
    """:func:`maspo_ext.policy_loss` with its method, hyper-parameters and aggregation fixed at construction.

    Args:
        ratio_mode, config, loss_agg_mode, **hyper: as in :func:`maspo_ext.policy_loss`; checked here.

    ``forward(log_prob, old_log_prob, advantages, response_mask, **options)`` takes the tensors and, per call, the other
    keywords of :func:`maspo_ext.policy_loss` (``rollout_is_weights``, ``dp_size``, ``entropy``, ``cu_seqlens``, ...). It has no
    parameters.
    """

    def __init__(
        self,
        ratio_mode: str = "maspo",
        config: MethodConfig | None = None,
        loss_agg_mode: str | None = None,
        **hyper: Any,
    ) -> None:
        super().__init__()
        self.ratio_mode = ratio_mode
        self.config = config_for(ratio_mode, config, hyper)
        if loss_agg_mode is not None:
            checks.check_agg_mode(loss_agg_mode)
        self.loss_agg_mode = loss_agg_mode

    def forward(
        self,
        log_prob: torch.Tensor,
        old_log_prob: torch.Tensor,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        **options: Any,
    ) -> PolicyLossOutput:
        return policy_loss(
            log_prob,
            old_log_prob,
            advantages,
            response_mask,
            ratio_mode=self.ratio_mode,
            config=self.config,
            loss_agg_mode=self.loss_agg_mode,
            **options,
        )

    def extra_repr(self) -> str:
        return f"ratio_mode={self.ratio_mode!r}, loss_agg_mode={self.loss_agg_mode!r}, config={self.config}"
