"""The policy loss as a module."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch

from maspo_ext.checks.numbers import python_number
from maspo_ext.checks.rollout_is import parse_threshold
from maspo_ext.config import config_for
from maspo_ext.fronts import keywords_of, require_call_keywords
from maspo_ext.functional import PolicyLossOutput, policy_loss
from maspo_ext.logits.checks import check_entropy_coef, check_temperature, memory_budget_of
from maspo_ext.logits.linear_loss import (
    LinearLossOutput,
    keywords_of_linear_loss,
    linear_loss,
    refuse_bonus,
    refuse_what_is_made,
)
from maspo_ext.methods import MethodConfig
from maspo_ext.scalars import keywords_with_counts

_OF_THE_METHOD = {"ratio_mode", "config"}
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

    # By what name the errors call it; the keywords that are settings; those that a call takes.
    front: ClassVar[str] = "PolicyLoss"
    settings: ClassVar[tuple[str, ...]] = tuple(_SETTINGS)
    keywords_of_call: ClassVar[frozenset[str]] = frozenset(keywords_of(policy_loss)) - _OF_THE_METHOD

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
        hyper = {name: value for name, value in settings.items() if name not in _SETTINGS}
        self.config = config_for(ratio_mode, config, hyper, self.front)
        self.options = {name: python_number(value) for name, value in settings.items() if name in _SETTINGS}
        _check_settings(ratio_mode, self.config, **(_SETTINGS | self.options))

    def _keywords(self, options: dict[str, Any]) -> dict[str, Any]:
        """Those of the function, for one call."""
        require_call_keywords(self.front, options, type(self.config), self.keywords_of_call)
        return {"ratio_mode": self.ratio_mode, "config": self.config, **self.options, **options}

    def forward(
        self,
        log_prob: torch.Tensor,
        old_log_prob: torch.Tensor | None,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        **options: Any,
    ) -> PolicyLossOutput:
        """:func:`maspo_ext.policy_loss` of a batch.

        Args:
            log_prob, old_log_prob, advantages, response_mask: as there.
            **options: its other keywords but for the method and its hyper-parameters; a setting holds for this call alone.

        Raises:
            TypeError, ValueError, RuntimeError: as there.
        """
        return policy_loss(log_prob, old_log_prob, advantages, response_mask, **self._keywords(options))

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={value!r}"
            for name, value in {"ratio_mode": self.ratio_mode, "config": self.config, **self.options}.items()
        )


def _check_settings(ratio_mode: str, config: MethodConfig, *, rollout_is_threshold: Any, **scalars: Any) -> None:
    """As the function would for a batch with every tensor."""
    lower, upper = parse_threshold(rollout_is_threshold, True)
    keywords_with_counts(config, ratio_mode, True, True, True, rollout_is_lower=lower, rollout_is_upper=upper, **scalars)


class LinearPolicyLoss(PolicyLoss):
    """:func:`maspo_ext.linear_loss`, from hidden states and the head's weight, with its settings fixed at construction.

    Args:
        ratio_mode, config, loss_agg_mode, **settings: as in :class:`PolicyLoss`.
        temperature, memory_budget, entropy_coef: as in :func:`maspo_ext.linear_loss`; a call may give another, as it may the settings.

    ``forward(hidden, weight, target, old_log_prob, advantages, response_mask, bias=None, **options)`` takes the model's last
    hidden states, ``lm_head.weight`` and the tokens: for a model of transformers, without its logits::

        hidden = model.model(input_ids, attention_mask).last_hidden_state[:, -T - 1 : -1]
        loss = LinearPolicyLoss()(hidden, model.lm_head.weight, input_ids[:, -T:], old_log_prob, advantages, response_mask).loss

    The weight is an argument and not held, so that whoever shards it (FSDP, ZeRO) decides when it is whole.
    """

    front = "LinearPolicyLoss"
    settings = (*PolicyLoss.settings, "temperature", "memory_budget", "entropy_coef")
    keywords_of_call = frozenset(keywords_of_linear_loss()) - _OF_THE_METHOD

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
        self.temperature = python_number(temperature)
        check_entropy_coef(entropy_coef)
        refuse_bonus(self.config, ratio_mode, entropy_coef)
        self.memory_budget = memory_budget_of(memory_budget)
        self.entropy_coef = python_number(entropy_coef)

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
        """:func:`maspo_ext.linear_loss` of a batch.

        Args:
            hidden, weight, target, old_log_prob, advantages, response_mask, bias: as there.
            **options: its other keywords but for the method and its hyper-parameters; a setting, ``temperature``, ``memory_budget``
                and ``entropy_coef`` among them, holds for this call alone.

        Raises:
            TypeError, ValueError, RuntimeError: as there.
        """
        refuse_what_is_made(options)
        settings = {"temperature": self.temperature, "memory_budget": self.memory_budget, "entropy_coef": self.entropy_coef}
        return linear_loss(
            hidden, weight, target, old_log_prob, advantages, response_mask, bias=bias, **(settings | self._keywords(options))
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}, memory_budget={self.memory_budget}, entropy_coef={self.entropy_coef}"
