"""A CPU has a faster loop for runs of tokens that all count once and have one advantage: of which nobody sees a bit.

A mask with strides is not looked at for that, so it has the loop for all runs.
"""

import pytest
import torch

from .cases import (
    FLOAT_DTYPES,
    MASK_DTYPES,
    METHODS,
    OPTIONS,
    assert_close,
    assert_same_bits,
    every_mode,
    reference,
    run,
)

COLS = 2 * 512 + 32  # full runs, and a shorter one of whole registers


def uniform_batch(cols=COLS, dtype=torch.float32, mask_dtype=torch.bool, method=METHODS["maspo"], device="cpu"):
    """Every sequence with one advantage, and no token masked."""
    batch = method.full_batch(3, cols, dtype=dtype, device=device)
    batch["advantages"] = torch.tensor([[1.5], [-0.5], [0.0]]).to(batch["advantages"]).expand(3, cols).contiguous()
    batch["response_mask"] = torch.ones(3, cols, dtype=mask_dtype, device=device)
    return batch


def assert_same_bits_with_a_strided_mask(batch, **keywords):
    actual = run(batch, **keywords)
    mask = batch["response_mask"]
    strided = torch.stack([mask, torch.zeros_like(mask)], -1)[..., 0]
    assert actual.grad.any() and strided.stride(1) == 2
    assert_same_bits(actual, run({**batch, "response_mask": strided}, **keywords))


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["without options", "with options"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@every_mode
def test_every_method(method, dtype, options, device):
    batch = uniform_batch(dtype=dtype, method=method, device=device)
    if not options:
        batch = {name: value for name, value in batch.items() if name not in ("ref_log_prob", "rollout_is_weights")}
    keywords = {**method.keywords, **method.takes(options)}
    assert_same_bits_with_a_strided_mask(batch, **keywords)
    batch["advantages"] = batch["advantages"][:, :1]
    assert_same_bits_with_a_strided_mask(batch, **keywords)


@pytest.mark.parametrize("cols", [1, 31, 32, 511, 512, 513, 544, 700])
@pytest.mark.parametrize("mask_dtype", MASK_DTYPES, ids=str)
def test_mask_dtypes_and_lengths(mask_dtype, cols, device):
    assert_same_bits_with_a_strided_mask(uniform_batch(cols, mask_dtype=mask_dtype, device=device))


@pytest.mark.parametrize("where", [0, 1, 511, 512, 1023, 1024, COLS - 1])
@pytest.mark.parametrize("what", ["masked", "weight", "advantage", "NaN advantage"])
def test_one_token_is_not_as_the_others(what, where, device):
    batch = uniform_batch(mask_dtype=torch.float32, device=device)
    if what in ("masked", "weight"):
        batch["response_mask"][:, where] = 0.0 if what == "masked" else 2.0
    else:
        batch["advantages"][:, where] = 0.75 if what == "advantage" else torch.nan
    assert_same_bits_with_a_strided_mask(batch)
    if what != "NaN advantage":
        assert_close(run(batch), run(batch, reference), 1e-5)


def test_nan_in_a_uniform_run(device):
    batch = uniform_batch(device=device)
    batch["log_prob"][1, 5] = batch["old_log_prob"][2, 600] = torch.nan
    assert_same_bits_with_a_strided_mask(batch)


def test_minus_zero_and_zero_are_two_advantages(device):
    batch = uniform_batch(device=device)
    batch["advantages"][2, ::2] = -0.0
    assert_same_bits_with_a_strided_mask(batch)


@pytest.mark.parametrize("mask_dtype", MASK_DTYPES[1:], ids=str)
def test_all_tokens_count_twice(mask_dtype, device):
    batch = uniform_batch(mask_dtype=mask_dtype, device=device)
    batch["response_mask"] *= 2
    assert_same_bits_with_a_strided_mask(batch)
    assert_close(run(batch, loss_agg_mode="token-sum"), run(batch, reference, loss_agg_mode="token-sum"), 1e-5)
