"""Derivatives that the ops do not have, refused and not dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from maspo_ext.errors import message
from maspo_ext.torch_internals import (
    is_batched_by_autograd,
    is_differentiated,
    is_transformed,
    keeps_graph,
    make_fx_mode,
    may_be_dual,
    may_be_transformed,
)


class _Refused(torch.autograd.Function):
    """The identity on the gradient, in the graph only so that asking for its derivative raises."""

    @staticmethod
    def forward(ctx, grad, op, alternative, *values):
        ctx.op, ctx.alternative = op, alternative
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, _):
        got = "a derivative of the gradient (create_graph=True, gradient penalty, Hessian)"
        raise RuntimeError(
            message(f"torch.ops.maspo.{ctx.op} has no second derivative", "one backward pass", got, f"Use {ctx.alternative} for that.")
        )  # fmt: skip


def is_known_one(grad_loss: torch.Tensor) -> bool:
    """Whether a scalar loss's gradient is the 1 that ``loss.backward()`` starts with. On a GPU nobody knows without a wait.

    Of what ``is_plain``: the numbers of other tensors cannot be asked for.
    """
    return grad_loss.is_cpu and grad_loss.item() == 1


def is_plain(*tensors: torch.Tensor) -> bool:
    """Whether these have numbers that may be looked at, or written over with one another's.

    Not those that torch.compile or make_fx traces, those without numbers (``meta``), and batches of vmap, as ``is_grads_batched``
    and ``jacobian(vectorize=True)`` make them of the gradient of a loss.
    """
    if make_fx_mode() is not None or may_be_transformed():
        return False
    for tensor in tensors:
        if type(tensor) is not torch.Tensor or tensor.is_meta or is_batched_by_autograd(tensor):
            return False
    return True


def may_be_reused(saved: torch.Tensor, by: torch.Tensor) -> bool:
    """Whether a backward function that runs now may write its product with ``by`` over ``saved``, which its forward pass made.

    Not where the graph is kept for another backward pass, and not while torch.compile traces, which finds memory itself.
    """
    return is_plain(saved, by) and not keeps_graph()


def without_second(
    grad: torch.Tensor, value: torch.Tensor, op: str, alternative: str, *others: torch.Tensor | None
) -> torch.Tensor:
    """``grad``, a gradient of the op of ``value`` and ``others``; its own derivative in any of these raises."""
    return _Refused.apply(grad, op, alternative, value, *others) if torch.is_grad_enabled() else grad


def refuse_forward_mode(name: str, value: torch.Tensor | None, op: str, alternative: str) -> None:
    """Without this, the tangent of a dual tensor would be dropped in silence."""
    if value is not None and forward_ad.unpack_dual(value).tangent is not None:
        remedy = f"Use reverse mode (loss.backward()), or {alternative}."
        what = f"torch.ops.maspo.{op} has no forward-mode derivative"
        raise NotImplementedError(message(what, f"{name} without a tangent", "a dual tensor", remedy))


def needs_dispatcher() -> bool:
    """Whether a call has to go through its op, which torch.compile and make_fx put into a graph and torch.func transforms.

    Otherwise the op's kernel is called at once: the dispatcher's share of a small batch's time is large, and its errors for a
    value of the wrong type do not say what to do.
    """
    return torch.compiler.is_compiling() or may_be_transformed() or make_fx_mode() is not None


def may_be_differentiated_otherwise() -> bool:
    """Whether a call may be within forward mode or torch.func's derivatives."""
    return may_be_dual() or may_be_transformed()


def untransformed(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Its ``apply`` for where ``refuse_transforms`` has passed: by torch's C++ at once, which refuses transforms, too.

    The method of Python in between looks for torch.func's transforms, and at every argument for what may be left of them: that
    takes as long as all the rest.
    """
    return super(torch.autograd.Function, function).apply


def refuse_other_derivatives(inputs: dict[str, torch.Tensor | None], op: str, alternative: str) -> None:
    """Forward mode and torch.func's derivatives, with respect to any of these: they would be 0 in silence."""
    for name, value in inputs.items():
        refuse_forward_mode(name, value, op, alternative)
        if value is not None and is_differentiated(value):
            refuse_transforms(f"torch.ops.maspo.{op}", alternative)


def refuse_transforms(what: str, alternative: str) -> None:
    """Before a gradient is asked for: torch.func's own error speaks of what a user cannot change."""
    if is_transformed():
        remedy = f"Use loss.backward() or torch.autograd.grad, or {alternative}."
        got = "one within grad, vjp, jacrev or the like"
        raise NotImplementedError(message(f"{what} has no derivative by torch.func", "a plain call", got, remedy))


def refuse_gradient_of_old(trained: str, old_log_prob: torch.Tensor | None) -> None:
    """Where nothing is trained but the old policy would be: two tensors of one shape that were swapped."""
    if torch.is_grad_enabled() and old_log_prob is not None and old_log_prob.requires_grad:
        expected = f"a tensor without gradient, since {trained} not require one"
        remedy = (
            "The policy that is trained comes first and the old one second (verl's own losses have it the other way round): swap "
            "them, or pass old_log_prob.detach()."
        )
        raise ValueError(message("old_log_prob", expected, "one that requires grad", remedy))
