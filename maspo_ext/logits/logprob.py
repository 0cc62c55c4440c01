"""``torch.ops.maspo.logprob``: log-probability of the target word and entropy of the row, from logits that exist."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.library import Library, register_fake
from torch.utils.weak import TensorWeakRef

from maspo_ext.checks.numbers import check_bool
from maspo_ext.derivatives import needs_dispatcher, refuse_forward_mode, refuse_transforms, without_second
from maspo_ext.logits import checks

IGNORE_INDEX = -100  # as in torch.nn.functional.cross_entropy

# Registrations live as long as this object.
_library = Library("maspo", "IMPL")
_TWIN = "maspo_ext.logits.reference.logprob"


class LogprobOutput(NamedTuple):
    """Of each row, both differentiable; float64 for float64 inputs, else float32.

    Attributes:
        log_prob: of the target word, nats; at most 0; 0 for an ignored row.
        entropy: of the whole row, nats, between 0 and ln V; 0 for an ignored row.
    """

    log_prob: Tensor
    entropy: Tensor


def logprob(
    logits: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    *,
    ignore_index: int = IGNORE_INDEX,
    inplace_backward: bool = False,
) -> LogprobOutput:
    """Log-probability of the target words, and entropy, of rows of logits: one read forward, one read and write backward.

    Args:
        logits: ``[..., V]``, float32, float64, bfloat16 or float16; the words of a row next to each other in memory, the rows
            at any strides that two dimensions describe (a slice ``logits[:, :-1]`` is fine). ``-inf`` is a banned word.
            Arithmetic is in float32 (float64 for float64); a NaN stays in its row.
        target: integer ``[...]``, the word of each row.
        temperature: divides the logits.
        ignore_index: rows with this target have results and gradients 0, and are not read.
        inplace_backward: write the gradient into the memory of ``logits``, which are lost then. Whatever else saved them
            for its own backward raises (torch counts the change); what only looks at them later sees gradients. Under
            saved-tensor hooks (activation checkpointing, ``save_on_cpu``), where torch does not count, it has memory of its own.

    Returns:
        ``LogprobOutput(log_prob, entropy)``, each ``[...]``.

    Raises:
        TypeError, ValueError: an argument is wrong, or ``inplace_backward`` would be unsafe.
        RuntimeError: a target out of range on a CPU (on a GPU its log_prob is NaN, since nobody waits for the device), or
            strides that the kernels cannot follow.

    Source: ``log_softmax`` and ``logprobs_from_logits``, ``entropy_from_logits`` of verl 0.9.1 (``utils/torch_functional.py``).
    """
    op = torch.ops.maspo.logprob if needs_dispatcher() else _logprob
    return LogprobOutput(
        *op(logits, target, temperature, ignore_index=ignore_index, inplace_backward=inplace_backward)
    )


def as_target(target: Tensor) -> Tensor:
    """As the kernels read it."""
    return target.to(torch.int64).contiguous()


def rows_backward(
    saved: tuple[Tensor, ...], dlog_prob: Tensor | None, dentropy: Tensor | None, numbers: tuple[Any, ...], *,
    grad: Tensor | None = None, alternative: str = _TWIN,
) -> Tensor:  # fmt: skip
    """The gradient of ``saved[0]``, the logits, written into ``grad`` if that is given."""
    logits, target, entropy, state = saved
    arguments = (*row_gradients(dlog_prob, dentropy, entropy), logits.detach(), target, entropy.detach(), state, *numbers)
    if grad is None:
        grad = torch.ops.maspo.logprob_backward(*arguments)
    else:
        torch.ops.maspo.logprob_backward_out(*arguments, grad=grad)
    return without_second(grad, logits, "logprob", alternative)


def row_gradients(dlog_prob: Tensor | None, dentropy: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """What autograd hands to a backward, as the kernels read it; None stands for zeros."""
    dlog_prob = torch.zeros_like(like) if dlog_prob is None else dlog_prob.contiguous()
    return dlog_prob, None if dentropy is None else dentropy.contiguous()


class _Logprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, temperature, ignore_index, inplace_backward):
        log_prob, entropy, state = torch.ops.maspo.logprob_forward(logits, target, temperature, ignore_index)
        ctx.save_for_backward(logits, target, entropy, state)
        ctx.numbers = (temperature, ignore_index)
        ctx.written_over = TensorWeakRef(logits) if inplace_backward else None
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    def backward(ctx, dlog_prob, dentropy):
        if dlog_prob is None and dentropy is None:
            return (None,) * 5
        saved = ctx.saved_tensors
        logits = saved[0]
        # Saved-tensor hooks give another tensor, which they may give to others, too: torch does not look at its version.
        in_place = ctx.written_over is not None and ctx.written_over() is logits
        grad = rows_backward(saved, dlog_prob, dentropy, ctx.numbers, grad=logits.detach() if in_place else None)
        if in_place:
            increment_version(logits)
        return grad, None, None, None, None


def _logprob(logits, target, temperature=1.0, *, ignore_index=IGNORE_INDEX, inplace_backward=False):
    """Kernel of ``maspo::logprob`` on every device."""
    checks.check_logits(logits, target, temperature)
    ignore_index = checks.ignore_index_of(ignore_index)
    check_bool("inplace_backward", inplace_backward, "True writes the gradient over the logits.")
    refuse_forward_mode("logits", logits, "logprob", _TWIN)
    target = as_target(target)
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return torch.ops.maspo.logprob_forward(logits, target, temperature, ignore_index)[:2]
    refuse_transforms("torch.ops.maspo.logprob", _TWIN)
    if inplace_backward:
        checks.check_inplace(logits)
    return _Logprob.apply(logits, target, temperature, ignore_index, inplace_backward)


_library.impl("logprob", _logprob, "CompositeImplicitAutograd")


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of all sums and results for inputs of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_results(like: Tensor, rows: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """``(log_prob, entropy, state)`` of so many rows, on the device of ``like``."""
    dtype = arithmetic_dtype(like.dtype)
    return (
        like.new_empty(rows, dtype=dtype),
        like.new_empty(rows, dtype=dtype),
        like.new_empty((*rows, 2), dtype=torch.float64),
    )


@register_fake("maspo::logprob_forward")
def _(logits, target, temperature, ignore_index, first_word=0, all_words=None):
    return empty_results(logits, logits.shape[:-1])


@register_fake("maspo::logprob_backward")
def _(dlog_prob, dentropy, logits, target, entropy, state, *_numbers):
    return logits.new_empty(logits.shape)


@register_fake("maspo::logprob_backward_out")
@register_fake("maspo::logprob_backward_blocks_out")
def _(*_arguments, **_memory):
    return None
