"""Every check of what a user passes, each with a message that says what, expected, got and remedy."""

from __future__ import annotations

import math
from typing import Any

import torch

LOSS_AGG_MODES = (
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MASK_DTYPES = FLOAT_DTYPES + (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _message(what: str, expected: str, got: Any, remedy: str) -> str:
    return f"maspo_ext: {what}: expected {expected}, got {got}. {remedy}"


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_number(name: str, value: Any, expected: str, ok: bool, remedy: str) -> None:
    """Raise TypeError if ``value`` is no finite real number, ValueError if it is one and not ``ok``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(_message(name, f"a number, {expected}", f"{value!r} ({type(value).__name__})", remedy))
    if isinstance(value, float) and not math.isfinite(value):
        expected += " and finite"
        ok = False
    if not ok:
        raise ValueError(_message(name, expected, repr(value), remedy))


def _compare(value: Any, test: Any) -> bool:
    """``test(value)``, or True where value is no number: check_number then reports the type."""
    return test(value) if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) else True


def check_positive(name: str, value: Any, remedy: str) -> None:
    check_number(name, value, "> 0", _compare(value, lambda v: v > 0), remedy)


def check_non_negative(name: str, value: Any, remedy: str) -> None:
    check_number(name, value, ">= 0", _compare(value, lambda v: v >= 0), remedy)


def check_at_least(name: str, value: Any, bound_name: str, bound: float, remedy: str) -> None:
    check_number(name, value, f">= {bound_name} = {bound!r}", _compare(value, lambda v: v >= bound), remedy)


def check_maspo_hyper(
    sigma_base: float, alpha: float, sigma_high: float, adv_low: float, adv_high: float, beta_pos: float, beta_neg: float
) -> None:
    """Ranges of MASPO's hyper-parameters.

    Raises:
        TypeError, ValueError: the message names the argument.
    """
    check_positive("sigma_base", sigma_base, "It is the gate's narrowest standard deviation; the published value is 1.0.")
    check_non_negative("alpha", alpha, "It is the exponent of the token's probability; published: 0.3 (>= 7B), 0.5 (1.5B).")
    check_at_least("sigma_high", sigma_high, "sigma_base", sigma_base, "It bounds the width from above; published: 10.0.")
    check_positive("adv_low", adv_low, "It bounds the advantage's factor of the width from below; published: 0.1.")
    check_at_least("adv_high", adv_high, "adv_low", adv_low, "It bounds the advantage's factor from above; published: 10.0.")
    check_non_negative("beta_pos", beta_pos, "It widens the gate with positive advantages; published: 0.03.")
    check_non_negative("beta_neg", beta_neg, "It narrows the gate with negative advantages; published: 0.03.")


def check_clip_ratios(clip_ratio_low: float, clip_ratio_high: float, clip_ratio_c: float) -> None:
    """Ranges of the PPO clip whose statistics are reported."""
    check_non_negative("clip_ratio_low", clip_ratio_low, "verl's default is 0.2.")
    check_non_negative("clip_ratio_high", clip_ratio_high, "verl's default is 0.2.")
    check_number(
        "clip_ratio_c", clip_ratio_c, "> 1", _compare(clip_ratio_c, lambda v: v > 1), "It is the dual clip's bound; verl's default is 3.0."
    )


def check_agg_mode(loss_agg_mode: str) -> None:
    """The name of the aggregation mode."""
    if loss_agg_mode not in LOSS_AGG_MODES:
        raise ValueError(
            _message("loss_agg_mode", f"one of {', '.join(LOSS_AGG_MODES)}", repr(loss_agg_mode), "Choose one of verl's five modes.")
        )


def check_aggregation(
    loss_agg_mode: str,
    dp_size: int,
    batch_num_tokens: int | None,
    global_batch_size: int | None,
    loss_scale_factor: float | None,
) -> None:
    """The aggregation mode and the counts it divides by."""
    check_agg_mode(loss_agg_mode)
    check_positive("dp_size", dp_size, "It is the number of data-parallel ranks whose gradients are averaged.")
    for name, count in (("batch_num_tokens", batch_num_tokens), ("global_batch_size", global_batch_size)):
        if count is not None:
            check_non_negative(name, count, "It is a count over all data-parallel ranks and micro-batches; None counts locally.")
    if loss_scale_factor is not None:
        check_positive("loss_scale_factor", loss_scale_factor, "It divides the sequence sums; None takes the padded width T.")
    needed = {"token-mean": ("batch_num_tokens", batch_num_tokens), "token-sum": ("", 0)}.get(
        loss_agg_mode, ("global_batch_size", global_batch_size)
    )
    if dp_size > 1 and needed[1] is None:
        raise ValueError(
            _message(
                needed[0],
                f"the count over all {dp_size} data-parallel ranks, since dp_size > 1 and loss_agg_mode is {loss_agg_mode!r}",
                None,
                "Sum the local counts over the ranks (all_reduce) and pass the result: the op runs no collective of its own.",
            )
        )


def _check_tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...], device: torch.device | None) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(_message(name, "a torch.Tensor", type(value).__name__, "Convert it with torch.as_tensor."))
    if value.dtype not in dtypes:
        raise TypeError(_message(name, f"dtype in {_names(dtypes)}", value.dtype, f"Cast it: {name}.to({_names(dtypes[:1])})."))
    if device is not None and value.device != device:
        raise ValueError(_message(name, f"device {device} (that of log_prob)", value.device, f"Move it: {name}.to(log_prob.device)."))


def _check_shape(name: str, value: torch.Tensor, allowed: dict[str, tuple[int, ...]], shape: tuple[int, int]) -> None:
    if tuple(value.shape) not in allowed.values():
        raise ValueError(
            _message(
                name,
                f"shape {' or '.join(allowed)} with [B, T] = {list(shape)} (that of log_prob)",
                list(value.shape),
                "All tensors cover the same response tokens: slice or expand it to match.",
            )
        )


def check_tensors(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    rollout_is_weights: torch.Tensor | None,
) -> None:
    """Types, dtypes, devices and shapes of the tensor arguments."""
    _check_tensor("log_prob", log_prob, FLOAT_DTYPES, None)
    if log_prob.dim() != 2:
        raise ValueError(
            _message("log_prob", "shape [B, T]", list(log_prob.shape), "Pad the sequences to one width, or add a batch dimension.")
        )
    if log_prob.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(_message("log_prob", "a cpu or cuda device", log_prob.device, "Move the inputs there."))
    rows, cols = log_prob.shape
    full = {"[B, T]": (rows, cols)}
    per_row = {"[B, T]": (rows, cols), "[B, 1]": (rows, 1), "[B]": (rows,)}
    tensors = [
        ("old_log_prob", old_log_prob, FLOAT_DTYPES, full),
        ("advantages", advantages, FLOAT_DTYPES, per_row),
        ("response_mask", response_mask, _MASK_DTYPES, full),
    ]
    if rollout_is_weights is not None:
        tensors.append(("rollout_is_weights", rollout_is_weights, FLOAT_DTYPES, per_row))
    for name, value, dtypes, allowed in tensors:
        _check_tensor(name, value, dtypes, log_prob.device)
        _check_shape(name, value, allowed, (rows, cols))
