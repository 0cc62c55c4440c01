"""Log-probability and entropy of rows whose words come in parts: blocks of a vocabulary, or shards of it on several ranks.

Each part gives log-probability ``l_k`` and entropy ``H_k`` among its own words. With its share ``p_k`` of the probability,
which follows from the parts' log-sum-exps, ``log p = l_k + log p_k`` in the part that has the target, and the entropy is
``sum_k p_k (H_k - log p_k)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maspo_ext.logits.checks import is_outside


class Rows(NamedTuple):
    """What ``torch.ops.maspo.logprob_forward`` returns of a part, or of the whole."""

    log_prob: Tensor | None  # None where only gradients are made, which do not need it
    entropy: Tensor
    state: Tensor  # [..., 2] float64: the largest logit; log of the sum of exp((logit - largest) / temperature)

    @property
    def largest(self) -> Tensor:
        return self.state[..., 0]


class Sums(NamedTuple):
    """Over parts, float64. ``share`` and ``weighted`` are in units of ``exp(largest / temperature)``, ``largest`` a logit."""

    share: Tensor  # of exp(logit / temperature)
    weighted: Tensor  # of share * (entropy - log share)
    of_target: Tensor  # the target's logit over the temperature, from the part that has it; NaN: out of range

    @classmethod
    def of_part(cls, part: Rows, largest: Tensor, temperature: float, has_target: Tensor) -> Sums:
        above, log_sum = (part.largest - largest) / temperature, part.state[..., 1]
        log_share = above + log_sum
        share = log_share.exp()
        # Where all words of a part are banned log_sum is -inf, and log-probability and entropy are NaN.
        own = torch.where(log_sum == -torch.inf, log_sum, part.log_prob + part.largest / temperature + log_sum)
        return cls(
            share,
            torch.where(share == 0, 0, share * (part.entropy - log_share)),
            torch.where(has_target, own, part.log_prob),  # of a target that is not its own a kernel says 0, or NaN
        )

    def raised(self, by: Tensor) -> Sums:
        """In units ``exp(by)`` times as large."""
        factor = (-by).exp()
        weighted = factor * (self.weighted + by * self.share)
        return Sums(factor * self.share, torch.where(self.share == 0, 0, weighted), self.of_target)

    def rows(self, largest: Tensor, temperature: float, ignored: Tensor, dtype: torch.dtype) -> Rows:
        log_share = self.share.log()
        log_prob = (self.of_target - largest / temperature - log_share).clamp(max=0)  # rounding may have passed 0
        entropy = (self.weighted / self.share + log_share).clamp(min=0)
        of_rows = (torch.where(ignored, 0, value).to(dtype) for value in (log_prob, entropy))
        return Rows(*of_rows, torch.stack([largest, log_share], -1))


class PartsInTurn:
    """Adds up the parts of rows as they come."""

    def __init__(self, target: Tensor, temperature: float, ignore_index: int) -> None:
        self.target, self.temperature, self.ignored = target, temperature, target == ignore_index
        self.largest: Tensor | None = None

    def add(self, part: Rows, first_word: int, words: int) -> None:
        has_target = ~is_outside(self.target - first_word, words)
        self.dtype = part.log_prob.dtype
        if self.largest is None:
            self.largest = part.largest
            self.sums = Sums.of_part(part, self.largest, self.temperature, has_target)
            return
        largest = torch.maximum(self.largest, part.largest)
        before = self.sums.raised((largest - self.largest) / self.temperature)
        self.largest = largest
        of_part = Sums.of_part(part, largest, self.temperature, has_target)
        self.sums = Sums(*(a + b for a, b in zip(before, of_part, strict=True)))

    def rows(self) -> Rows:
        return self.sums.rows(self.largest, self.temperature, self.ignored, self.dtype)
