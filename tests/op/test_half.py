"""bfloat16 and float16: conversions in both directions, for every bit pattern, and the accuracy that is left."""

import pytest
import torch

from .cases import bits, converted, random_batch, reference, run

HALF_DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=HALF_DTYPES, ids=str)
def dtype(request):
    return request.param


def every_value(dtype, device):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    return patterns.view(dtype).reshape(256, 256).to(device)


def at_ratio_one(device, log_prob_dtype=torch.float32, **tensors):
    """Arguments under which the gradient is ``-advantages * rollout_is_weights * response_mask``, exactly."""
    shape = next(iter(tensors.values())).shape
    zeros, ones = torch.zeros(shape, device=device), torch.ones(shape, device=device)
    batch = {
        "log_prob": zeros.to(log_prob_dtype),
        "old_log_prob": zeros,
        "advantages": -ones,
        "response_mask": ones,
        **tensors,
    }
    return run(batch, loss_agg_mode="token-sum").grad


def assert_same_values(actual, expected):
    """Bit for bit, but for NaN, which has many patterns."""
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(bits(actual.nan_to_num(0.0)), bits(expected.nan_to_num(0.0)))


def test_every_value_is_read_as_torch_reads_it(dtype, device):
    values = every_value(dtype, device)
    assert_same_values(at_ratio_one(device, advantages=values), -values.float())
    assert_same_values(at_ratio_one(device, rollout_is_weights=values), values.float())
    weights = values[values > 0].unsqueeze(0)  # of a mask, zero and NaN have meanings of their own
    assert_same_values(at_ratio_one(device, response_mask=weights), weights.float())


def test_log_probs_are_read_as_torch_reads_them(dtype, device):
    """Against its float32 copy every log-ratio is exactly 0."""
    values = every_value(dtype, device)
    values = values[values.isfinite()].unsqueeze(0)
    ones = torch.ones_like(values)
    for names in (("log_prob", "old_log_prob"), ("old_log_prob", "log_prob")):
        batch = {names[0]: values, names[1]: values.float(), "advantages": -ones, "response_mask": ones}
        result = run(batch, loss_agg_mode="token-sum")
        assert torch.equal(result.grad, ones.to(result.grad.dtype))
        assert float(result.stats[1]) == 0.0  # the mean log-ratio


def values_around_every_tie(dtype):
    """Every finite value, the midway to the next, that one's float32 neighbours, and what float32 has besides."""
    positive = torch.arange(0, 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    positive = positive[positive.isfinite()]
    ties = (positive[:-1].double() + positive[1:].double()).div(2).float()
    infinity = torch.tensor(torch.inf)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-(2**31), 2**31, (200_000,), generator=generator).to(torch.int32).view(torch.float32)
    largest = torch.finfo(dtype).max
    edges = torch.tensor(
        [largest, 65519.0, 65520.0, 65536.0, 3.3895e38, 3.4e38, 1e-45, 1e-40, 1.1754942e-38, torch.inf, torch.nan]
    )
    values = torch.cat([positive, ties, ties.nextafter(infinity), ties.nextafter(-infinity), edges, noise])
    return torch.cat([values, -values]).unsqueeze(0)


def test_gradients_are_rounded_as_torch_rounds_them(dtype, device):
    values = values_around_every_tie(dtype).to(device)
    in_float32 = at_ratio_one(device, advantages=values)
    assert_same_values(in_float32, -values)
    rounded = at_ratio_one(device, log_prob_dtype=dtype, advantages=values)
    assert rounded.dtype == dtype
    assert_same_values(rounded, (-values).to(dtype))
    assert (rounded.isinf() & values.isfinite()).any()  # overflow was among them


@pytest.mark.parametrize("gate_gradient", [False, True])
def test_no_less_accurate_than_plain_torch(gate_gradient, dtype, device):
    batch = random_batch(16, 257, dtype=dtype, device=device, spread=1.0)
    ours, plain = (run(batch, *function, gate_gradient=gate_gradient) for function in ((), (reference,)))
    truth = run(converted(batch, torch.float64), reference, gate_gradient=gate_gradient)
    # Where the two float32 gradients lie on different sides of a tie, the errors differ by the float32 error.
    slack = 2e-6 * truth.grad.abs()
    error, plain_error = ((result.grad.double() - truth.grad).abs() for result in (ours, plain))
    assert error.any() and bool((error <= plain_error + slack).all())
    assert abs(ours.loss - truth.loss) <= abs(plain.loss - truth.loss) + 2e-7 * truth.grad.abs().sum()


def test_ratio_beyond_the_range_of_float16(dtype, device):
    """exp(12) is inf in float16; arithmetic is in float32, so only the gradient's own dtype can overflow."""
    one = torch.ones(1, 1, dtype=dtype, device=device)
    result = run({"log_prob": 12 * one, "old_log_prob": 0 * one, "advantages": -one, "response_mask": one})
    assert float(result.loss) == pytest.approx(162754.79, rel=1e-6)
    assert float(result.grad) == (float("inf") if dtype == torch.float16 else 162816.0)


def test_loss_scale_reaches_the_gradient_before_it_is_rounded(device):
    """1/N of a large batch lies below float16's smallest number; the saved gradient must not be squeezed through it."""
    batch = random_batch(4, 9, dtype=torch.float16, device=device)
    counts = {"dp_size": 1, "batch_num_tokens": 10**9}
    assert not run(batch, **counts).grad.any()
    scaled = run(batch, upstream=1e9, **counts).grad
    torch.testing.assert_close(scaled, run(batch, loss_agg_mode="token-sum").grad, rtol=1e-3, atol=0)
