"""From hidden states to the policy loss, as their users do it: what ``linear.py`` measures.

A peer takes a ``Batch`` and returns the loss, differentiable in ``hidden`` and ``weight``: MASPO with its published defaults
and a mean over all tokens; Liger, which has no MASPO, PPO's clip with the dual clip. All but Liger give the entropy, too, as a
statistic without gradient. That they compute the same is checked in ``tests/benchmarks``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from extras import LIGER
from peers import maspo
from torch import Tensor

import maspo_ext


class Batch(NamedTuple):
    hidden: Tensor  # [B, T, H]
    weight: Tensor  # [V, H]
    target: Tensor  # [B, T]
    old_log_prob: Tensor
    advantages: Tensor  # one value per row
    response_mask: Tensor

    def of_policy(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.old_log_prob, self.advantages, self.response_mask

    def first_row(self) -> Batch:
        return self._replace(**{name: value[:1] for name, value in self._asdict().items() if name != "weight"})


Peer = Callable[[Batch], Tensor]


def make_batch(
    rows: int, cols: int, hidden_size: int, vocabulary: int, dtype: torch.dtype, device: str, masked: float = 0.0
) -> Batch:
    """Random, with an old policy near the one that is trained."""
    hidden = torch.randn(rows, cols, hidden_size, device=device, dtype=dtype)
    weight = torch.randn(vocabulary, hidden_size, device=device, dtype=dtype).mul_(hidden_size**-0.5)
    target = torch.randint(vocabulary, (rows, cols), device=device)
    with torch.no_grad():  # row by row: the logits of all would need more memory than some peers
        old = torch.stack([log_prob_and_entropy(hidden[row], weight, target[row])[0] for row in range(rows)])
    old += 0.3 * torch.randn_like(old)
    mask = torch.rand(rows, cols, device=device) >= masked
    mask[0, 0] = True
    advantages = torch.randn(rows, 1, device=device).expand(rows, cols).contiguous()
    return Batch(hidden.requires_grad_(), weight.requires_grad_(), target, old, advantages, mask.float())


def log_prob_and_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    log_probs = F.linear(hidden, weight).float().log_softmax(-1)
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1), entropy


def _whole(batch: Batch) -> tuple[Tensor, ...]:
    log_prob, entropy = log_prob_and_entropy(batch.hidden, batch.weight, batch.target)
    return *maspo(log_prob, *batch.of_policy()), entropy


def eager() -> Peer:
    return lambda batch: _whole(batch)[0]


def compiled() -> Peer:
    function = torch.compile(_whole)  # with all its results: what is not returned would not be computed
    return lambda batch: function(batch)[0]


def verl_torch() -> Peer:
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    fused = FusedLinearForPPO()

    def peer(batch: Batch) -> Tensor:
        log_prob, _ = fused(batch.hidden, batch.weight, batch.target)
        return maspo(log_prob, *batch.of_policy())[0]

    return peer


def verl_triton() -> Peer:
    import triton  # noqa: F401  verl's kernels can be imported without it, but not run
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    def peer(batch: Batch) -> Tensor:
        log_prob, _ = linear_cross_entropy(batch.hidden, batch.weight, batch.target, 1.0, "none")
        return maspo(log_prob.view_as(batch.old_log_prob), *batch.of_policy())[0]

    return peer


def liger() -> Peer:
    with LIGER.importable():
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    def peer(batch: Batch) -> Tensor:
        # One chunk of all rows: it goes over the vocabulary in pieces anyway, and adds up a weight's gradient per chunk.
        # Not compiled: that would be the arithmetic on one number per token, and made no call faster.
        loss = LigerFusedLinearGRPOLoss(
            beta=0.0, compiled=False, use_ref_model=False, chunk_size=len(batch.hidden), loss_type="bnpo", delta=3.0
        )
        old, advantages, mask = batch.of_policy()
        return loss(batch.hidden, batch.weight, batch.target, mask, advantages[:, 0], old_per_token_logps=old)[0]

    return peer


def linear_logprob() -> Peer:
    def peer(batch: Batch) -> Tensor:
        log_prob, _ = maspo_ext.linear_logprob(batch.hidden, batch.weight, batch.target)
        return maspo_ext.policy_loss(log_prob, *batch.of_policy()).loss

    return peer


def linear_loss(**keywords: str | int) -> Peer:
    def peer(batch: Batch) -> Tensor:
        return maspo_ext.linear_loss(batch.hidden, batch.weight, batch.target, *batch.of_policy(), **keywords).loss

    return peer


PEERS: dict[str, Callable[[], Peer]] = {
    "eager": eager,
    "torch.compile": compiled,
    "verl torch": verl_torch,
    "verl triton": verl_triton,
    "Liger (grpo)": liger,
    "linear_logprob": linear_logprob,
    "linear_loss": linear_loss,
    "linear_loss (grpo)": lambda: linear_loss(ratio_mode="grpo"),
    # Beside the budget there are a token's numbers, some MiB.
    "linear_loss (1 GiB)": lambda: linear_loss(memory_budget=1020 * 2**20),
}
