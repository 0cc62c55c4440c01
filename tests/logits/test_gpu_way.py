"""The way of half-precision operands on a GPU through the head, walked on a CPU: all but torch's products themselves."""

import pytest
import torch

import maspo_ext
from maspo_ext.logits import head
from maspo_ext.logits.head import Head

from ..op.cases import random_batch
from .cases import (
    HALF_DTYPES,
    assert_close,
    converted,
    loss_batch,
    random_head,
    reference,
    run_head,
    run_loss,
    tolerance,
)


@pytest.fixture
def products(monkeypatch):
    """As a GPU adds up: operands of half precision, sums of float32. Notes the dtypes of operands and result."""
    seen = set()

    def product(a, b, out):
        seen.add((a.dtype, b.dtype, out.dtype))
        out.copy_(a.float() @ b.float())

    def add_product(a, b, out):
        seen.add((a.dtype, b.dtype, out.dtype))
        out += a.float() @ b.float()

    def narrowed(*_, **__):
        raise AssertionError("a product that is rounded to half precision before it is added up")

    monkeypatch.setattr(Head, "on_gpu", True)
    monkeypatch.setattr(torch, "mm", narrowed)
    monkeypatch.setattr(head, "product", product)
    monkeypatch.setattr(head, "add_product", add_product)
    return seen


every_half = pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
BUDGET = 6 * 300 * 5  # five tokens: float32 logits and half-precision gradients


@every_half
@pytest.mark.parametrize("upstream", [1.0, 1e-7], ids=["", "a small loss scale"])
def test_linear_logprob(upstream, dtype, products):
    given = random_head((3, 7), 16, 300, dtype, bias=True)

    def scaled(function):
        return lambda **arguments: [value * upstream for value in function(**arguments)]

    actual = run_head(scaled(maspo_ext.linear_logprob), given, memory_budget=BUDGET)
    expected = run_head(scaled(reference.linear_logprob), converted(given, torch.float32))
    assert products == {(dtype, dtype, torch.float32), (dtype, dtype, dtype)}
    assert_close(actual[:2], expected[:2], 1e-5)
    for got, true in zip(actual[2:], expected[2:], strict=True):
        assert got.dtype == dtype
        # float16 has no digits left below 6e-8; what can be told apart is.
        told_apart = 2 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        off_by = (got.double() - true.double()).abs().max()
        assert off_by <= tolerance(dtype, "cuda") * true.abs().max() + told_apart


@every_half
def test_linear_loss(dtype, products):
    batch = loss_batch(random_batch(3, 7, dtype=torch.float32), 16, 300, dtype)
    actual = run_loss(maspo_ext.linear_loss, batch, memory_budget=BUDGET)
    with pytest.MonkeyPatch.context() as on_cpu:
        on_cpu.setattr(Head, "on_gpu", False)
        expected = run_loss(maspo_ext.linear_loss, batch)
    # The sums of the weight's gradient are float32 from the first chunk on.
    assert products >= {(dtype, dtype, torch.float32)} and (dtype, dtype, dtype) not in products
    assert len(actual) == len(expected)
    for got, true in zip(actual, expected, strict=True):
        if isinstance(got, torch.Tensor):
            assert got.dtype == true.dtype
            assert_close((got.double(),), (true.double(),), tolerance(dtype, "cuda"))
