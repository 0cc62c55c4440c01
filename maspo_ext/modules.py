"""The policy loss as a module."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from maspo_ext import checks
from maspo_ext.config import config_for
from maspo_ext.functional import PolicyLossOutput, policy_loss
from maspo_ext.logits.checks import check_entropy_coef, check_temperature, memory_budget_of
from maspo_ext.logits.linear_loss import LinearLossOutput, linear_loss, refuse_bonus
from maspo_ext.methods import MethodConfig
from maspo_ext.scalars import scalar_keywords

# Keywords of policy_loss that are settings of a run, with their defaults; the others are of a batch.
_SETTINGS = {
    name: inspect.signature(policy_loss).parameters[name].default
    for name in (
        "loss_agg_mode",
        "loss_scale_factor",
        "dual_clip",
        "entropy_alpha",
        "entropy_kappa",
        "kl_type",
        "kl_coef",
        "rollout_is_threshold",
    )
}


class PolicyLoss(torch.nn.Module):
    """:func:`maspo_ext.policy_loss` with its settings fixed at construction.

    Args:
        ratio_mode, config, loss_agg_mode: as in :func:`maspo_ext.policy_loss`.
        **settings: hyper-parameters, and of that function's other keywords ``loss_scale_factor``, ``dual_clip``,
            ``entropy_alpha``, ``entropy_kappa``, ``kl_type``, ``kl_coef`` and ``rollout_is_threshold``.

    ``forward(log_prob, old_log_prob, advantages, response_mask, **options)`` takes the tensors and, per call, the other
    keywords of :func:`maspo_ext.policy_loss` (``rollout_is_weights``, ``dp_size``, ``entropy``, ``cu_seqlens``, ...), or one of
    the settings but for the hyper-parameters, for this call alone. It has no parameters.

    Raises:
        TypeError, ValueError: a setting is wrong; here, and not at the first batch.
    """

    def __init__(
        self,
        ratio_mode: str = "maspo",
        config: MethodConfig | None = None,
        loss_agg_mode: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        settings["loss_agg_mode"] = loss_agg_mode
        self.ratio_mode = ratio_mode
        self.config = config_for(ratio_mode, config, {k: v for k, v in settings.items() if k not in _SETTINGS})
        self.options = {name: value for name, value in settings.items() if name in _SETTINGS}
        _check_settings(ratio_mode, self.config, **(_SETTINGS | self.options))

    def _keywords(self, options: dict[str, Any]) -> dict[str, Any]:
        """Those of the function, for one call."""
        fixed = [name for name in options if name in ("ratio_mode", "config", *self.config.__dataclass_fields__)]
        if fixed:
            raise TypeError(
                checks.message(
                    type(self).__name__,
                    "the method and its hyper-parameters at construction",
                    f"{', '.join(fixed)} in a call",
                    "Make another module, or call the function.",
                )
            )
        return {"ratio_mode": self.ratio_mode, "config": self.config, **self.options, **options}

    def forward(
        self,
        log_prob: torch.Tensor,
        old_log_prob: torch.Tensor | None,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        **options: Any,
    ) -> PolicyLossOutput:
        return policy_loss(log_prob, old_log_prob, advantages, response_mask, **self._keywords(options))

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={value!r}"
            for name, value in {"ratio_mode": self.ratio_mode, "config": self.config, **self.options}.items()
        )


def _check_settings(
    ratio_mode: str, config: MethodConfig, *, rollout_is_threshold: Any, loss_scale_factor: float | None, **scalars: Any
) -> None:
    """As the function would for a batch with every tensor."""
    lower, upper = checks.parse_threshold(rollout_is_threshold)
    scalar_keywords(
        config, ratio_mode, True, True, True, scalars["loss_agg_mode"], 1, None, None, loss_scale_factor,
        *(scalars[name] for name in ("dual_clip", "entropy_alpha", "entropy_kappa", "kl_type", "kl_coef")), lower, upper,
    )  # fmt: skip


class LinearPolicyLoss(PolicyLoss):
    """:func:`maspo_ext.linear_loss`, from hidden states and the head's weight, with its settings fixed at construction.

    Args:
        ratio_mode, config, loss_agg_mode, **settings: as in :class:`PolicyLoss`.
        temperature, memory_budget, entropy_coef: as in :func:`maspo_ext.linear_loss`.

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
        entropy_coef: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(ratio_mode, config, loss_agg_mode, **settings)
        check_temperature(temperature)
        self.temperature = temperature
        check_entropy_coef(entropy_coef)
        refuse_bonus(self.config, ratio_mode, entropy_coef)
        self.memory_budget = memory_budget_of(memory_budget)
        self.entropy_coef = entropy_coef

    def forward(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        old_log_prob: torch.Tensor | None,
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
            entropy_coef=self.entropy_coef,
            **self._keywords(options),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}, memory_budget={self.memory_budget}, entropy_coef={self.entropy_coef}"
