"""The policy loss between the products of the head: of some tokens at a time, with its derivatives, and of all in the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maspo_ext.logits.checks import MASKED, check_target_range
from maspo_ext.logits.groups import RowGrads
from maspo_ext.logits.head import Head
from maspo_ext.logits.linear_logprob import half_scale
from maspo_ext.logits.logprob import as_target
from maspo_ext.logits.parts import Rows
from maspo_ext.ops import forward_pass

# A token's part of the loss depends on no other token, but for the row's scale: so some tokens are taken for one sequence.
_OF_SOME_TOKENS = {
    "loss_agg_mode": "token-sum",
    "dp_size": 1,
    "batch_num_tokens": None,
    "global_batch_size": None,
    "loss_scale_factor": None,
    "cu_seqlens": None,
    "max_seqlen": None,
}


def with_old(policy: tuple[Tensor | None, ...], otherwise: Tensor) -> tuple[Tensor, ...]:
    """``old_log_prob``, ``advantages`` and ``response_mask``, the first ``otherwise`` where it is None."""
    old_log_prob, *others = policy
    return otherwise if old_log_prob is None else old_log_prob, *others


def masked(target: Tensor, response_mask: Tensor) -> Tensor:
    """int64; ``MASKED`` where the mask is 0."""
    return torch.where(response_mask != 0, as_target(target), MASKED)


def row_of_token(cu_seqlens: Tensor, target: Tensor) -> Tensor:
    """``[N]``; within the sequences whatever ``cu_seqlens`` holds: on a GPU an index beyond them would end the process."""
    tokens = torch.arange(target.numel(), device=target.device)
    return torch.searchsorted(cu_seqlens[1:], tokens, right=True).clamp_(max=cu_seqlens.numel() - 2)


class LossOfTokens:
    """What each token's log-probability and entropy make of the loss.

    Args:
        head: whose logits they come from.
        target: ``[B, T]``, or packed ``[total_tokens]``; of a masked token whatever it is.
        policy: ``old_log_prob``, None for that which is made here, ``advantages`` and ``response_mask``.
        options: of ``forward_pass``, without the next two and ``entropy``.
        cu_seqlens, max_seqlen: as there.
        shaped: whether the entropy shapes the advantages.
        entropy_coef: weight of the entropy bonus.

    Attributes:
        target: flat, ``MASKED`` where the mask is 0.
        half: by what the gradients are too small, where float16 has no room for them; None: nothing.
    """

    def __init__(
        self, head: Head, target: Tensor, policy: tuple[Tensor | None, ...], options: dict[str, Any], *,
        cu_seqlens: Tensor | None, max_seqlen: int | None, shaped: bool, entropy_coef: float,
    ) -> None:  # fmt: skip
        self._policy, self._options, self._shaped = policy, options, shaped
        self._whole = {**options, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        self._shape = target.shape
        of_words = masked(target, policy[2])
        check_target_range(of_words, head.words, MASKED)
        self.target = of_words.flatten()
        self._row = None if cu_seqlens is None else row_of_token(cu_seqlens, target)
        # The scale of a row depends on the mask alone: another tensor stands for the new policy, which is not known yet.
        stand_in = torch.zeros_like(target, dtype=head.dtype) if policy[0] is None else policy[0]
        scales = forward_pass(stand_in, with_old(policy, stand_in), self._whole, need_grad=False)[3]
        of_batch, of_rows = scales[0], scales[1:]
        row_scale = torch.where(of_rows == 0, 0, of_batch * of_rows).to(head.dtype)
        self.half = half_scale(head, row_scale)
        self._scale = self._per_token(row_scale.unsqueeze(-1))
        self._grad_scale = self._scale if self.half is None else self._per_token((row_scale / self.half).unsqueeze(-1))
        # d loss / d entropy of a token, short of its row's scale. A masked token's entropy is 0.
        self._bonus = None if entropy_coef == 0 else self._per_token(policy[2]).to(head.dtype) * -entropy_coef
        self._dentropy = None if self._bonus is None else self._bonus * self._grad_scale
        self._policy_of_token = [self._per_token(value) for value in policy]
        self._options_of_token = {name: self._per_token(options[name]) for name in ("rollout_is_weights", "ref_log_prob")}
        self._rows: list[Rows] = []

    def _per_token(self, value: Tensor | None) -> Tensor | None:
        """``[N]`` from one of the shapes that the loss takes."""
        if value is None or value.shape == self._shape:
            return None if value is None else value.reshape(-1)
        if self._row is None:
            return value.reshape(-1, 1).expand(self._shape).reshape(-1)
        return value.reshape(-1)[self._row]

    def keep(self, rows: Rows) -> None:
        """The log-probabilities and entropies of the tokens behind those that are kept already."""
        self._rows.append(rows)

    def derivatives(self, tokens: slice, rows: Rows) -> RowGrads:
        """Of the loss in ``rows``, the log-probabilities and entropies of these tokens, which are kept: as ``keep`` does it."""
        self.keep(rows)

        def of_tokens(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[tokens].unsqueeze(0)

        options = {
            **self._options,
            **{name: of_tokens(value) for name, value in self._options_of_token.items()},
            **_OF_SOME_TOKENS,
            "entropy": rows.entropy.unsqueeze(0) if self._shaped else None,
        }
        new = rows.log_prob.unsqueeze(0)
        policy = with_old([of_tokens(value) for value in self._policy_of_token], new)
        dlogp = forward_pass(new, policy, options, need_grad=True)[2].squeeze(0)
        return RowGrads(dlogp * self._grad_scale[tokens], None if self._dentropy is None else self._dentropy[tokens])

    def of_all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, statistics, log-probabilities and entropies, when all tokens are there."""
        log_prob = torch.cat([rows.log_prob for rows in self._rows]).view(self._shape)
        entropy = torch.cat([rows.entropy for rows in self._rows]).view(self._shape)
        options = {**self._whole, "entropy": entropy if self._shaped else None}
        loss, stats = forward_pass(log_prob, with_old(self._policy, log_prob), options, need_grad=False)[:2]
        if self._bonus is not None:
            loss += (self._bonus.double() * self._scale * entropy.view(-1)).sum()
        return loss, stats, log_prob, entropy
