"""``torch.ops.maspo.linear_logprob``: log-probability and entropy from hidden states and the weight of the head."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_fake

from maspo_ext.derivatives import needs_dispatcher, refuse_forward_mode, refuse_transforms, without_second
from maspo_ext.logits import checks, groups, whole_rows
from maspo_ext.logits.groups import LogprobOptions, RowGrads, group_of_all
from maspo_ext.logits.head import Head
from maspo_ext.logits.logprob import IGNORE_INDEX, LogprobOutput, as_target, empty_results, row_gradients
from maspo_ext.logits.parts import Rows

_library = Library("maspo", "IMPL")
_TWIN = "maspo_ext.logits.reference.linear_logprob"


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    *,
    ignore_index: int = IGNORE_INDEX,
    memory_budget: int | None = None,
) -> LogprobOutput:
    """:func:`maspo_ext.logprob` of ``hidden @ weight.T + bias``, whose logits are never there as a whole.

    Forward goes through the tokens tile by tile, on a CPU through the vocabulary block by block, too; backward goes through the vocabulary
    with all tokens, makes a block's logits again, and every part of the weight's gradient is added up in float32 over all tokens and rounded once (on a GPU by cuBLAS, which adds up in halves now and then
    where ``torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`` or ``allow_fp16_...`` lets it, as they do by default).

    Args:
        hidden: ``[..., H]``, the model's last hidden states; float32, float64, bfloat16 or float16. Logits are float32
            whatever these are (float64 for float64).
        weight: ``[V, H]``, ``lm_head.weight``, whole and of the dtype of ``hidden``.
        target: integer ``[...]``, the word of each row.
        temperature: divides the logits.
        bias: ``[V]``, of the head, if it has one.
        ignore_index: rows with this target have results and gradients 0.
        memory_budget: bytes for logits; None: 128 MiB on a CPU, 512 MiB on a GPU. There are never fewer at a time than those of
            one token, on a GPU 16 tokens, or 256 words.

    Returns:
        ``LogprobOutput(log_prob, entropy)``, each ``[...]``, differentiable in ``hidden``, ``weight`` and ``bias``.

    Raises:
        TypeError, ValueError: an argument is wrong, or a shard of a whole (DTensor, FSDP, ZeRO-3).
        RuntimeError: a target out of range on a CPU; on a GPU its log_prob is NaN.

    Source: ``FusedLinearForPPO`` of verl 0.9.1 (``utils/experimental/torch_functional.py``).
    """
    op = torch.ops.maspo.linear_logprob if needs_dispatcher() else _linear_logprob
    return LogprobOutput(
        *op(hidden, weight, target, temperature, bias, ignore_index=ignore_index, memory_budget=memory_budget)
    )


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, temperature, bias, keywords):
        log_prob, entropy, state = torch.ops.maspo.linear_logprob_forward(
            hidden, weight, target, temperature, bias, **keywords
        )
        ctx.save_for_backward(hidden, weight, bias, target, entropy, state)
        ctx.temperature, ctx.keywords = temperature, keywords
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    def backward(ctx, dlog_prob, dentropy):
        if dlog_prob is None and dentropy is None:
            return (None,) * 6
        need = needed(ctx.needs_input_grad, hidden=0, weight=1, bias=4)
        grads = head_backward(ctx.saved_tensors, dlog_prob, dentropy, ctx.temperature, ctx.keywords, need)
        return *grads[:2], None, None, grads[2], None


def head_backward(
    saved: tuple[Tensor | None, ...], dlog_prob: Tensor | None, dentropy: Tensor | None, temperature: float,
    keywords: dict[str, Any], need: dict[str, bool], *, over_ranks: Callable[[Tensor], None] | None = None, alternative: str = _TWIN,
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of hidden states, weight and bias that are needed; ``over_ranks`` adds up that of hidden states."""
    hidden, weight, bias, target, entropy, state = saved
    grads = torch.ops.maspo.linear_logprob_backward(
        *row_gradients(dlog_prob, dentropy, entropy), hidden.detach(), weight.detach(), target, entropy.detach(), state,
        temperature, None if bias is None else bias.detach(), **keywords, **need,
    )  # fmt: skip
    if over_ranks is not None and need["need_hidden"]:
        over_ranks(grads[0])
    return [
        without_second(grad, hidden, "linear_logprob", alternative, weight, bias) if asked else None
        for grad, asked in zip(grads, need.values(), strict=True)
    ]


def needed(needs_input_grad: tuple[bool, ...], **position: int) -> dict[str, bool]:
    """The ops' flags that say which gradients to make."""
    return {f"need_{name}": needs_input_grad[index] for name, index in position.items()}


def _linear_logprob(
    hidden, weight, target, temperature=1.0, bias=None, *, memory_budget=None, ignore_index=IGNORE_INDEX
):
    """Kernel of ``maspo::linear_logprob`` on every device."""
    checks.check_head(hidden, weight, target, temperature, bias)
    for name, value in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        refuse_forward_mode(name, value, "linear_logprob", _TWIN)
    target = as_target(target)
    keywords = {"memory_budget": checks.memory_budget_of(memory_budget), "ignore_index": checks.ignore_index_of(ignore_index)}
    if asks_for_gradient(hidden, weight, bias):
        refuse_transforms("torch.ops.maspo.linear_logprob", _TWIN)
        return _LinearLogprob.apply(hidden, weight, target, temperature, bias, keywords)
    return torch.ops.maspo.linear_logprob_forward(hidden, weight, target, temperature, bias, **keywords)[:2]


def asks_for_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def flat(hidden: Tensor, weight: Tensor, bias: Tensor | None, memory_budget: int | None) -> Head:
    return Head(hidden.reshape(-1, hidden.shape[-1]), weight, bias, memory_budget)


def way_of(head: Head) -> ModuleType:
    """``results`` and ``gradients`` of the head's device."""
    return whole_rows if head.on_gpu else groups


def _forward(
    hidden, weight, target, temperature=1.0, bias=None, *, memory_budget=None, ignore_index, first_word=0, all_words=None
):  # fmt: skip
    """In the products of ``linear_loss``: so log-probabilities of both have the same bits."""
    checks.check_target(target, hidden.shape[:-1], hidden.device, "hidden")
    head = flat(hidden, weight, bias, memory_budget)
    checks.check_target_range(target, all_words or head.words, ignore_index)
    options = LogprobOptions(temperature, ignore_index, first_word, all_words)
    results = empty_results(weight, target.shape)
    of_rows = [result.view(-1, *result.shape[target.dim() :]) for result in results]
    for tokens, rows in way_of(head).results(head, target.flatten(), options):
        for whole, of_tokens in zip(of_rows, rows, strict=True):
            whole[tokens] = of_tokens
    return results


def _backward(
    dlog_prob, dentropy, hidden, weight, target, entropy, state, temperature=1.0, bias=None, *,
    memory_budget=None, ignore_index, first_word=0, all_words=None, need_hidden=True, need_weight=True, need_bias=False,
):  # fmt: skip
    """By blocks of words: their logits again for all tokens, the gradient of these, its products."""
    checks.check_target(target, hidden.shape[:-1], hidden.device, "hidden")
    head = flat(hidden, weight, bias, memory_budget)
    targets = target.flatten()
    operand = head.finite_operand(slice(None), targets == ignore_index)
    grads = head.new_gradients(weight.dtype, hidden=need_hidden, weight=need_weight, bias=need_bias)
    scale = half_scale(head, dlog_prob, dentropy)
    if scale is not None:
        dlog_prob, dentropy = dlog_prob / scale, None if dentropy is None else dentropy / scale
    options = LogprobOptions(temperature, ignore_index, first_word, all_words)
    rows, row_grads = Rows(None, entropy, state), RowGrads(dlog_prob, dentropy)
    group_of_all(head).gradients(head, operand, targets, options, rows, row_grads, grads, first=True, again=True)
    grad_hidden, grad_weight, grad_bias = grads.results(weight)
    if scale is not None:
        grad_hidden, grad_weight, grad_bias = grad_hidden * scale, grad_weight.mul_(scale), grad_bias * scale
    return grad_hidden.to(hidden.dtype).view(hidden.shape if need_hidden else 0), grad_weight, grad_bias.to(weight.dtype)


def half_scale(head: Head, *row_grads: Tensor | None) -> Tensor | None:
    """A power of two near the largest of the rows' gradients, by which they are divided where logits' gradients are float16.

    A mean over many tokens makes them too small for it. None: nothing to do.
    """
    if head.operand_dtype != torch.float16:
        return None
    largest = torch.stack([grad.abs().amax() for grad in row_grads if grad is not None and grad.numel()] or [torch.ones(())])
    scale = largest.amax().log2().floor().exp2()
    return torch.where((scale > 0) & scale.isfinite(), scale, 1.0)


_library.impl("linear_logprob", _linear_logprob, "CompositeImplicitAutograd")
for _key in ("CPU", "CUDA"):
    _library.impl("linear_logprob_forward", _forward, _key)
    _library.impl("linear_logprob_backward", _backward, _key)


@register_fake("maspo::linear_logprob_forward")
def _(hidden, weight, target, temperature=1.0, bias=None, **_keywords):
    return empty_results(weight, target.shape)


@register_fake("maspo::linear_logprob_backward")
def _(
    dlog_prob, dentropy, hidden, weight, target, entropy, state, temperature=1.0, bias=None, *,
    need_hidden=True, need_weight=True, need_bias=False, **_keywords,
):  # fmt: skip
    return (
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_weight else 0),
        weight.new_empty(weight.shape[:1] if need_bias else 0),
    )
