"""``linear_logprob`` against its twin, however its matrix products are cut."""

import pytest
import torch

import maspo_ext
from maspo_ext.logits.head import even_slices

from .cases import (
    ARITHMETIC,
    FLOAT_DTYPES,
    HEAD,
    IGNORED,
    assert_close,
    assert_same_bits,
    converted,
    noise_of_many_tokens,
    random_head,
    reference,
    run_head,
    tolerance,
)

every_dtype = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
linear_logprob = maspo_ext.linear_logprob
# Bytes: a token and 256 words at a time; several of both; all at once.
BUDGETS = [1, 4 * 700 * 3, 4 * 700 * 11, None]
every_budget = pytest.mark.parametrize("memory_budget", BUDGETS)


def assert_like_the_twin(head, asked=HEAD, memory_budget=None, **keywords):
    """The twin in the arithmetic's dtype: one rounding of a gradient is left."""
    dtype = head["hidden"].dtype
    actual = run_head(linear_logprob, head, asked, memory_budget=memory_budget, **keywords)
    expected = run_head(reference.linear_logprob, converted(head, ARITHMETIC[dtype]), asked, **keywords)
    assert [value.dtype for value in actual[:2]] == [ARITHMETIC[dtype]] * 2
    assert all(value.dtype == dtype and value.is_contiguous() for value in actual[2:])
    device = head["hidden"].device.type
    assert_close(actual[:2], expected[:2], tolerance(ARITHMETIC[dtype], device))
    assert_close(actual[2:], expected[2:], tolerance(dtype, device))
    return actual


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@every_budget
@every_dtype
def test_chunks(dtype, memory_budget, bias, device):
    head = random_head((5, 7), 24, 700, dtype, device, bias)
    head["target"][1, 2:5] = IGNORED
    head["target"][0, :2] = torch.tensor([0, 699])
    assert_like_the_twin(head, memory_budget=memory_budget, temperature=0.7)


@pytest.mark.parametrize("tokens", [1, 2, 3, 10, 11, 12])
@pytest.mark.parametrize("words", [2, 255, 256, 257, 511, 513, 4097])
def test_chunk_boundaries(words, tokens, device):
    """Targets at the first and the last word of chunks of 256."""
    head = random_head((tokens,), 8, words, torch.float64, device)
    edges = torch.tensor([0, 255, 256, 257, 510, 511, 512, 4095, 4096, words - 1])
    head["target"] = edges.clamp(max=words - 1).repeat(2)[:tokens].to(device)
    for memory_budget in (1, 8 * words * 4, None):
        assert_like_the_twin(head, memory_budget=memory_budget)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 100, 257])
@pytest.mark.parametrize("most", [1, 2, 7, 8, 256, 1000])
def test_even_slices(length, most):
    slices = even_slices(length, most)
    sizes = [one.stop - one.start for one in slices]
    assert [index for one in slices for index in range(length)[one]] == list(range(length))
    assert max(sizes) == sizes[0] <= most and len(slices) == -(-length // most) and min(sizes) > 0


@every_budget
def test_forward_has_the_bits_of_logprob_of_the_same_product(memory_budget, device):
    head = random_head((33,), 16, 700, device=device)
    logits = head["hidden"] @ head["weight"].T
    assert_close(linear_logprob(**head, memory_budget=memory_budget), maspo_ext.logprob(logits, head["target"]), 1e-6)


@pytest.mark.parametrize("asked", [(name,) for name in HEAD] + [("hidden", "bias"), ("weight", "bias")], ids="+".join)
@pytest.mark.parametrize("memory_budget", [1, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_partial_gradients_have_the_bits_of_all(dtype, memory_budget, asked, device):
    head = random_head((3, 7), 8, 300, dtype, device, bias=True)
    whole = run_head(linear_logprob, head, memory_budget=memory_budget)
    grads = dict(zip(HEAD, whole[2:], strict=True))
    actual = run_head(linear_logprob, head, asked, memory_budget=memory_budget)
    assert_same_bits(actual, (*whole[:2], *(grads[name] for name in asked)))


@pytest.mark.parametrize("which", [0, 1], ids=["log_prob", "entropy"])
def test_gradient_of_one_result_alone(which, device):
    head = random_head((3, 7), 8, 300, torch.float64, device, bias=True)
    grads = []
    for function in (linear_logprob, reference.linear_logprob):
        wanted = [head[name].requires_grad_() for name in HEAD]
        grads.append(torch.autograd.grad(function(**head)[which].square().sum(), wanted))
    assert_close(*grads, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_budget", [4 * 300 * 64, None])
def test_half_gradients_of_many_tokens_are_rounded_once(memory_budget, dtype, device):
    """Added up in the half dtype, 20000 tokens' parts of one sign would stop growing."""
    head = random_head((20000,), 4, 300, dtype, device, bias=True)
    head["hidden"] = head["hidden"].abs()
    head["target"] %= 3
    grads = []
    for function, arguments in (
        (linear_logprob, {**head, "memory_budget": memory_budget}),
        (reference.linear_logprob, converted(head, torch.float64)),
    ):
        wanted = [arguments[name].requires_grad_() for name in HEAD]
        (loss,) = (function(**arguments)[0].sum() / 256,)
        grads.append(torch.autograd.grad(loss, wanted))
    half = torch.finfo(dtype)
    for name, ours, exact in zip(HEAD, *grads, strict=True):
        others = noise_of_many_tokens(dtype, device, 1e-5) * exact.abs().max() + half.tiny * half.eps
        assert ((ours.double() - exact).abs() <= half.eps / 2 * exact.abs() + others).all(), name


@every_budget
@every_dtype
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
def test_garbage_in_ignored_rows_changes_no_bit(garbage, dtype, memory_budget, device):
    head = random_head((5, 7), 8, 700, dtype, device, bias=True)
    ignored = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)).to(device) < 0.4
    head["target"][ignored] = IGNORED
    clean = run_head(linear_logprob, head, memory_budget=memory_budget)
    assert all(value.isfinite().all() for value in clean) and not any(value[ignored].any() for value in clean[:3])
    head["hidden"][ignored] = garbage
    assert_same_bits(run_head(linear_logprob, head, memory_budget=memory_budget), clean)
    head["target"][:] = IGNORED
    assert not any(value.any() for value in run_head(linear_logprob, head, memory_budget=memory_budget))


def test_other_ignore_index(device):
    head = random_head((6,), 8, 30, torch.float64, device)
    head["target"][:3] = torch.tensor([7, IGNORED % 30, 7])
    assert_like_the_twin(head, ignore_index=7)


@pytest.mark.parametrize("shape", [(2, 5), (10,), (), (1,), (2, 3, 4), (0,), (0, 5), (3, 0)], ids=str)
@every_dtype
def test_shapes(dtype, shape, device):
    head = random_head(shape, 8, 300, dtype, device, bias=True)
    result = assert_like_the_twin(head)
    assert result[0].shape == shape and result[2].shape == (*shape, 8)
    if 0 in shape:
        assert not any(grad.any() for grad in result[3:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(dtype, device):
    head = random_head((4, 6), 8, 300, dtype, device, bias=True)
    head["target"] = head["target"][:, :-1]
    sliced = {**head, "hidden": head["hidden"][:, :-1], "weight": head["weight"].t().contiguous().t()}
    contiguous = {name: value.contiguous() for name, value in sliced.items()}
    actual = run_head(linear_logprob, sliced)
    assert_close(actual, run_head(linear_logprob, contiguous), tolerance(dtype, device))
    assert actual[2].shape == (4, 5, 8)


def test_a_tied_weight_gets_both_gradients(device):
    """Embedding and head in one: autograd adds up."""
    head = random_head((6,), 8, 30, torch.float64, device)
    grads = []
    for function in (linear_logprob, reference.linear_logprob):
        weight = head["weight"].detach().requires_grad_()
        hidden = weight[head["target"].flip(0)].tanh()
        (grad,) = torch.autograd.grad(function(hidden, weight, head["target"])[0].sum(), weight)
        grads.append(grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)


def test_target_out_of_range(device):
    head = random_head((4,), 8, 30, device=device)
    head["target"][2] = 30
    if device == "cpu":
        with pytest.raises(
            RuntimeError, match="target: expected 0 to 29 .the vocabulary has 30 words.*or ignore_index = -100, got 30 at .2."
        ):
            linear_logprob(**head)
        return
    log_prob, entropy = linear_logprob(**head)
    assert log_prob.isnan().tolist() == [False, False, True, False] and entropy.isfinite().all()
