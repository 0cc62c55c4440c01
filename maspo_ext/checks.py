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
# verl's names of the KL estimates, two for some, and the kernels' name of each.
KL_TYPES = {"k1": "k1", "kl": "k1", "abs": "abs", "k2": "k2", "mse": "k2", "k3": "k3", "low_var_kl": "k3"}
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MASK_DTYPES = FLOAT_DTYPES + (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def message(what: str, expected: str, got: Any, remedy: str) -> str:
    return f"maspo_ext: {what}: expected {expected}, got {got}. {remedy}"


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_number(name: str, value: Any, expected: str, ok: bool, remedy: str) -> None:
    """Raise TypeError if ``value`` is no finite real number, ValueError if it is one and not ``ok``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(message(name, f"a number, {expected}", f"{value!r} ({type(value).__name__})", remedy))
    if isinstance(value, float) and not math.isfinite(value):
        expected += " and finite"
        ok = False
    if not ok:
        raise ValueError(message(name, expected, repr(value), remedy))


def _compare(value: Any, test: Any) -> bool:
    """``test(value)``, or True where value is no number: check_number then reports the type."""
    return test(value) if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) else True


def check_positive(name: str, value: Any, remedy: str) -> None:
    check_number(name, value, "> 0", _compare(value, lambda v: v > 0), remedy)


def check_non_negative(name: str, value: Any, remedy: str) -> None:
    check_number(name, value, ">= 0", _compare(value, lambda v: v >= 0), remedy)


def check_above(name: str, value: Any, bound: float, remedy: str) -> None:
    check_number(name, value, f"> {bound!r}", _compare(value, lambda v: v > bound), remedy)


def _bound(name: str, bound: float) -> str:
    return f"{name} = {bound!r}" if name else repr(bound)


def check_at_least(name: str, value: Any, bound_name: str, bound: float, remedy: str) -> None:
    check_number(name, value, f">= {_bound(bound_name, bound)}", _compare(value, lambda v: v >= bound), remedy)


def check_at_most(name: str, value: Any, bound_name: str, bound: float, remedy: str) -> None:
    check_number(name, value, f"<= {_bound(bound_name, bound)}", _compare(value, lambda v: v <= bound), remedy)


def check_bool(name: str, value: Any, remedy: str) -> None:
    """Raise TypeError if ``value`` is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(message(name, "True or False", repr(value), remedy))


def check_agg_mode(loss_agg_mode: str) -> None:
    """The name of the aggregation mode."""
    if loss_agg_mode not in LOSS_AGG_MODES:
        raise ValueError(
            message(
                "loss_agg_mode",
                f"one of {', '.join(LOSS_AGG_MODES)}",
                repr(loss_agg_mode),
                "Choose one of verl's five modes.",
            )
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
            check_non_negative(
                name, count, "It is a count over all data-parallel ranks and micro-batches; None counts locally."
            )
    if loss_scale_factor is not None:
        check_positive(
            "loss_scale_factor", loss_scale_factor, "It divides the sequence sums; None takes the padded width T."
        )
    needed = {"token-mean": ("batch_num_tokens", batch_num_tokens), "token-sum": ("", 0)}.get(
        loss_agg_mode, ("global_batch_size", global_batch_size)
    )
    if dp_size > 1 and needed[1] is None:
        raise ValueError(
            message(
                needed[0],
                f"the count over all {dp_size} data-parallel ranks, since dp_size > 1 and loss_agg_mode is {loss_agg_mode!r}",
                None,
                "Sum the local counts over the ranks (all_reduce) and pass the result: the op runs no collective of its own.",
            )
        )


def check_tensor(
    name: str, value: Any, dtypes: tuple[torch.dtype, ...], device: torch.device | None, of: str = "log_prob"
) -> None:
    """Type, dtype and, unless None, device, which is that of ``of``."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(message(name, "a torch.Tensor", type(value).__name__, "Convert it with torch.as_tensor."))
    if value.dtype not in dtypes:
        raise TypeError(
            message(name, f"dtype in {_names(dtypes)}", value.dtype, f"Cast it: {name}.to({_names(dtypes[:1])}).")
        )
    if device is not None and value.device != device:
        raise ValueError(
            message(name, f"device {device} (that of {of})", value.device, f"Move it: {name}.to({of}.device).")
        )


def check_cu_seqlens(log_prob: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int | None) -> None:
    """Type, dtype, device and shape of ``cu_seqlens``; its values are checked by the op on a CPU."""
    check_tensor("cu_seqlens", cu_seqlens, (torch.int64, torch.int32), log_prob.device)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(
            message(
                "cu_seqlens",
                "shape [B + 1]",
                list(cu_seqlens.shape),
                "Pass the running sum of the sequence lengths, with a 0 before it.",
            )
        )
    if max_seqlen is None:
        raise ValueError(
            message("max_seqlen", "the length of the longest sequence, since cu_seqlens is given", None,
                     "The op cannot read it from cu_seqlens without waiting for the device.")
        )  # fmt: skip
    check_non_negative("max_seqlen", max_seqlen, "It is the length of the longest sequence.")


_REQUIRED = frozenset(("old_log_prob", "advantages", "response_mask"))
_PER_SEQUENCE = frozenset(("advantages", "rollout_is_weights"))


def check_tensors(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    rollout_is_weights: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    ref_log_prob: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
    of: str = "log_prob",
) -> None:
    """Types, dtypes, devices and shapes of the tensor arguments; ``of``: what the user knows ``log_prob`` by."""
    check_tensor("log_prob", log_prob, FLOAT_DTYPES, None)
    if log_prob.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(message("log_prob", "a cpu or cuda device", log_prob.device, "Move the inputs there."))
    if cu_seqlens is not None:
        check_cu_seqlens(log_prob, cu_seqlens, max_seqlen)
    elif max_seqlen is not None:
        raise ValueError(
            message(
                "max_seqlen",
                "None without cu_seqlens",
                max_seqlen,
                "It belongs to packed tensors: pass cu_seqlens too.",
            )
        )
    if log_prob.dim() != (2 if cu_seqlens is None else 1):
        raise ValueError(
            message(
                "log_prob",
                "shape [B, T]",
                list(log_prob.shape),
                "Pad the sequences to one width, add a batch dimension, or pass cu_seqlens.",
            )
            if cu_seqlens is None
            else message(
                "log_prob",
                "shape [total_tokens], since cu_seqlens is given",
                list(log_prob.shape),
                "Flatten it, or drop cu_seqlens.",
            )
        )
    shape, device = log_prob.shape, log_prob.device
    for name, value, dtypes in (
        ("old_log_prob", old_log_prob, FLOAT_DTYPES),
        ("advantages", advantages, FLOAT_DTYPES),
        ("response_mask", response_mask, _MASK_DTYPES),
        ("rollout_is_weights", rollout_is_weights, FLOAT_DTYPES),
        ("entropy", entropy, FLOAT_DTYPES),
        ("ref_log_prob", ref_log_prob, FLOAT_DTYPES),
    ):
        if value is not None or name in _REQUIRED:
            check_tensor(name, value, dtypes, device, of)
            if value.shape != shape:
                _check_other_shape(name, value, tuple(shape), cu_seqlens, of)


def _check_other_shape(
    name: str, value: torch.Tensor, shape: tuple[int, ...], cu_seqlens: torch.Tensor | None, of: str
) -> None:
    """A shape that is not that of the tokens: some tensors may have one value per sequence."""
    if cu_seqlens is None:
        sizes = f"[B, T] = {list(shape)} (that of {of})"
        allowed, per_sequence = {"[B, T]": shape}, {"[B, 1]": (shape[0], 1), "[B]": (shape[0],)}
    else:
        # Not [B]: where every sequence had one token it would be the shape of [total_tokens] too.
        rows = cu_seqlens.shape[0] - 1
        sizes = f"[total_tokens] = {list(shape)} (that of {of}) and B = {rows} (from cu_seqlens)"
        allowed, per_sequence = {"[total_tokens]": shape}, {"[B, 1]": (rows, 1)}
    if name in _PER_SEQUENCE:
        allowed |= per_sequence
    if tuple(value.shape) not in allowed.values():
        raise ValueError(
            message(
                name,
                f"shape {' or '.join(allowed)} with {sizes}",
                list(value.shape),
                "All tensors cover the same response tokens: slice or expand it to match.",
            )
        )


def check_options(
    has_ref: bool,
    kl_type: str,
    kl_coef: float,
    rollout_is_lower: float | None,
    rollout_is_upper: float | None,
    has_weights: bool,
) -> None:
    """The KL term and the bounds of the rollout's importance weights."""
    if kl_type.removesuffix("+") not in KL_TYPES:
        raise ValueError(
            message(
                "kl_type",
                f"one of {', '.join(KL_TYPES)}, or one of them with a trailing + (straight-through)",
                repr(kl_type),
                "Choose one of these.",
            )
        )
    check_non_negative("kl_coef", kl_coef, "It weighs the KL term; verl's default is 0.001.")
    if kl_coef != 0 and not has_ref:
        raise ValueError(
            message(
                "ref_log_prob",
                f"a tensor, since kl_coef = {kl_coef!r}",
                None,
                "Pass the reference's log-probabilities, or kl_coef=0.",
            )
        )
    for name, bound in (("rollout_is_lower", rollout_is_lower), ("rollout_is_upper", rollout_is_upper)):
        if bound is not None:
            check_non_negative(name, bound, "It bounds the importance weights of the rollout.")
            if not has_weights:
                raise ValueError(
                    message(
                        "rollout_is_weights",
                        f"a tensor, since {name} = {bound!r}",
                        None,
                        "Pass the weights that it bounds.",
                    )
                )
    if rollout_is_lower is not None:
        if rollout_is_upper is None:
            raise ValueError(
                message(
                    "rollout_is_upper",
                    "a number, since rollout_is_lower is given",
                    None,
                    "Weights outside both are masked (IcePop).",
                )
            )
        check_at_least(
            "rollout_is_upper",
            rollout_is_upper,
            "rollout_is_lower",
            rollout_is_lower,
            "Weights outside both are masked (IcePop).",
        )


def parse_threshold(threshold: float | tuple[float, float] | str | None) -> tuple[float | None, float | None]:
    """``(lower, upper)`` of ``rollout_is_threshold``, as a number, a pair, or verl's ``"lower_upper"``."""
    what = "rollout_is_threshold"
    remedy = "One number truncates (TIS), two mask what lies outside (IcePop)."
    expected = 'a number, a pair (lower, upper), or "lower_upper"'
    if threshold is None:
        return None, None
    parts = threshold
    if isinstance(threshold, str):
        try:
            parts = tuple(float(part) for part in threshold.split("_"))
        except ValueError:
            raise ValueError(message(what, expected, repr(threshold), remedy)) from None
    if not isinstance(parts, (tuple, list)):
        parts = (parts,)
    if len(parts) not in (1, 2):
        raise ValueError(message(what, expected, repr(threshold), remedy))
    for part in parts:
        check_positive(what, part, remedy)
    if len(parts) == 1:
        return None, parts[0]
    check_at_least(what, parts[1], "its lower bound", parts[0], remedy)
    return parts[0], parts[1]
