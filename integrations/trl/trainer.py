"""TRL's GRPOTrainer with a loss of maspo_ext: from TRL's log-probabilities, or from hidden states without logits.

Everything but the loss is TRL's: generation, rewards, advantages, logging.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

import maspo_ext
from maspo_ext.errors import message

from .head import USE_POLICY_LOSS_TRAINER, before_head, require_plain_head

# Settings of GRPOConfig that change TRL's loss and would do nothing here: each with its only value.
_NOT_OURS = {
    "importance_sampling_level": "token",
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
}
# The modes whose loss is TRL's own, and which take their clip from its config.
_TRLS_OWN = ("ppo", "grpo")


class PolicyLossTrainer(GRPOTrainer):
    """GRPOTrainer whose loss is :class:`maspo_ext.PolicyLoss` of the log-probabilities that TRL computes.

    Args:
        ratio_mode: the method, as of :func:`maspo_ext.policy_loss`.
        hyper: its hyper-parameters, by name.
        *args, **kwargs: as of GRPOTrainer. Of its config ``beta`` weighs the KL estimate ``k3_unbounded``, which is TRL's;
            ``epsilon``, ``epsilon_high`` and ``delta`` are the bounds of ``ppo`` and ``grpo`` (without ``delta`` there is no dual
            clip), and are not used by the other modes; nor are ``loss_type`` and SAPO's temperatures.

    The sum over tokens is divided as by TRL's ``loss_type="dapo"``, its default. The statistics are logged under their names
    (``actor/ratio_mean``, ...), of the main process. ``bapo`` searches its bounds in each rank's micro-batch alone, which is not the
    search of its paper: use one rank and one micro-batch.

    Raises:
        ValueError: the config asks for something that TRL's loss has and this one has not.
    """

    loss_class: type[maspo_ext.PolicyLoss] = maspo_ext.PolicyLoss

    def __init__(self, *args: Any, ratio_mode: str = "maspo", hyper: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refuse_what_is_not_ours(ratio_mode)
        self.policy_loss = self.loss_class(
            ratio_mode, loss_agg_mode="token-sum", kl_coef=self.beta, kl_type="k3_unbounded",
            **self._loss_settings(), **(self._clip(ratio_mode) | (hyper or {})),
        )  # fmt: skip

    def _clip(self, ratio_mode: str) -> dict[str, float]:
        if ratio_mode not in _TRLS_OWN:
            return {}
        low, high, delta = self.args.epsilon, self.args.epsilon_high, self.args.delta
        return {
            "clip_ratio_low": low,
            "clip_ratio_high": low if high is None else high,
            "clip_ratio_c": float("inf") if delta is None else delta,
        }

    def _refuse_what_is_not_ours(self, ratio_mode: str) -> None:
        of_kl = {"use_bias_correction_kl": False} if self.beta else {}
        of_routers = {"router_aux_loss_coef": 0.0} if self.aux_loss_enabled else {}
        of_clip = {} if ratio_mode in _TRLS_OWN else {"delta": None}
        for name, value in (_NOT_OURS | of_kl | of_routers | of_clip).items():
            if (got := getattr(self.args, name)) != value:
                expected = f"{value!r}, since {type(self).__name__} has a loss of its own"
                remedy = f"Set {name}={value!r}, or train with GRPOTrainer."
                raise ValueError(message(f"GRPOConfig.{name}", expected, repr(got), remedy))

    def _loss_settings(self) -> dict[str, Any]:
        return {}

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The hook of GRPOTrainer: the loss of a micro-batch, a scalar."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        options = {
            "ref_log_prob": inputs.get("ref_per_token_logps"),
            "rollout_is_weights": inputs.get("importance_sampling_ratio"),
        }
        loss, stats, entropy = self._loss_stats_entropy(model, inputs, mask, options)
        phase = "train" if self.model.training else "eval"
        logged = {**stats.to_dict(), "entropy": float((entropy * mask).sum() / mask.sum().clamp(min=1))}
        for name, value in logged.items():
            self._metrics[phase][name].append(value)
        return loss / self._tokens(inputs, phase)

    def _loss_stats_entropy(self, model, inputs, mask, options):
        log_prob, entropy, _ = self._get_per_token_logps_and_entropies(model, *_sequences(inputs), compute_entropy=True)
        old_log_prob = inputs.get("old_per_token_logps")  # None where a batch is used for one update only
        if self.policy_loss.ratio_mode == "entropy_adv":
            options = options | {"entropy": entropy.detach()}
        return *self.policy_loss(log_prob, old_log_prob, inputs["advantages"], mask, **options), entropy.detach()

    def _tokens(self, inputs: dict[str, Any], phase: str) -> Tensor:
        """By how much to divide a sum: a rank's share of the tokens of one update, or in an evaluation of the batch."""
        share = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if phase == "eval":
            return share
        return share * self.current_gradient_accumulation_steps / self.args.steps_per_generation


class LinearPolicyLossTrainer(PolicyLossTrainer):
    """The same with :class:`maspo_ext.LinearPolicyLoss`: from the last hidden states, without logits.

    The old log-probabilities and those of the reference come from :func:`maspo_ext.linear_logprob`, so that an on-policy ratio
    is 1.

    Raises:
        ValueError: the model's logits are not what its head makes of the last hidden states in one call, or there are images.
    """

    loss_class = maspo_ext.LinearPolicyLoss

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_plain_head(self.model)

    def _loss_settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def _loss_stats_entropy(self, model, inputs, mask, options):
        hidden, weight, target, bias = self._before_head(model, *_sequences(inputs))
        old_log_prob = inputs.get("old_per_token_logps")
        loss, stats, _, entropy = self.policy_loss(
            hidden, weight, target, old_log_prob, inputs["advantages"], mask, bias, **options
        )
        return loss, stats, entropy

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **others
    ):
        """The hook by which GRPOTrainer computes log-probabilities, some rows at a time."""
        if used := [name for name, value in others.items() if value is not None and value is not False]:
            raise ValueError(message("inputs", "tokens only", ", ".join(used), USE_POLICY_LOSS_TRAINER))
        rows = batch_size or len(input_ids)
        results = [
            self._log_prob(*self._before_head(model, ids, attention, logits_to_keep))
            for ids, attention in zip(input_ids.split(rows), attention_mask.split(rows), strict=True)
        ]
        log_prob, entropy = (torch.cat(parts) for parts in zip(*results, strict=True))
        return log_prob, entropy if compute_entropy else None, None

    def _before_head(self, model, input_ids, attention_mask, words):
        """Hidden states ``[B, T, H]``, the head's weight, the tokens that they predict ``[B, T]``, and the head's bias."""
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        hidden, _ = before_head(model, head, input_ids, attention_mask=attention_mask)
        return hidden[:, -words - 1 : -1], head.weight, input_ids[:, -words:], head.bias

    def _log_prob(self, hidden, weight, target, bias):
        return maspo_ext.linear_logprob(hidden, weight, target, self.temperature, bias)


def _sequences(inputs: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """Tokens and attention mask ``[B, prompt + completion]``, and the length of the completions."""
    tokens, attention = (torch.cat([inputs[f"prompt_{of}"], inputs[f"completion_{of}"]], dim=1) for of in ("ids", "mask"))
    return tokens, attention, inputs["completion_ids"].shape[1]
