"""Against the truth: no less exact than torch's log_softmax, but for a few units in the last place.

The rule, for log_prob, entropy, the gradient of target words and that of all others, each: no error is larger than
torch's largest on the same logits in the arithmetic's dtype, plus ``ULPS`` units of the largest number that the result
is made of. The gradient of bfloat16 and float16 logits is that of float32 rounded: half a unit of its own on top.
"""

import numpy as np
import pytest
import torch

import maspo_ext

from .cases import ARITHMETIC, FLOAT_DTYPES, HALF_DTYPES, by_torch, confident_rows, random_rows, run_rows, truth

ULPS = 2
VOCABULARIES = [1, 2, 7, 255, 2047, 2048, 2049, 32003, 151936, 262147]


def parts(rows, target):
    """By name: results, and the gradient at the targets and elsewhere."""
    values = [value.double().cpu().numpy() if isinstance(value, torch.Tensor) else value for value in rows]
    log_prob, entropy, *of_words = values
    chosen = np.zeros(of_words[0].shape, dtype=bool)
    np.put_along_axis(chosen, np.asarray(target.cpu())[:, None], True, -1)
    names = "log_prob", "entropy", "gradient at the targets", "gradient elsewhere"
    return [dict(zip(names, (log_prob, entropy, value[chosen], value[~chosen]), strict=True)) for value in of_words]


def largest(values: np.ndarray) -> float:
    return float(abs(values[np.isfinite(values)]).max(initial=0))


def assert_no_less_exact(logits: torch.Tensor, target: torch.Tensor, temperature: float = 1.0) -> None:
    exact, terms = parts(truth(logits, target, temperature), target)
    (ours,) = parts(run_rows(maspo_ext.logprob, logits, target, temperature), target)
    (of_torch,) = parts(run_rows(by_torch, logits.to(ARITHMETIC[logits.dtype]), target, temperature), target)
    unit = ULPS * torch.finfo(ARITHMETIC[logits.dtype]).eps
    for name, value in exact.items():
        error, by_torch_ = abs(ours[name] - value), largest(of_torch[name] - value)
        assert np.isfinite(ours[name]).all(), name
        if name in ("log_prob", "entropy"):
            allowed = by_torch_ + unit * max(1, largest(value))
        else:
            allowed = by_torch_ + unit * largest(terms[name])
            if logits.dtype in HALF_DTYPES:
                half = torch.finfo(logits.dtype)
                allowed = allowed + half.eps / 2 * (abs(value) + half.tiny)
        assert (error <= allowed).all(), f"{name}: error {largest(error)}, torch's {by_torch_}, unit {unit}"


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("words", VOCABULARIES)
def test_vocabularies(words, dtype, device):
    assert_no_less_exact(*random_rows(3 if words > 10000 else 33, words, dtype, device))


@pytest.mark.parametrize("temperature", [0.3, 0.7, 2.0])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("words", [1, 7, 2049, 32003])
def test_temperatures(words, dtype, temperature, device):
    assert_no_less_exact(*random_rows(5, words, dtype, device), temperature)


@pytest.mark.parametrize("chosen", [True, False], ids=["the target", "another word"])
@pytest.mark.parametrize("p", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("words", [7, 2049, 32003])
def test_confident_rows(words, dtype, p, chosen, device):
    logits, target, sure = confident_rows(4, words, p, chosen, dtype, device)
    # bfloat16 rounds the sure word's logit, and with it p.
    assert dtype in HALF_DTYPES or largest(np.exp(truth(logits, sure).log_prob) - p) < 1e-5
    assert_no_less_exact(logits, target)


@pytest.mark.parametrize("spread", [0.0, 1e-3])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("words", [2, 2049, 151936])
def test_near_uniform_rows(words, dtype, spread, device):
    assert_no_less_exact(*random_rows(4, words, dtype, device, spread))


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("spread", [1.0, 1e4])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_huge_logits(temperature, dtype, spread, shift, device):
    logits, target = random_rows(7, 2049, torch.float64, device, spread)
    assert_no_less_exact((logits + shift).clamp(-6e4, 6e4).to(dtype), target, temperature)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("words", [2, 7, 2048, 4099])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_banned_words(temperature, words, dtype, device):
    """A third of the words, whole blocks among them; rows with a banned target are in test_rows.py."""
    logits, target = random_rows(6, words, dtype, device)
    banned = torch.rand(6, words, generator=torch.Generator().manual_seed(3)).to(device) < 1 / 3
    banned[3, : words // 2], banned[4, words // 2 :] = True, True
    banned.scatter_(-1, target.unsqueeze(-1), False)
    logits = logits.masked_fill(banned, -torch.inf)
    assert_no_less_exact(logits, target, temperature)
    assert not run_rows(maspo_ext.logprob, logits, target, temperature).grad[banned].any()


def test_the_truth_is_what_autograd_gives(device):
    logits, target = random_rows(5, 33, torch.float64, device)
    for ours, theirs in zip(truth(logits, target, 0.7), run_rows(by_torch, logits, target, 0.7), strict=False):
        np.testing.assert_allclose(ours.astype(float), theirs.cpu().numpy(), rtol=1e-12, atol=1e-14)
