"""The ops from logits and from hidden states in plain torch: documentation, and oracle of the tests.

They hold the logits as a whole; nothing falls back to them.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from maspo_ext import reference
from maspo_ext.logits.logprob import IGNORE_INDEX, arithmetic_dtype
from maspo_ext.methods import RATIO_MODES


def logprob(
    logits: Tensor, target: Tensor, temperature: float = 1.0, *, ignore_index: int = IGNORE_INDEX
) -> tuple[Tensor, Tensor]:
    """Twin of ``torch.ops.maspo.logprob``: ``(log_prob, entropy)``."""
    ignored = target == ignore_index
    log_probs = (logits.to(arithmetic_dtype(logits.dtype)) / temperature).log_softmax(-1)
    # A banned word has p log p = 0, and a gradient of 0.
    terms = torch.where(log_probs.isneginf(), 0, log_probs.exp() * log_probs.masked_fill(log_probs.isneginf(), 0))
    chosen = log_probs.gather(-1, torch.where(ignored, 0, target).long().unsqueeze(-1)).squeeze(-1)
    return torch.where(ignored, 0, chosen), torch.where(ignored, 0, -terms.sum(-1))


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    *,
    ignore_index: int = IGNORE_INDEX,
) -> tuple[Tensor, Tensor]:
    """Twin of ``torch.ops.maspo.linear_logprob``."""
    dtype = arithmetic_dtype(weight.dtype)
    hidden = torch.where((target == ignore_index).unsqueeze(-1), 0, hidden.to(dtype))
    logits = hidden @ weight.to(dtype).T
    return logprob(logits if bias is None else logits + bias, target, temperature, ignore_index=ignore_index)


_AGGREGATION = list(inspect.signature(reference.aggregate).parameters)[2:]


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    *,
    entropy_coef: float = 0.0,
    **keywords: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Twin of ``torch.ops.maspo.linear_loss``: ``(loss, stats, log_prob, entropy)``; ``keywords`` as those of ``reference.loss``."""
    target = torch.where(response_mask != 0, target, IGNORE_INDEX)
    log_prob, entropy = linear_logprob(hidden, weight, target, temperature, bias)
    shaped = keywords.get("ratio_mode") == "entropy_adv" or keywords.get("entropy_alpha", 0) != 0
    loss, stats = reference.loss(
        log_prob, old_log_prob, advantages, response_mask, entropy=entropy.detach() if shaped else None, **keywords
    )
    if entropy_coef != 0:
        of_mode = {"loss_agg_mode": RATIO_MODES[keywords.get("ratio_mode", "maspo")].default_loss_agg_mode}
        given = {name: keywords[name] for name in _AGGREGATION if keywords.get(name) is not None}
        loss = loss - entropy_coef * reference.aggregate(entropy, response_mask.to(entropy.dtype), **(of_mode | given))
    return loss, stats, log_prob.detach(), entropy.detach()
