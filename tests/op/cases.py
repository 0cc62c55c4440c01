"""Random batches, and one way to run any implementation on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import maspo_ext

op = torch.ops.maspo.loss
reference = maspo_ext.reference.maspo_loss

AGG_MODES = maspo_ext.checks.LOSS_AGG_MODES
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MASK_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64) + FLOAT_DTYPES
TENSORS = ("log_prob", "old_log_prob", "advantages", "response_mask", "rollout_is_weights")
# Global counts as a trainer with two data-parallel ranks would give; larger than any batch here, so that they matter.
GLOBAL_COUNTS = {"dp_size": 2, "batch_num_tokens": 977, "global_batch_size": 31}


class Result(NamedTuple):
    loss: torch.Tensor
    grad: torch.Tensor
    stats: torch.Tensor


def random_batch(
    rows: int, cols: int, dtype=torch.float64, device="cpu", mask_dtype=torch.bool, weights=True, seed=0, spread=0.5
):
    """All tensor arguments by name. The mask has holes, and an empty first row where there is another.

    Drawn in float64 from one seed, then cast, so that batches of different dtype or device hold the same numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(rows, cols, generator=generator, dtype=torch.float64)

    old = -3 * normal().abs()
    batch = {"log_prob": old + spread * normal(), "old_log_prob": old, "advantages": 2 * normal()}
    batch["advantages"][normal() > 1.5] = 0.0
    mask = normal() > -0.7
    if rows > 1:
        mask[0] = False
    is_weights = (0.3 * normal()).exp()
    batch = {name: value.to(dtype).to(device) for name, value in batch.items()}
    batch["response_mask"] = mask.to(mask_dtype).to(device)
    if weights:
        batch["rollout_is_weights"] = is_weights.to(dtype).to(device)
    return batch


def run(batch: dict[str, Any], function=op, upstream: float = 1.0, **keywords: Any) -> Result:
    """Loss, gradient and statistics of ``function`` (the op or its reference)."""
    log_prob = batch["log_prob"].detach().requires_grad_()
    loss, stats = function(**{**batch, "log_prob": log_prob}, **keywords)
    (grad,) = torch.autograd.grad(loss, log_prob, torch.full_like(loss, upstream))
    return Result(loss.detach(), grad, stats)


def run_unvalidated(batch: dict[str, Any], **keywords: Any) -> Result:
    """The compiled forward and backward below the validation of hyper-parameters."""
    loss, stats, dlogp, row_scale = torch.ops.maspo.loss_forward(**batch, **keywords)
    grad = torch.ops.maspo.loss_backward(torch.ones_like(loss), dlogp, row_scale, batch["log_prob"].dtype)
    return Result(loss, grad, stats)


def converted(batch: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The same values with every tensor but the mask in ``dtype``."""
    return {name: value if name == "response_mask" else value.to(dtype) for name, value in batch.items()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bit patterns, so that NaN equals NaN and 0 differs from -0."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])


def assert_same_bits(actual: Result, expected: Result) -> None:
    for name, a, e in zip(Result._fields, actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape, name
        assert torch.equal(bits(a), bits(e)), f"{name}: {a} is not bit for bit {e}"


def assert_close(actual: Result, expected: Result, rtol: float) -> None:
    """Values within ``rtol`` of the largest of each tensor, statistics each within ``rtol``."""
    for name, a, e in zip(Result._fields, actual, expected, strict=True):
        assert a.shape == e.shape, name
        e = e.to(torch.float64)
        scale = 0.0 if name == "stats" or e.numel() == 0 else float(e.abs().max())
        torch.testing.assert_close(
            a.to(torch.float64), e, rtol=rtol, atol=rtol * scale + 1e-300, msg=lambda m, n=name: f"{n}: {m}"
        )
