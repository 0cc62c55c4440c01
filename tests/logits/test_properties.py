"""What holds for any logits: bounds, and what leaves the results alone."""

import math
import random

import pytest
import torch

import maspo_ext

from .cases import ARITHMETIC, FLOAT_DTYPES, Rows, random_rows, run_rows

DRAWS = 40


def draws(seed: int, device: str):
    """Logits, targets and a temperature, of any dtype, shape and spread."""
    choose = random.Random(seed)
    for _ in range(DRAWS):
        words = choose.choice([1, 2, 3, 8, 17, 127, 1000, 2048, 2049, 5003])
        spread = choose.choice([0.0, 1e-3, 1.0, 10.0, 300.0])
        rows = random_rows(
            choose.randint(1, 9), words, choose.choice(FLOAT_DTYPES), device, spread, choose.getrandbits(30)
        )
        yield *rows, choose.choice([0.3, 0.7, 1.0, 1.0, 2.0])


def run(logits, target, temperature) -> Rows:
    return run_rows(maspo_ext.logprob, logits, target, temperature)


@pytest.mark.parametrize("seed", range(3))
def test_bounds(seed, device):
    for logits, target, temperature in draws(seed, device):
        log_prob, entropy, grad = run(logits, target, temperature)
        unit, most = torch.finfo(log_prob.dtype).eps, math.log(logits.shape[-1])
        assert (log_prob <= 0).all() and (entropy >= 0).all() and (entropy <= most + 2 * unit * (1 + most)).all()
        # The gradient's words add up to 0, since a shift changes nothing.
        rounding = logits.shape[-1] * torch.finfo(logits.dtype).eps * float(grad.abs().max())
        assert float(grad.double().sum(-1).abs().max()) <= rounding / 8 + 8 * unit / temperature * (
            1 + logits.abs().max()
        )
        if logits.shape[-1] == 1:
            rounding = 2 * unit * (1 + (0 if temperature == 1 else float(logits.abs().max())) / temperature)
            assert all((value.abs() <= rounding / temperature).all() for value in (log_prob, entropy, grad))


def assert_alike(actual: Rows, expected: Rows, units: float) -> None:
    for name, a, e in zip(Rows._fields, actual, expected, strict=True):
        scale = max(1.0, float(e.abs().max()))
        unit = torch.finfo(ARITHMETIC[a.dtype]).eps
        torch.testing.assert_close(
            a, e, rtol=torch.finfo(a.dtype).eps, atol=units * unit * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("seed", range(3, 5))
def test_a_shift_of_all_logits_changes_nothing(seed, device):
    """By an exact number: logits in quarters, of at most 8 bits."""
    for logits, target, _ in draws(seed, device):
        logits = (logits.clamp(-15, 15) * 4).round() / 4
        shifted = logits - 16
        assert torch.equal(shifted + 16, logits)
        assert_alike(run(shifted, target, 1.0), run(logits, target, 1.0), 2)


@pytest.mark.parametrize("seed", range(5, 7))
def test_the_order_of_words_does_not_matter(seed, device):
    for logits, target, temperature in draws(seed, device):
        order = torch.randperm(logits.shape[-1], generator=torch.Generator().manual_seed(seed)).to(device)
        permuted = run(logits[:, order], order.argsort()[target], temperature)
        units = 4 * (1 + (0 if temperature == 1 else float(logits.abs().max()) * 0.1))
        assert_alike(permuted._replace(grad=permuted.grad[:, order.argsort()]), run(logits, target, temperature), units)


@pytest.mark.parametrize("seed", range(7, 8))
def test_banned_words_count_as_absent(seed, device):
    for logits, target, temperature in draws(seed, device):
        padded = torch.nn.functional.pad(logits, (3, 2100), value=-torch.inf)
        result = run(padded, target + 3, temperature)
        assert not result.grad[:, :3].any() and not result.grad[:, 3 + logits.shape[-1] :].any()
        cut = result._replace(grad=result.grad[:, 3 : 3 + logits.shape[-1]])
        assert_alike(cut, run(logits, target, temperature), 4 * (1 + float(logits.abs().max()) * 0.1))
