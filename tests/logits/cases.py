"""Rows of logits, heads and policies, the truth of their results in float64, and one way to run any implementation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import maspo_ext
from maspo_ext.logits import reference
from maspo_ext.stats import INVALID_TARGETS, PolicyLossStats

from ..op.cases import ARITHMETIC, DEFAULT_METHODS, FLOAT_DTYPES, HALF_DTYPES, bits

ops = torch.ops.maspo
IGNORED = -100

__all__ = ["ARITHMETIC", "FLOAT_DTYPES", "HALF_DTYPES", "IGNORED", "bits", "ops", "reference"]

# bapo has the front linear_loss alone, as linear_logprob and loss.
OF_THE_OP = {mode: method for mode, method in DEFAULT_METHODS.items() if mode != "bapo"}
every_mode_of_the_op = pytest.mark.parametrize("method", OF_THE_OP.values(), ids=OF_THE_OP)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def random_rows(
    rows: int, words: int, dtype=torch.float32, device="cpu", spread: float = 3.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[rows, words]``, and targets of which the first two are the first and the last word."""
    logits = (spread * normal(rows, words, seed=seed)).to(dtype).to(device)
    target = torch.randint(words, (rows,), generator=generator(seed + 1)).to(device)
    target[: min(rows, 2)] = torch.tensor([0, words - 1][: min(rows, 2)])
    return logits, target


def confident_rows(
    rows: int, words: int, p: float, chosen: bool, dtype=torch.float64, device="cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of which one word has the probability ``p``, targets, and that word: the target if it is ``chosen``."""
    logits, target = random_rows(rows, words, torch.float64, device, spread=1.0)
    sure = target if chosen else (target + 1) % words
    others = logits.scatter(-1, sure.unsqueeze(-1), -torch.inf).logsumexp(-1)
    of_sure = others + torch.tensor(p / (1 - p), dtype=torch.float64).log()
    return logits.scatter(-1, sure.unsqueeze(-1), of_sure.unsqueeze(-1)).to(dtype), target, sure


class Rows(NamedTuple):
    log_prob: torch.Tensor
    entropy: torch.Tensor
    grad: torch.Tensor


def upstream(rows: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivatives of a loss in the two results, of both signs and of about 1."""
    return normal(*rows, seed=11), normal(*rows, seed=12)


def run_rows(function, logits: torch.Tensor, target: torch.Tensor, *args: Any, **keywords: Any) -> Rows:
    """Results, and the gradient for :func:`upstream`, of the op or of another implementation."""
    logits = logits.detach().requires_grad_()
    log_prob, entropy = function(logits, target, *args, **keywords)
    grads = [grad.to(log_prob) for grad in upstream(log_prob.shape)]
    (grad,) = torch.autograd.grad((log_prob, entropy), logits, grads)
    return Rows(log_prob.detach(), entropy.detach(), grad)


class Truth(NamedTuple):
    """Results, the gradient, and the sum of the magnitudes that the gradient's terms have before they cancel."""

    log_prob: np.ndarray
    entropy: np.ndarray
    grad: np.ndarray
    terms: np.ndarray


def truth(logits: torch.Tensor, target: torch.Tensor, temperature: float = 1.0) -> Truth:
    """By the formulas, in a wider float than the op's; a banned word's parts are 0."""
    wide = np.longdouble if logits.dtype == torch.float64 else np.float64
    z = logits.detach().double().cpu().numpy().astype(wide) / wide(temperature)
    index = np.asarray(target.cpu().long())[..., None]
    z = z - z.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    p = np.exp(log_p)
    log_prob = np.take_along_axis(log_p, index, -1)[..., 0]
    log_p = np.where(p == 0, 0, log_p)
    entropy = -(p * log_p).sum(-1)
    dlog_prob, dentropy = (grad.numpy()[..., None] for grad in upstream(target.shape))
    chosen = np.zeros(p.shape)
    np.put_along_axis(chosen, index, 1, -1)
    grad = dlog_prob * (chosen - p) - dentropy * p * (log_p + entropy[..., None])
    terms = abs(dlog_prob) * (chosen + p) + abs(dentropy) * p * (abs(log_p) + entropy[..., None])
    return Truth(log_prob, entropy, grad / temperature, terms / temperature)


def by_torch(logits: torch.Tensor, target: torch.Tensor, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """As one writes it in torch, in the arithmetic's dtype."""
    log_p = (logits.to(ARITHMETIC[logits.dtype]) / temperature).log_softmax(-1)
    return log_p.gather(-1, target.long().unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def assert_same_bits(actual: tuple, expected: tuple) -> None:
    """Of each tensor of two results."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == e.dtype and a.shape == e.shape, index
        assert torch.equal(bits(a), bits(e)), f"{index}: {a} is not bit for bit {e}"


def assert_close(actual: tuple, expected: tuple, tolerance: float) -> None:
    """Each tensor within ``tolerance`` of the largest of it."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, index
        e = e.double()
        scale = float(e.abs().max()) if e.numel() else 0.0
        torch.testing.assert_close(
            a.double(), e, rtol=0, atol=tolerance * scale + 1e-300, msg=lambda m, i=index: f"{i}: {m}"
        )


def assert_same_row(actual: tuple, expected: tuple, device: str) -> None:
    """Of a row that lies elsewhere in memory: the same bits; on a GPU within rounding of the largest.

    There a row is read in packs of 16 bytes, which begin where memory is aligned: it is added up in another order. That
    moved results and gradients by up to 3 eps in a replay, from a logarithm of the sum that is off in its last digit.
    """
    if device == "cpu":
        assert_same_bits(actual, expected)
        return
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert_close((a,), (e,), 8 * torch.finfo(ARITHMETIC[a.dtype]).eps + torch.finfo(a.dtype).eps)


# What a float32 GEMM's order of additions, and what one rounding of a gradient, may change of the largest value.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11 + 2e-5}
# On a GPU the gradient of half-precision logits is a half, too, as its tensor cores want it: the gradients of hidden
# states and head are rounded twice.
GPU_TOLERANCE = TOLERANCE | {torch.bfloat16: 8e-3, torch.float16: 1e-3}


def tolerance(dtype: torch.dtype, device: str) -> float:
    """Of a gradient of the head, of the largest value of it."""
    return (TOLERANCE if device == "cpu" else GPU_TOLERANCE)[dtype]


def noise_of_many_tokens(dtype: torch.dtype, device: str, on_cpu: float) -> float:
    """What a sum over many tokens may be off by, of its largest value, before it is rounded to ``dtype``.

    On a GPU each of its terms has been rounded to ``dtype``, and their errors add up at random.
    """
    return on_cpu if device == "cpu" else torch.finfo(dtype).eps / 2


def random_head(
    shape: tuple[int, ...], width: int, words: int, dtype=torch.float32, device="cpu", bias: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    """``hidden``, ``weight``, ``target`` and perhaps ``bias``, whose logits spread by about 2."""
    head = {
        "hidden": normal(*shape, width, seed=seed),
        "weight": 2 / math.sqrt(width) * normal(words, width, seed=seed + 1),
    }
    if bias:
        head["bias"] = normal(words, seed=seed + 2)
    head = {name: value.to(dtype).to(device) for name, value in head.items()}
    head["target"] = torch.randint(words, shape, generator=generator(seed + 3)).to(device)
    return head


HEAD = ("hidden", "weight", "bias")


def leaves(arguments: dict[str, Any], asked: tuple[str, ...] = HEAD) -> dict[str, Any]:
    """The same arguments, those of the head that are asked for as leaves."""
    return {
        name: value.detach().requires_grad_(name in asked) if name in HEAD else value
        for name, value in arguments.items()
    }


def run_head(function, arguments: dict[str, Any], asked: tuple[str, ...] = HEAD, **keywords: Any) -> tuple:
    """``(log_prob, entropy, *gradients)`` of ``linear_logprob`` or its twin; the gradients that are asked for."""
    arguments = leaves(arguments, asked)
    log_prob, entropy = function(**arguments, **keywords)
    grads = [grad.to(log_prob) for grad in upstream(log_prob.shape)]
    wanted = [arguments[name] for name in HEAD if name in arguments and name in asked]
    return (log_prob.detach(), entropy.detach(), *torch.autograd.grad((log_prob, entropy), wanted, grads))


def converted(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same values in another dtype."""
    return {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def loss_batch(
    policy: dict[str, torch.Tensor], width: int = 16, words: int = 301, dtype=torch.float32, bias: bool = True
) -> dict[str, torch.Tensor]:
    """Arguments of ``linear_loss`` for a batch of tests.op.cases; old and reference policy are near the new one."""
    mask = policy["response_mask"]
    head = random_head(tuple(mask.shape), width, words, dtype, mask.device, bias)
    log_prob = maspo_ext.linear_logprob(**head).log_prob
    rest = {name: value for name, value in policy.items() if name not in ("log_prob", "entropy")}
    for name in ("old_log_prob", "ref_log_prob"):
        if name in rest:
            rest[name] = (log_prob + 0.3 * normal(*mask.shape, seed=len(name)).to(log_prob)).to(rest[name].dtype)
    return {**head, **rest}


def common_stats(stats: PolicyLossStats) -> torch.Tensor:
    """The numbers that every way to a loss has: without ``linear_loss``'s count of invalid targets on a GPU, here 0."""
    if stats.names[-1] != INVALID_TARGETS:
        return stats.tensor
    assert stats.tensor[-1] == 0
    return stats.tensor[:-1]


def run_loss(
    function, arguments: dict[str, Any], asked: tuple[str, ...] = HEAD, upstream: float = 1.0, **keywords: Any
):
    """``(loss, stats, log_prob, entropy, *gradients)`` of ``linear_loss``, its composition or its twin."""
    arguments = leaves(arguments, asked)
    loss, stats, log_prob, entropy = function(**arguments, **keywords)
    if isinstance(stats, PolicyLossStats):
        stats = common_stats(stats)
    wanted = [arguments[name] for name in HEAD if name in arguments and name in asked]
    grads = torch.autograd.grad(loss, wanted, torch.full_like(loss, upstream))
    return (loss.detach(), stats, log_prob, entropy, *grads)


def composition(
    hidden, weight, target, old_log_prob, advantages, response_mask, *,
    temperature=1.0, bias=None, memory_budget=None, entropy_needed=False, **options,
):  # fmt: skip
    """``linear_loss`` as :func:`maspo_ext.policy_loss` of :func:`maspo_ext.linear_logprob`."""
    target = torch.where(response_mask != 0, target, IGNORED)
    log_prob, entropy = maspo_ext.linear_logprob(hidden, weight, target, temperature, bias, memory_budget=memory_budget)
    shaped = entropy.detach() if entropy_needed else None
    loss, stats = maspo_ext.policy_loss(log_prob, old_log_prob, advantages, response_mask, entropy=shaped, **options)
    return loss, stats, log_prob.detach(), entropy.detach()
