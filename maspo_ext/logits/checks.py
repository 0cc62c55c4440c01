"""Checks of logits, targets, hidden states and heads."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch

from maspo_ext.checks.numbers import check_non_negative, check_positive, whole_number
from maspo_ext.checks.tensors import FLOAT_DTYPES, check_device, check_tensor, check_whole
from maspo_ext.errors import message

_TARGET_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
_GATHER = (
    "FSDP2: call this inside the forward of the module that owns it, where its parameters are whole. Tensor-parallel vocabulary: "
    "maspo_ext.vocab_parallel_linear_logprob with .to_local(). Else .full_tensor(), which gathers."
)
_OVER_ROWS = "Targets are the words of the response, one per row: shift them against the logits, and do not flatten one only."


def check_temperature(temperature: Any) -> None:
    remedy = "It divides the logits; 1.0 leaves them as they are."
    check_positive("temperature", temperature, remedy)
    if not 1e-30 <= temperature <= 1e30:  # where its inverse is no float32, every result would be NaN
        raise ValueError(message("temperature", "1e-30 to 1e30", repr(temperature), remedy))


def check_entropy_coef(entropy_coef: Any) -> None:
    check_non_negative("entropy_coef", entropy_coef, "It weighs the entropy bonus; 0 is none.")


def memory_budget_of(memory_budget: Any) -> int | None:
    """The budget of a call, checked, in bytes."""
    if memory_budget is None:
        return None
    return whole_number("memory_budget", memory_budget, 1, "It is in bytes; None takes the default of the device.")


def ignore_index_of(ignore_index: Any) -> int:
    """That of a call, checked."""
    remedy = "-100 is the default; no word is ignored where no target has it."
    if not isinstance(ignore_index, Integral) or isinstance(ignore_index, bool):
        raise TypeError(message("ignore_index", "an int", repr(ignore_index), remedy))
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(message("ignore_index", "an int of 64 bits, as targets are", ignore_index, remedy))
    return int(ignore_index)


def check_target(target: torch.Tensor, rows: torch.Size, device: torch.device, of: str) -> None:
    """Type, dtype, device and shape; what its numbers are is seen by the kernels."""
    check_tensor("target", target, _TARGET_DTYPES, device, of)
    if target.shape != rows:
        raise ValueError(
            message("target", f"shape {list(rows)} (that of {of} without its last)", list(target.shape), _OVER_ROWS)
        )


# The target of a masked token: no word, and nothing that a user would pass.
MASKED = -(2**62)


def is_outside(target: torch.Tensor, words: int) -> torch.Tensor:
    """Where the target is no word of the vocabulary."""
    return (target < 0) | (target >= words)


def check_target_range(target: torch.Tensor, words: int, ignore_index: int) -> None:
    """On a CPU, where a look costs no wait, the words themselves."""
    if target.is_cuda:
        return
    invalid = is_outside(target, words) & (target != ignore_index)
    if invalid.any():
        otherwise = "at every unmasked token" if ignore_index == MASKED else f"or ignore_index = {ignore_index}"
        position = invalid.nonzero()[0].tolist()
        raise RuntimeError(
            message(
                "target",
                f"0 to {words - 1} (the vocabulary has {words} words) {otherwise}",
                f"{target[tuple(position)]} at {position}",
                "Check the tokenizer against the model, or mask padding.",
            )
        )


def check_logits(logits: torch.Tensor, target: torch.Tensor, temperature: Any) -> None:
    """The arguments of ``maspo::logprob``."""
    check_whole("logits", logits, _GATHER)
    check_tensor("logits", logits, FLOAT_DTYPES, None)
    check_device("logits", logits)
    if logits.dim() < 1 or logits.shape[-1] == 0:
        raise ValueError(message("logits", "shape [..., V], V > 0", list(logits.shape), "Pass at least one word."))
    check_target(target, logits.shape[:-1], logits.device, "logits")
    check_temperature(temperature)


def check_head(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, temperature: Any, bias: torch.Tensor | None
) -> None:
    """The arguments that the ops from hidden states share."""
    for name, value in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if value is not None or name != "bias":
            check_whole(name, value, _GATHER)
            check_tensor(name, value, FLOAT_DTYPES, None if name == "hidden" else hidden.device, "hidden")
            if value.dtype != hidden.dtype:
                raise TypeError(
                    message(name, f"dtype {hidden.dtype} (that of hidden)", value.dtype, "Cast one of them: under autocast, hidden.to(weight.dtype).")
                )  # fmt: skip
    check_device("hidden", hidden)
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(
            message("weight", "shape [V, H], as of torch.nn.Linear(H, V)", list(weight.shape), _sharded(weight))
        )
    if hidden.dim() < 1 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            message("hidden", f"shape [..., H], H = {weight.shape[1]} (from weight [V, H] = {list(weight.shape)})", list(hidden.shape), "Is weight transposed, or that of another model?")
        )  # fmt: skip
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            message("bias", f"shape [V] = [{weight.shape[0]}] (from weight)", list(bias.shape), "Pass the head's own.")
        )
    check_target(target, hidden.shape[:-1], hidden.device, "hidden")
    check_temperature(temperature)


def check_tokens(hidden: torch.Tensor, packed: bool) -> None:
    """The dimensions of the hidden states of a batch of sequences."""
    if hidden.dim() != (2 if packed else 3):
        raise ValueError(
            message("hidden", "shape [total_tokens, H], since cu_seqlens is given", list(hidden.shape), "Flatten it, or drop cu_seqlens.")
            if packed
            else message("hidden", "shape [B, T, H]", list(hidden.shape), "Add a batch dimension, or pass cu_seqlens.")
        )  # fmt: skip


def _sharded(weight: torch.Tensor) -> str:
    if hasattr(weight, "ds_shape"):
        return f"This one is partitioned by ZeRO-3 (whole: {list(weight.ds_shape)}): gather it with deepspeed.zero.GatheredParameters([weight])."
    if weight.dim() == 1 or weight.numel() == 0:
        return (
            "A flat or empty weight is a shard of FSDP or ZeRO-3: call this inside the forward of the module that owns it, "
            "or gather it (FSDP.summon_full_params, deepspeed.zero.GatheredParameters)."
        )
    return "Pass lm_head.weight as it is."


def check_inplace(logits: torch.Tensor) -> None:
    """Whether the gradient may be written over the logits, as far as they show it."""
    remedy = "Leave inplace_backward=False."
    owner = logits if logits._base is None else logits._base
    if owner.is_leaf:
        raise ValueError(
            message("inplace_backward", "logits that a forward pass made", "a leaf, or a view of one, whose values would be lost", remedy)
        )  # fmt: skip
    # What torch.compile traces is of a subclass; torch.compiler.is_compiling() does not say so within an op in torch 2.11.
    if type(logits) is not torch.Tensor:
        raise ValueError(
            message("inplace_backward", "False under torch.compile and for subclasses of Tensor", True, remedy)
        )
    if any(size > 1 and stride == 0 for size, stride in zip(logits.shape, logits.stride(), strict=True)):
        raise ValueError(
            message("inplace_backward", "logits with memory of their own", "expanded ones, whose rows share it", remedy)
        )
