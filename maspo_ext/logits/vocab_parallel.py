"""Log-probability and entropy where each rank of a group has a shard of the vocabulary (a tensor-parallel lm_head).

Each rank takes both within its shard; they add up to those of the whole (``parts.py``) by two all-reduces of a few numbers per
row: a maximum, then a sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from maspo_ext.checks.numbers import whole_number
from maspo_ext.derivatives import refuse_transforms
from maspo_ext.errors import message
from maspo_ext.logits import checks
from maspo_ext.logits.linear_logprob import head_backward, needed
from maspo_ext.logits.logprob import IGNORE_INDEX, LogprobOutput, as_target, rows_backward
from maspo_ext.logits.parts import Rows, Sums

_TWIN = "maspo_ext.logits.reference on the gathered vocabulary"


class _Shard(NamedTuple):
    """The words ``[first_word, first_word + words)`` of ``all_words``, on this rank of ``group``."""

    group: Any
    first_word: int
    words: int
    all_words: int

    def has(self, target: Tensor) -> Tensor:
        return ~checks.is_outside(target - self.first_word, self.words)


def vocab_parallel_logprob(
    logits: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    *,
    group: Any = None,
    first_word: int | None = None,
    all_words: int | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> LogprobOutput:
    """:func:`maspo_ext.logprob` over the vocabulary of a group, of which ``logits`` are this rank's shard.

    Args:
        logits: ``[..., V_k]``, this rank's words; as of :func:`maspo_ext.logprob`.
        target: ``[...]``, words of the whole vocabulary, the same on all ranks.
        temperature, ignore_index: as there.
        group: the process group; None: the default one. Every rank of it must call, forward and backward.
        first_word, all_words: where the shard begins, and the size of the whole; None: shards of one size, in the order of
            the ranks, as Megatron's. The shards must be the whole: on a GPU, where nobody waits for a check, results are
            NaN otherwise.

    Returns:
        ``LogprobOutput(log_prob, entropy)`` of the whole vocabulary, on every rank; gradients flow into this rank's logits.
        As with Megatron's layers, the ranks' losses are one loss: upstream gradients must be the same on all ranks.

    Raises:
        TypeError, ValueError: an argument is wrong, or on a CPU the shards are not the whole.
        RuntimeError: no process group, or a target out of range on a CPU.

    Source: ``vocab_parallel_log_probs_from_logits``, ``vocab_parallel_entropy`` of verl 0.9.1 (``utils/megatron/tensor_parallel.py``).
    """
    checks.check_logits(logits, target, temperature)
    ignore_index = checks.ignore_index_of(ignore_index)
    refuse_transforms("vocab_parallel_logprob", _TWIN)
    shard = _shard(group, first_word, all_words, logits.shape[-1])
    return LogprobOutput(*_Logprob.apply(logits, as_target(target), temperature, ignore_index, shard))


def vocab_parallel_linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    *,
    group: Any = None,
    first_word: int | None = None,
    all_words: int | None = None,
    ignore_index: int = IGNORE_INDEX,
    memory_budget: int | None = None,
) -> LogprobOutput:
    """:func:`maspo_ext.linear_logprob` over the vocabulary of a group, of whose head ``weight`` and ``bias`` are this rank's shards.

    Args:
        hidden: ``[..., H]``, the same on all ranks; as of :func:`maspo_ext.linear_logprob`.
        weight: ``[V_k, H]``, this rank's words.
        target: ``[...]``, words of the whole vocabulary, the same on all ranks.
        temperature, ignore_index, memory_budget: as there; the budget is this rank's.
        bias: ``[V_k]``, this rank's, if the head has one.
        group, first_word, all_words: as of :func:`vocab_parallel_logprob`.

    Returns:
        ``LogprobOutput(log_prob, entropy)`` of the whole vocabulary, on every rank. Gradients flow into this rank's ``weight`` and
        ``bias``, and into ``hidden``, whose gradient is added over the ranks: upstream gradients must be the same on all of them.

    Raises:
        TypeError, ValueError: an argument is wrong, or on a CPU the shards are not the whole.
        RuntimeError: no process group, or a target out of range on a CPU.

    Source: that of :func:`maspo_ext.linear_logprob` for a rank's shard, that of :func:`vocab_parallel_logprob` over ranks.
    """
    checks.check_head(hidden, weight, target, temperature, bias)
    ignore_index = checks.ignore_index_of(ignore_index)
    refuse_transforms("vocab_parallel_linear_logprob", _TWIN)
    memory_budget = checks.memory_budget_of(memory_budget)
    shard = _shard(group, first_word, all_words, weight.shape[0])
    return LogprobOutput(
        *_LinearLogprob.apply(hidden, weight, bias, as_target(target), temperature, ignore_index, memory_budget, shard)
    )


def _shard(group: Any, first_word: int | None, all_words: int | None, words: int) -> _Shard:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            message("group", "an initialised torch.distributed", "none", "Without ranks use logprob or linear_logprob.")
        )
    rank = dist.get_rank(group)
    if rank < 0:
        got = f"one without this process (rank {dist.get_rank()} of {dist.get_world_size()})"
        raise ValueError(message("group", "a group that this process is in", got, "Only the ranks that have a shard call this."))
    if (first_word is None) != (all_words is None):
        raise ValueError(
            message("first_word, all_words", "both or neither", f"{first_word!r}, {all_words!r}", "Neither: equal shards.")
        )
    if first_word is None:
        first_word, all_words = rank * words, dist.get_world_size(group) * words
    else:
        first_word = whole_number("first_word", first_word, 0, "Where does this rank's shard begin?")
        all_words = whole_number("all_words", all_words, 1, "It is the size of the whole vocabulary.")
    if not 0 <= first_word <= first_word + words <= all_words:
        raise ValueError(
            message("first_word", f"0 to all_words - {words} = {all_words - words}", first_word, "Where does this rank's shard begin?")
        )  # fmt: skip
    return _Shard(group, first_word, words, all_words)


def _merged(of_shard: Rows, target: Tensor, temperature: float, ignore_index: int, shard: _Shard) -> Rows:
    """Of the whole vocabulary."""
    largest, most, least = _all_reduced(dist.ReduceOp.MAX, shard, of_shard.largest, shard.all_words, -shard.all_words)
    largest = _of_whole(largest, most, -least, "one number, all_words, on all ranks")
    part = torch.stack(Sums.of_part(of_shard, largest, temperature, shard.has(target)))
    sums, words = _all_reduced(dist.ReduceOp.SUM, shard, part, shard.words)
    largest = _of_whole(largest, words, torch.full_like(words, shard.all_words), "shards that add up to all_words")
    return Sums(*sums).rows(largest, temperature, target == ignore_index, of_shard.log_prob.dtype)


def _all_reduced(op: Any, shard: _Shard, values: Tensor, *numbers: int) -> tuple[Tensor, ...]:
    """``values``, and each of ``numbers`` as a tensor, of all ranks, by one collective."""
    together = torch.cat([values.flatten(), *(values.new_full((1,), number) for number in numbers)])
    dist.all_reduce(together, op, shard.group)
    return together[: values.numel()].view(values.shape), *together[values.numel() :]


def _of_whole(largest: Tensor, words: Tensor, expected: Tensor, what: str) -> Tensor:
    """``largest`` if the numbers of words are as expected, which all ranks find alike. A GPU is not waited for: there it is NaN if not."""
    if largest.is_cuda:
        return torch.where(words == expected, largest, torch.nan)
    if words != expected:
        got = f"{words.item():.0f} and {expected.item():.0f} words"
        raise ValueError(
            message("first_word, all_words", what, got, "Where shards differ in size, every rank passes where its own begins.")
        )
    return largest


class _Logprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, temperature, ignore_index, shard):
        ctx.numbers = (temperature, ignore_index, shard.first_word, shard.all_words)
        of_shard = Rows(*torch.ops.maspo.logprob_forward(logits, target, *ctx.numbers))
        log_prob, entropy, state = _merged(of_shard, target, temperature, ignore_index, shard)
        ctx.save_for_backward(logits, target, entropy, state)
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    def backward(ctx, dlog_prob, dentropy):
        grad = rows_backward(ctx.saved_tensors, dlog_prob, dentropy, ctx.numbers, alternative=_TWIN)
        return grad, None, None, None, None


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, temperature, ignore_index, memory_budget, shard):
        ctx.temperature, ctx.group = temperature, shard.group
        ctx.keywords = {
            "memory_budget": memory_budget,
            "ignore_index": ignore_index,
            "first_word": shard.first_word,
            "all_words": shard.all_words,
        }
        of_shard = Rows(
            *torch.ops.maspo.linear_logprob_forward(hidden, weight, target, temperature, bias, **ctx.keywords)
        )
        log_prob, entropy, state = _merged(of_shard, target, temperature, ignore_index, shard)
        ctx.save_for_backward(hidden, weight, bias, target, entropy, state)
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    def backward(ctx, dlog_prob, dentropy):
        need = needed(ctx.needs_input_grad, hidden=0, weight=1, bias=2)

        def over_ranks(grad_hidden: Tensor) -> None:
            dist.all_reduce(grad_hidden, dist.ReduceOp.SUM, ctx.group)

        options = {"over_ranks": over_ranks, "alternative": _TWIN}
        grads = head_backward(ctx.saved_tensors, dlog_prob, dentropy, ctx.temperature, ctx.keywords, need, **options)
        return *grads, None, None, None, None, None
