"""Random batches, the methods, and one way to run any implementation on them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch

import maspo_ext
from maspo_ext.checks.aggregation import LOSS_AGG_MODES

op = torch.ops.maspo.loss
reference = maspo_ext.reference.loss

AGG_MODES = LOSS_AGG_MODES
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF_DTYPES = (torch.bfloat16, torch.float16)
MASK_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64) + FLOAT_DTYPES
TENSORS = ("log_prob", "old_log_prob", "advantages", "response_mask", "rollout_is_weights")
NONFINITE_COUNT = maspo_ext.stat_names().index("actor/nonfinite_count")
ALL_TENSORS = TENSORS + ("entropy", "ref_log_prob")
# Every option at once, for a batch with all tensors.
OPTIONS = {
    "dual_clip": True,
    "entropy_alpha": 0.3,
    "entropy_kappa": 1.5,
    "kl_type": "k3",
    "kl_coef": 0.4,
    "rollout_is_lower": 0.7,
    "rollout_is_upper": 1.2,
}
# Global counts as a trainer with two data-parallel ranks would give; larger than any batch here, so that they matter.
GLOBAL_COUNTS = {"dp_size": 2, "batch_num_tokens": 977, "global_batch_size": 31}
# Of three packed sequences of 400 tokens, each wrong in another way; on a GPU nobody looks before the launch.
WRONG_CU_SEQLENS = (
    [0, 100, 90, 400],
    [0, 100, 200, 401],
    [5, 100, 200, 400],
    [5, 100, 200, 300],
    [0, 300, 350, 400],  # the first longer than 200, the most
    [0, 300, 350, 20],
    [0, 0, 0, 5000],
    [0, -7, 200, 400],
)


# What torch.ops.maspo.loss_forward needs besides the tensors: MASPO with its defaults.
KERNEL = {"method": "maspo", "hyper": maspo_ext.MaspoConfig().kernel_hyper(), "clip_ratio_c": 3.0}

# Every field of every config class, off its default: each matters on random_batch, or on its extremes.
CLIP = {"clip_ratio_low": 0.1, "clip_ratio_high": 0.37, "clip_ratio_c": 1.6}
OTHER_HYPER: dict[str, dict[str, Any]] = {
    "maspo": {
        "sigma_base": 0.7,
        "alpha": 0.5,
        "sigma_high": 4.0,
        "adv_low": 0.6,
        "adv_high": 1.4,
        "beta_pos": 0.4,
        "beta_neg": 0.2,
        "gate_gradient": True,
        **CLIP,
    },
    "ppo": CLIP,
    "grpo": CLIP,
    "clip_higher": CLIP,
    "dac": {"eps_low": 0.05, "eps_high": 0.1, "clip_ratio_c": 11.5},
    "entropy_adv": {**CLIP, "alpha": 0.7, "kappa": 3.0},
    "bapo": {
        "adv_ratio_target": 1.25,
        "ratio_lower_start": 0.5,
        "ratio_lower_max": 0.9,
        "ratio_lower_step": 0.1,
        "ratio_upper_start": 1.13,
        "ratio_upper_max": 2.5,
        "ratio_upper_step": 0.3,
        "upper_first": True,
        "eps": 2.0,
        **CLIP,
    },
    "sapo": {"tau_pos": 2.0, "tau_neg": 0.5, "clip_ratio_c": 1.6},
}


class Method(NamedTuple):
    """A ratio_mode with hyper-parameters."""

    mode: str
    config: maspo_ext.methods.MethodConfig

    @property
    def keywords(self) -> dict[str, Any]:
        """The op's, and the reference's."""
        return self.config.op_keywords(self.mode)

    def takes(self, options: dict[str, Any]) -> dict[str, Any]:
        """Those of the options that the mode takes: Entropy Adv. has an alpha and a kappa of its own."""
        own = ("entropy_alpha", "entropy_kappa") if self.mode == "entropy_adv" else ()
        return {name: value for name, value in options.items() if name not in own}

    @property
    def global_counts(self) -> dict[str, int]:
        """GLOBAL_COUNTS, for BAPO of one rank: several need the sums of all (test_bapo.py)."""
        return {**GLOBAL_COUNTS, "dp_size": 1 if self.mode == "bapo" else GLOBAL_COUNTS["dp_size"]}

    def batch(self, rows: int, cols: int, **options: Any) -> dict[str, torch.Tensor]:
        """:func:`random_batch` with what the mode needs."""
        return random_batch(rows, cols, **{"entropy": self.mode == "entropy_adv", **options})

    def full_batch(self, rows: int, cols: int, **options: Any) -> dict[str, torch.Tensor]:
        """:func:`random_batch` with all tensors, for ``OPTIONS``."""
        return random_batch(rows, cols, entropy=True, ref_log_prob=True, **options)

    def with_(self, **hyper: Any) -> Method:
        return Method(self.mode, dataclasses.replace(self.config, **hyper))


DEFAULT_METHODS = {mode: Method(mode, config_class()) for mode, config_class in maspo_ext.RATIO_MODES.items()}
OTHER_METHODS = {
    f"{mode} with other values": Method(mode, maspo_ext.RATIO_MODES[mode](**hyper))
    for mode, hyper in OTHER_HYPER.items()
}
METHODS = DEFAULT_METHODS | OTHER_METHODS
every_mode = pytest.mark.parametrize("method", DEFAULT_METHODS.values(), ids=DEFAULT_METHODS)
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Result(NamedTuple):
    loss: torch.Tensor
    grad: torch.Tensor
    stats: torch.Tensor


def random_batch(
    rows: int,
    cols: int,
    dtype=torch.float64,
    device="cpu",
    mask_dtype=torch.bool,
    weights=True,
    seed=0,
    spread=0.5,
    entropy=False,
    ref_log_prob=False,
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
    more = {"entropy": normal().abs(), "ref_log_prob": old + 0.4 * normal()}
    batch.update(
        {name: value for name, value in more.items() if {"entropy": entropy, "ref_log_prob": ref_log_prob}[name]}
    )
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
    loss, stats, dlogp, scales = torch.ops.maspo.loss_forward(**batch, **{**KERNEL, **keywords})
    grad = torch.ops.maspo.loss_backward(torch.ones_like(loss), dlogp, scales, batch["log_prob"].dtype)
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


ARITHMETIC = {dtype: torch.float64 if dtype == torch.float64 else torch.float32 for dtype in FLOAT_DTYPES}


def assert_same_in_half(batch: dict[str, torch.Tensor], **keywords: Any) -> Result:
    """The same bits as in the arithmetic's dtype; only the gradient is rounded, to log_prob's dtype."""
    arithmetic = ARITHMETIC[batch["log_prob"].dtype]
    exact = run({**converted(batch, arithmetic), "response_mask": batch["response_mask"].to(arithmetic)}, **keywords)
    assert exact.grad.any()
    assert_same_bits(run(batch, **keywords), exact._replace(grad=exact.grad.to(batch["log_prob"].dtype)))
    return exact
