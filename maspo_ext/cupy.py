"""The policy loss of CuPy arrays: in and out without a copy, on CuPy's current stream. ``pip install '.[cupy]'`` in a checkout.

CuPy has no autograd: the gradient comes with the loss, for a backward pass of the caller's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from maspo_ext.functional import policy_loss as torch_policy_loss
from maspo_ext.stats import PolicyLossStats

try:
    import cupy
except ImportError as error:
    raise ImportError(
        f"maspo_ext.cupy: CuPy: expected to be installed, got {error}. Install it for the CUDA of this machine: "
        "pip install cupy-cuda13x (CUDA 12: cupy-cuda12x)."
    ) from error


class CupyPolicyLossOutput(NamedTuple):
    """What :func:`policy_loss` returns.

    Attributes:
        loss: scalar, float32 or float64.
        grad: ``d loss / d log_prob``, shape and dtype of ``log_prob``.
        stats: named statistics, still on the device.
    """

    loss: Any
    grad: Any
    stats: PolicyLossStats


def policy_loss(
    log_prob: Any, old_log_prob: Any, advantages: Any, response_mask: Any, **keywords: Any
) -> CupyPolicyLossOutput:
    """:func:`maspo_ext.policy_loss` of ``cupy.ndarray`` arguments, with the gradient.

    Args:
        log_prob, old_log_prob, advantages, response_mask: as there; ``cupy.ndarray`` of one device. No bfloat16, which CuPy lacks.
        **keywords: as there; arrays among them are ``cupy.ndarray``, too.

    Returns:
        ``CupyPolicyLossOutput(loss, grad, stats)``. Everything is queued on CuPy's current stream of ``log_prob``'s device, and
        nothing waits for it.

    Raises:
        TypeError: an array that is not CuPy's; otherwise as :func:`maspo_ext.policy_loss`.
    """
    arrays = {
        "log_prob": log_prob,
        "old_log_prob": old_log_prob,
        "advantages": advantages,
        "response_mask": response_mask,
    }
    for name, value in arrays.items():
        _check_array(name, value)
    with cupy.cuda.Device(log_prob.device.id):
        stream = cupy.cuda.get_current_stream()
        with torch.cuda.device(log_prob.device.id), torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
            tensors = {name: _tensor(name, value) for name, value in (arrays | keywords).items()}
            tensors["log_prob"].requires_grad_()
            loss, stats = torch_policy_loss(**tensors)
            (grad,) = torch.autograd.grad(loss, tensors["log_prob"])
            return CupyPolicyLossOutput(cupy.from_dlpack(loss.detach()), cupy.from_dlpack(grad), stats)


def _check_array(name: str, value: Any) -> None:
    if not isinstance(value, cupy.ndarray):
        raise TypeError(
            f"maspo_ext.cupy: {name}: expected a cupy.ndarray, got {type(value).__name__}. Convert it with cupy.asarray, or call "
            "maspo_ext.policy_loss for torch tensors."
        )


def _tensor(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        _check_array(name, value)
    return torch.from_dlpack(value) if isinstance(value, cupy.ndarray) else value
