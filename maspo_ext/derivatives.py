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
