"""The policy loss as a module."""

from __future__ import annotations

from typing import Any

import torch

from maspo_ext import checks
from maspo_ext.config import config_for
from maspo_ext.functional import PolicyLossOutput, policy_loss
from maspo_ext.logits.linear_loss import LinearLossOutput, linear_loss
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


class LinearPolicyLoss(PolicyLoss):
    """:func:`maspo_ext.linear_loss`, from hidden states and the head's weight, with its settings fixed at construction.

    Args:
        ratio_mode, config, loss_agg_mode, **hyper: as in :class:`PolicyLoss`.
        temperature, memory_budget: as in :func:`maspo_ext.linear_loss`.

    ``forward(hidden, weight, target, old_log_prob, advantages, response_mask, bias=None, **options)`` takes the model's last
    hidden states, ``lm_head.weight`` and the tokens: for a model of transformers, without its logits::

        hidden = model.model(input_ids, attention_mask).last_hidden_state[:, -T - 1 : -1]
        loss = LinearPolicyLoss()(hidden, model.lm_head.weight, input_ids[:, -T:], old_log_prob, advantages, response_mask).loss

    The weight is an argument and not held, so that whoever shards it (FSDP, ZeRO) decides when it is whole.
    """

    def __init__(
        self,
        ratio_mode: str = "maspo",
        config: MethodConfig | None = None,
        loss_agg_mode: str | None = None,
        *,
        temperature: float = 1.0,
        memory_budget: int | None = None,
        **hyper: Any,
    ) -> None:
        super().__init__(ratio_mode, config, loss_agg_mode, **hyper)
        self.temperature = temperature
        self.memory_budget = memory_budget

    def forward(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        old_log_prob: torch.Tensor,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        bias: torch.Tensor | None = None,
        **options: Any,
    ) -> LinearLossOutput:
        return linear_loss(
            hidden,
            weight,
            target,
            old_log_prob,
            advantages,
            response_mask,
            temperature=self.temperature,
            bias=bias,
            memory_budget=self.memory_budget,
            ratio_mode=self.ratio_mode,
            config=self.config,
            loss_agg_mode=self.loss_agg_mode,
            **options,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}, memory_budget={self.memory_budget}"
