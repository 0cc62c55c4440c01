"""Checks of what a user passes to the loss, and the one form of all messages: what, expected, got and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import torch

from maspo_ext._build_info import BUILD

# verl's names of the KL estimates, two for some, that of k3 without verl's bounds, and the kernels' name of each.
KL_TYPES = {
    "k1": "k1",
    "kl": "k1",
    "abs": "abs",
    "k2": "k2",
    "mse": "k2",
    "k3": "k3",
    "low_var_kl": "k3",
    "k3_unbounded": "k3_unbounded",
}
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MASK_DTYPES = FLOAT_DTYPES + (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def message(what: str, expected: str, got: Any, remedy: str) -> str:
    """The text of every error: of what, what was expected and what came, and a sentence that says what to do."""
    return f"maspo_ext: {what}: expected {expected}, got {got}. {remedy}"


def closest(name: Any, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that a misspelt one resembles most, if there is one. torch.compile cannot trace how: there is none for it."""
    if torch.compiler.is_compiling():
        return None
    return next(iter(get_close_matches(str(name).lower(), list(names), n=1, cutoff=cutoff)), None)


def did_you_mean(name: Any, names: Iterable[str], otherwise: str) -> str:
    """A remedy for a misspelt name."""
    close = closest(name, names)
    return otherwise if close is None else f"Did you mean {close}?"


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


_SYMBOLIC = (torch.SymInt, torch.SymFloat)  # of torch.compile


def _is_number(value: Any) -> bool:
    """Whether it is a real number: Python's, NumPy's or a symbol for one, and no bool."""
    return isinstance(value, (Real, *_SYMBOLIC)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    """As a float, too, which is what the kernels take: a long int may be more than any."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    """A number as an error shows it."""
    too_long = isinstance(value, int) and value.bit_length() > 128
    return f"an int of {value.bit_length()} bits" if too_long else repr(value)


def check_number(
    name: str,
    value: Any,
    expected: str,
    test: Callable[[Any], bool],
    remedy: str,
    *,
    infinite: bool = False,
    kind: str = "a number, ",
) -> None:
    """That ``value`` is a number for which ``test`` holds, finite unless ``infinite`` allows inf.

    Args:
        name: of the argument, as the user knows it.
        expected: ``test`` in words, as ``"> 0"``.
        remedy: what to do, a sentence.
        kind: goes before ``expected`` where it is no number at all.

    Raises:
        TypeError: it is no real number.
        ValueError: it is one that fails the test, is NaN or, unless allowed, inf.
    """
    if not _is_number(value):
        raise TypeError(message(name, f"{kind}{expected}", f"{value!r} ({type(value).__name__})", remedy))
    if not isinstance(value, _SYMBOLIC) and not _is_finite(value) and not (infinite and value == math.inf):
        expected += " and finite" if not infinite else " (inf for no bound)"
    elif test(value):
        return
    raise ValueError(message(name, expected, _shown(value), remedy))


def check_positive(name: str, value: Any, remedy: str) -> None:
    """Raise as :func:`check_number` unless ``value > 0``."""
    check_number(name, value, "> 0", lambda v: v > 0, remedy)


def check_non_negative(name: str, value: Any, remedy: str) -> None:
    """Raise as :func:`check_number` unless ``value >= 0``."""
    check_number(name, value, ">= 0", lambda v: v >= 0, remedy)


def check_above(name: str, value: Any, bound: float, remedy: str, *, infinite: bool = False) -> None:
    """Raise as :func:`check_number` unless ``value > bound``."""
    check_number(name, value, f"> {bound!r}", lambda v: v > bound, remedy, infinite=infinite)


def _bound(name: str, bound: float) -> str:
    return f"{name} = {bound!r}" if name else repr(bound)


def check_at_least(
    name: str, value: Any, bound_name: str, bound: float, remedy: str, *, infinite: bool = False
) -> None:
    """Raise as :func:`check_number` unless ``value >= bound``, which is called ``bound_name`` unless that is empty."""
    check_number(name, value, f">= {_bound(bound_name, bound)}", lambda v: v >= bound, remedy, infinite=infinite)


def check_at_most(name: str, value: Any, bound_name: str, bound: float, remedy: str) -> None:
    """Raise as :func:`check_number` unless ``value <= bound``, which is called ``bound_name`` unless that is empty."""
    check_number(name, value, f"<= {_bound(bound_name, bound)}", lambda v: v <= bound, remedy)


# Counts become float64, which holds every whole number up to here.
LARGEST_COUNT = 2**53


def whole_number(name: str, value: Any, least: int, remedy: str) -> int:
    """A count as an int, from what may be a float, as of ``mask.sum().item()`` for a float mask.

    Raises:
        TypeError: it is no number.
        ValueError: it is not whole, below ``least``, or so large that it counts nothing.
    """
    expected, symbolic = f"a whole number >= {least}", isinstance(value, torch.SymInt)
    check_number(name, value, expected, lambda v: v >= least and (symbolic or v == int(v)), remedy, kind="")
    if symbolic:
        return value
    if value > LARGEST_COUNT:
        raise ValueError(message(name, f"{expected} and <= 2**53", _shown(value), remedy))
    return int(value)


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
                did_you_mean(loss_agg_mode, LOSS_AGG_MODES, "Choose one of verl's five modes."),
            )
        )


# The count that a mode divides by, besides those of this call's mask.
_COUNT_OF_MODE = {
    "token-mean": "batch_num_tokens",
    "token-sum": None,
    "seq-mean-token-sum": "global_batch_size",
    "seq-mean-token-mean": "global_batch_size",
    "seq-mean-token-sum-norm": "global_batch_size",
}
LOSS_AGG_MODES = tuple(_COUNT_OF_MODE)


def aggregation_keywords(
    loss_agg_mode: str,
    dp_size: int,
    batch_num_tokens: int | None,
    global_batch_size: int | None,
    loss_scale_factor: float | None,
) -> dict[str, Any]:
    """The aggregation mode and the counts that it divides by, without those that are None."""
    check_agg_mode(loss_agg_mode)
    of_ranks = "It is the number of data-parallel ranks whose gradients are averaged."
    keywords = {"loss_agg_mode": loss_agg_mode, "dp_size": whole_number("dp_size", dp_size, 1, of_ranks)}
    counts = {"batch_num_tokens": batch_num_tokens, "global_batch_size": global_batch_size}
    for name, count in counts.items():
        if count is not None:
            of_count = "It is a count over all data-parallel ranks and micro-batches; None counts locally."
            keywords[name] = whole_number(name, count, 0, of_count)
    if loss_scale_factor is not None:
        remedy = "It divides the sequence sums; None takes the padded width T."
        check_positive("loss_scale_factor", loss_scale_factor, remedy)
        keywords["loss_scale_factor"] = loss_scale_factor
    needed = _COUNT_OF_MODE[loss_agg_mode]
    if needed is None or counts[needed] is not None:
        return keywords
    if dp_size > 1:
        raise ValueError(
            message(
                needed,
                f"the count over all {dp_size} data-parallel ranks, since dp_size > 1 and loss_agg_mode is {loss_agg_mode!r}",
                None,
                "Sum the local counts over the ranks (all_reduce) and pass the result: the op runs no collective of its own.",
            )
        )
    for name, count in counts.items():
        if count is not None:
            raise ValueError(
                message(
                    needed,
                    f"the count of the global batch, since {name} is given and loss_agg_mode={loss_agg_mode!r} does not divide by that",
                    None,
                    f"Pass {needed}, or neither for a batch that is not split.",
                )
            )
    return keywords


_DENSE = torch.strided  # by a name of ours, since every tensor is asked for it


def check_tensor(
    name: str, value: Any, dtypes: tuple[torch.dtype, ...], device: torch.device | None, of: str = "log_prob"
) -> None:
    """Type, layout, dtype and, unless None, device, which is that of ``of``."""
    if not isinstance(value, torch.Tensor):
        remedy = "It is required: pass one." if value is None else "Convert it with torch.as_tensor."
        if isinstance(value, torch.nn.Module):
            remedy = "Pass its .weight, and its .bias as bias."
        raise TypeError(message(name, "a torch.Tensor", type(value).__name__, remedy))
    if value.layout is not _DENSE:
        packed = f"Pass its .values(), {name}.offsets() as cu_seqlens, and max_seqlen."
        remedy = packed if value.is_nested else f"Convert it: {name}.to_dense()."
        raise TypeError(message(name, "a dense tensor (layout torch.strided)", value.layout, remedy))
    if value.dtype not in dtypes:
        raise TypeError(
            message(name, f"dtype in {_names(dtypes)}", value.dtype, f"Cast it: {name}.to({dtypes[0]}).")
        )
    if device is not None and value.device != device:
        raise ValueError(
            message(name, f"device {device} (that of {of})", value.device, f"Move it: {name}.to({of}.device).")
        )


_DEVICES = ("cpu", "cuda", "meta") if BUILD["cuda"] else ("cpu", "meta")


def check_device(name: str, value: torch.Tensor) -> None:
    """Whether this build has kernels for the tensor's device."""
    if value.device.type in _DEVICES:
        return
    if value.is_cuda:
        expected = "a CPU tensor, since maspo_ext was built without CUDA kernels"
        remedy = f"Build it again where nvcc is: MASPO_CUDA=1 pip install --force-reinstall --no-deps . (python -m maspo_ext shows what was built), or {name}.cpu()."
    else:
        expected, remedy = "a cpu or cuda device", "Move the inputs there."
    raise ValueError(message(name, expected, value.device, remedy))


def check_cu_seqlens(log_prob: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int | None) -> None:
    """Type, dtype, device and shape of ``cu_seqlens``; its values are checked by the op on a CPU."""
    check_tensor("cu_seqlens", cu_seqlens, (torch.int64, torch.int32), log_prob.device)
    running_sum = "Pass the running sum of the sequence lengths, with a 0 before it."
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(message("cu_seqlens", "shape [B + 1]", list(cu_seqlens.shape), running_sum))
    if cu_seqlens.shape[0] == 1 and log_prob.numel() > 0:
        raise ValueError(message("cu_seqlens", f"shape [B + 1], B > 0 for {log_prob.numel()} tokens", [1], running_sum))
    if max_seqlen is None:
        raise ValueError(
            message("max_seqlen", "the length of the longest sequence, since cu_seqlens is given", None,
                     "The op cannot read it from cu_seqlens without waiting for the device.")
        )  # fmt: skip
    if type(max_seqlen) is int and 0 <= max_seqlen <= LARGEST_COUNT:
        return  # at once: every packed call comes by here
    remedy = "It is the length of the longest sequence."
    if not isinstance(max_seqlen, (Integral, torch.SymInt)) or isinstance(max_seqlen, bool):
        raise TypeError(message("max_seqlen", "an int", f"{max_seqlen!r} ({type(max_seqlen).__name__})", remedy))
    whole_number("max_seqlen", max_seqlen, 0, remedy)


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
    check_device("log_prob", log_prob)
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
                "Pad the sequences to one width, add a batch dimension, or pass cu_seqlens."
                if log_prob.dim() < 2
                else "One number per token: drop a last dimension of 1 (squeeze), or join the leading ones (flatten).",
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
    if not isinstance(kl_type, str) or kl_type.removesuffix("+") not in KL_TYPES:
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


def parse_threshold(
    threshold: float | tuple[float, float] | str | None, has_weights: bool
) -> tuple[float | None, float | None]:
    """``(lower, upper)`` of ``rollout_is_threshold``, as a number, a pair, or verl's ``"lower_upper"``.

    Args:
        has_weights: whether the call has the ``rollout_is_weights`` that it bounds.

    Raises:
        TypeError, ValueError: it is none of these, or bounds nothing.
    """
    if threshold is None:
        return None, None
    what = "rollout_is_threshold"
    remedy = "One number truncates (TIS), two mask what lies outside (IcePop)."
    expected = 'a number, a pair (lower, upper), or "lower_upper"'
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
    if len(parts) == 2:
        check_at_least(what, parts[1], "its lower bound", parts[0], remedy)
    if not has_weights:
        expected = f"a tensor, since {what} = {threshold!r}"
        raise ValueError(message("rollout_is_weights", expected, None, "Pass the weights that it bounds."))
    return (None, parts[0]) if len(parts) == 1 else (parts[0], parts[1])
