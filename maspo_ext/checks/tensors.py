"""Checks of the tensors of a call: type, layout, dtype, device and shape."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch

from maspo_ext._build_info import BUILD
from maspo_ext.checks.numbers import whole_number
from maspo_ext.errors import message

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MASK_DTYPES = FLOAT_DTYPES + (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


_DENSE = torch.strided  # by a name of ours, since every tensor is asked for it


def check_whole(name: str, value: Any, remedy: str) -> None:
    """Refuse a tensor that knows to be a part of another: its own shape says nothing."""
    if type(value).__name__ == "DTensor":
        raise TypeError(message(name, "a plain tensor", f"a DTensor with placements {value.placements}", remedy))


def check_tensor(
    name: str, value: Any, dtypes: tuple[torch.dtype, ...], device: torch.device | None, of: str = "log_prob"
) -> None:
    """Type, layout, dtype and, unless None, device, which is that of ``of``."""
    if not isinstance(value, torch.Tensor):
        remedy = "It is required: pass one." if value is None else "Convert it with torch.as_tensor."
        if isinstance(value, torch.nn.Module):
            remedy = "Pass its .weight, and its .bias as bias."
        raise TypeError(message(name, "a torch.Tensor", type(value).__name__, remedy))
    check_whole(name, value, f"Pass the rank's own part, {name}.to_local(), and the counts of all ranks; or {name}.full_tensor(), which gathers.")
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
        remedy = "The op cannot read it from cu_seqlens without waiting for the device."
        raise ValueError(message("max_seqlen", "the length of the longest sequence, since cu_seqlens is given", None, remedy))
    remedy = "It is the length of the longest sequence."
    if isinstance(max_seqlen, bool) or not isinstance(max_seqlen, (int, Integral, torch.SymInt)):  # int: the abstract class takes long
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
    if rollout_is_weights is entropy is ref_log_prob is cu_seqlens is max_seqlen is None and _are_usual(
        log_prob, old_log_prob, advantages, response_mask
    ):
        return
    check_tensor("log_prob", log_prob, FLOAT_DTYPES, None)
    check_device("log_prob", log_prob)
    if cu_seqlens is not None:
        check_cu_seqlens(log_prob, cu_seqlens, max_seqlen)
    elif max_seqlen is not None:
        remedy = "It belongs to packed tensors: pass cu_seqlens too."
        raise ValueError(message("max_seqlen", "None without cu_seqlens", max_seqlen, remedy))
    if log_prob.dim() != (2 if cu_seqlens is None else 1):
        raise _wrong_dimensions(log_prob, cu_seqlens is not None)
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


def _are_usual(log_prob: Any, old_log_prob: Any, advantages: Any, response_mask: Any) -> bool:
    """Whether these pass all checks since they are as in most calls, told by few operations: dense tensors of one shape [B, T]."""
    if not type(log_prob) is type(old_log_prob) is type(advantages) is type(response_mask) is torch.Tensor:
        return False
    if not log_prob.layout is old_log_prob.layout is advantages.layout is response_mask.layout is _DENSE:
        return False
    shape, device = log_prob.shape, log_prob.device
    return (
        len(shape) == 2
        and shape == old_log_prob.shape == advantages.shape == response_mask.shape
        and device == old_log_prob.device == advantages.device == response_mask.device
        and log_prob.dtype in FLOAT_DTYPES
        and old_log_prob.dtype in FLOAT_DTYPES
        and advantages.dtype in FLOAT_DTYPES
        and response_mask.dtype in _MASK_DTYPES
        and device.type in _DEVICES
    )


def _wrong_dimensions(log_prob: torch.Tensor, packed: bool) -> ValueError:
    expected, remedy = "shape [B, T]", "Pad the sequences to one width, add a batch dimension, or pass cu_seqlens."
    if packed:
        expected, remedy = "shape [total_tokens], since cu_seqlens is given", "Flatten it, or drop cu_seqlens."
    elif log_prob.dim() > 2:
        remedy = "One number per token: drop a last dimension of 1 (squeeze), or join the leading ones (flatten)."
    return ValueError(message("log_prob", expected, list(log_prob.shape), remedy))


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
        expected = f"shape {' or '.join(allowed)} with {sizes}"
        remedy = "All tensors cover the same response tokens: slice or expand it to match."
        raise ValueError(message(name, expected, list(value.shape), remedy))
