"""Derivatives that the ops do not have, refused and not dropped."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


class _Refused(torch.autograd.Function):
    """The identity on the gradient, in the graph only so that asking for its derivative raises."""

    @staticmethod
    def forward(ctx, grad, op, alternative, *values):
        ctx.op, ctx.alternative = op, alternative
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError(
            f"maspo_ext: torch.ops.maspo.{ctx.op} has no second derivative: expected one backward pass, got a derivative of the "
            f"gradient (create_graph=True, gradient penalty, Hessian). Use {ctx.alternative} for that."
        )


def is_known_one(grad_loss: torch.Tensor) -> bool:
    """Whether a scalar loss's gradient is the 1 that ``loss.backward()`` starts with. On a GPU nobody knows without a wait."""
    return not grad_loss.is_cuda and grad_loss.item() == 1


def may_be_reused(saved: torch.Tensor) -> bool:
    """Whether a backward function that runs now may write its result over ``saved``, a tensor that only its graph keeps.

    Not where the graph is kept for another backward pass, and not while torch.compile traces, which finds memory itself.
    """
    return type(saved) is torch.Tensor and not _keeps_graph()


# What torch's own compiled functions ask before they write over saved tensors. Where a torch has it no more, memory is not reused.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def without_second(
    grad: torch.Tensor, value: torch.Tensor, op: str, alternative: str, *others: torch.Tensor | None
) -> torch.Tensor:
    """``grad``, a gradient of the op of ``value`` and ``others``; its own derivative in any of these raises."""
    return _Refused.apply(grad, op, alternative, value, *others) if torch.is_grad_enabled() else grad


def refuse_forward_mode(name: str, value: torch.Tensor | None, op: str, alternative: str) -> None:
    """Without this, the tangent of a dual tensor would be dropped in silence."""
    if value is not None and forward_ad.unpack_dual(value).tangent is not None:
        raise NotImplementedError(
            f"maspo_ext: torch.ops.maspo.{op} has no forward-mode derivative: expected {name} without a tangent, got a dual "
            f"tensor. Use reverse mode (loss.backward()), or {alternative}."
        )


# Whether a call is within torch.func's grad, vmap or the like; what torch's own autograd.Function asks.
is_transformed = torch._C._are_functorch_transforms_active


def needs_dispatcher() -> bool:
    """Whether a call has to go through its op, which torch.compile puts into a graph and torch.func transforms.

    Otherwise the op's kernel is called at once: the dispatcher's share of a small batch's time is large, and its errors for a
    value of the wrong type do not say what to do.
    """
    return torch.compiler.is_compiling() or is_transformed()


def refuse_transforms(op: str, alternative: str) -> None:
    """Before a gradient is asked for: torch.func's own error speaks of what a user cannot change."""
    if is_transformed():
        raise NotImplementedError(
            f"maspo_ext: torch.ops.maspo.{op} has no derivative by torch.func: expected a plain call, got one within grad, vjp, "
            f"jacrev or the like. Use loss.backward() or torch.autograd.grad, or {alternative}."
        )


def refuse_gradient_of_old(trained: str, old_log_prob: torch.Tensor | None) -> None:
    """Where nothing is trained but the old policy would be: two tensors of one shape that were swapped."""
    if torch.is_grad_enabled() and old_log_prob is not None and old_log_prob.requires_grad:
        raise ValueError(
            f"maspo_ext: old_log_prob: expected a tensor without gradient, since {trained} not require one, got one that requires grad. "
            "The policy that is trained comes first and the old one second (verl's own losses have it the other way round): swap "
            "them, or pass old_log_prob.detach()."
        )
