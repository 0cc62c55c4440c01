"""What a row's results depend on: not on ignored rows, not on other rows, not on where it lies in memory."""

import math

import pytest
import torch

import maspo_ext

from .cases import (
    ARITHMETIC,
    FLOAT_DTYPES,
    IGNORED,
    Rows,
    assert_same_bits,
    assert_same_row,
    random_rows,
    reference,
    run_rows,
    upstream,
)

SHAPES = {"wide": (7, 2051), "narrow": (9, 5)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_dtype = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)


def run(logits, target, *args, **keywords) -> Rows:
    return run_rows(maspo_ext.logprob, logits, target, *args, **keywords)


@pytest.mark.parametrize("ignore_index", [IGNORED, -1, 3, 2**40])
@every_shape
@every_dtype
def test_ignored_rows_are_zero_and_not_read(dtype, shape, ignore_index, device):
    logits, target = random_rows(*shape, dtype, device)
    target[target == ignore_index] = 0
    ignored = torch.arange(shape[0], device=device) % 3 == 1
    clean = run(logits, torch.where(ignored, ignore_index, target), 0.7, ignore_index=ignore_index)
    assert not any(value[ignored].any() for value in clean)
    assert all(value[~ignored].isfinite().all() and value[~ignored].any() for value in clean)
    for garbage in (torch.nan, torch.inf, -torch.inf):
        dirty = logits.masked_fill(ignored[:, None], garbage)
        assert_same_bits(run(dirty, torch.where(ignored, ignore_index, target), 0.7, ignore_index=ignore_index), clean)
    whole = run(logits, target, 0.7, ignore_index=-7)
    assert_same_bits([value[~ignored] for value in clean], [value[~ignored] for value in whole])


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [0, 3, -1])
@every_shape
@every_dtype
def test_nan_stays_in_its_row(dtype, shape, column, garbage, device):
    """A +inf has no probability either: inf - inf."""
    logits, target = random_rows(*shape, dtype, device)
    clean = run(logits, target)
    logits[2, column] = garbage
    dirty = run(logits, target)
    assert all(value[2].isnan().all() for value in dirty)
    others = torch.arange(shape[0], device=device) != 2
    assert_same_bits([value[others] for value in dirty], [value[others] for value in clean])


@every_shape
@every_dtype
def test_banned_target(dtype, shape, device):
    logits, target = random_rows(*shape, dtype, device)
    logits[torch.arange(shape[0]), target] = -torch.inf
    result = run(logits, target)
    assert (result.log_prob == -torch.inf).all() and result.entropy.isfinite().all() and result.grad.isfinite().all()
    # d log p_t / d z_j = [j = t] - p_j still: as torch has it.
    theirs = logits.detach().to(ARITHMETIC[dtype]).requires_grad_()
    log_p = theirs.log_softmax(-1).gather(-1, target[:, None])[:, 0]
    (grad,) = torch.autograd.grad(log_p, theirs, upstream(log_p.shape)[0].to(log_p))
    ours = logits.detach().requires_grad_()
    log_prob = maspo_ext.logprob(ours, target).log_prob
    (ours,) = torch.autograd.grad(log_prob, ours, upstream(log_p.shape)[0].to(log_p))
    torch.testing.assert_close(
        ours,
        grad.to(dtype),
        rtol=8 * torch.finfo(ARITHMETIC[dtype]).eps + torch.finfo(dtype).eps,
        atol=1e-9 if dtype != torch.float64 else 1e-18,
    )


@every_dtype
def test_rows_of_banned_words_alone_are_nan_and_the_only_word_is_certain(dtype, device):
    logits, target = random_rows(3, 40, dtype, device)
    logits[0] = -torch.inf
    logits[1, torch.arange(40) != target[1].cpu()] = -torch.inf
    result = run(logits, target)
    assert result.log_prob[1] == 0 and result.entropy[1] == 0 and not result.grad[1].any()
    assert not result.log_prob[0].isfinite() and all(value[2].isfinite().all() for value in result)


@pytest.mark.parametrize("wrong", [-1, -101, 5, 6, 2**40, -(2**62)])
def test_target_out_of_range(wrong, device):
    logits, target = random_rows(4, 5, device=device)
    target[2] = wrong
    if device == "cpu":
        message = (
            f"target: expected 0 to 4 .the vocabulary has 5 words. or ignore_index = -100, got {wrong} for row 2. Check"
        )
        with pytest.raises(RuntimeError, match=message):
            maspo_ext.logprob(logits, target)
        return
    result = run(logits, target)
    assert result.log_prob[2].isnan() and result.grad[2].isnan().all() and result.entropy.isfinite().all()
    assert all(value[[0, 1, 3]].isfinite().all() for value in result)


@pytest.mark.parametrize("target_dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_target_dtypes_and_strides(target_dtype, device):
    logits, target = random_rows(6, 100, device=device)
    expected = run(logits, target)
    assert_same_bits(run(logits, target.to(target_dtype)), expected)
    assert_same_bits(run(logits, target.to(target_dtype).repeat_interleave(2)[::2]), expected)


def views(device, dtype):
    """By name: logits of unusual strides."""
    base = random_rows(2 * 3 * 4 * 5, 13, dtype, device)[0].view(2, 3, 4, 5, 13)
    return {
        "one row": base[0, 0, 0, 0],
        "slice of rows": base[0, 0][:, :-1],
        "slice from the second": base[0, 0][:, 1:],
        "every second": base[0, 0, :, ::2],
        "slice of words": base[0, 0][..., 3:11],
        "transposed": base[0, 0].transpose(0, 1),
        "4-D": base[0],
        "4-D of one": base[0][:, 1:2],
        "4-D, two transposed": base[0][:, 1:2].transpose(0, 2),
        "4-D slice": base[0][..., :-1, :],
        "5-D": base,
        "expanded": base[0, 0, :1, :1].expand(4, 5, 13),
        "one word of rows": base[0, 0][..., 4:5],
        "no rows": base[0, 0, :0],
        "no rows of some": base[0, :, :, :0],
    }


@every_dtype
def test_strides_and_shapes(dtype, device):
    for name, logits in views(device, dtype).items():
        target = torch.arange(math.prod(logits.shape[:-1]), device=device).view(logits.shape[:-1]) % logits.shape[-1]
        actual, expected = run(logits, target, 0.7), run(logits.contiguous(), target, 0.7)
        assert actual.log_prob.shape == logits.shape[:-1] and actual.grad.shape == logits.shape, name
        assert_same_row(actual, expected, device)


@pytest.mark.parametrize("inplace_backward", [False, True])
def test_gradient_of_a_slice_reaches_the_whole(inplace_backward, device):
    """``logits[:, :-1]``, as trainers cut them."""
    logits, _ = random_rows(3 * 6, 33, torch.float64, device)
    target = torch.arange(15, device=device).view(3, 5)
    grads = []
    for function, keywords in ((maspo_ext.logprob, {"inplace_backward": inplace_backward}), (reference.logprob, {})):
        leaf = logits.view(3, 6, 33).clone().requires_grad_()
        log_prob, entropy = function((2 * leaf)[:, :-1], target, **keywords)
        of_results = [grad.to(log_prob) for grad in upstream(target.shape)]
        grads += torch.autograd.grad((log_prob, entropy), leaf, of_results)
    assert not grads[0][:, -1].any()
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-15)


def test_words_apart_are_refused(device):
    logits, target = random_rows(5, 7, device=device)
    with pytest.raises(
        RuntimeError, match=r"logits: expected the words .*\(stride 1\), got stride 5. Call .contiguous"
    ):
        maspo_ext.logprob(logits.t().contiguous().t(), target)
    with pytest.raises(
        RuntimeError, match=r"logits: expected leading dimensions that two strides describe.*contiguous"
    ):
        maspo_ext.logprob(
            logits.repeat(10, 1).view(2, 5, 5, 7)[:, ::2, ::2], torch.zeros(2, 3, 3, dtype=int, device=device)
        )


def logprob_call(**wrong):
    """A right call of logprob_backward_blocks_out, with what the ops above it would have made of their arguments."""
    logits, target = random_rows(4, 5, torch.float32)
    log_prob, entropy, state = torch.ops.maspo.logprob_forward(logits, target, 1.0, -100)
    call = {
        "dlog_prob": torch.ones_like(log_prob), "dentropy": None, "logits": logits, "target": target, "entropy": entropy, "state": state,
        "temperature": 1.0, "ignore_index": -100, "grads": [torch.empty_like(logits)],
    }  # fmt: skip
    return call | {name: value(call) for name, value in wrong.items()}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"logits": lambda c: c["logits"].int()}, r"logits: expected a dtype of floats, got Int\. Cast them"),
        ({"target": lambda c: c["target"].int()}, r"target: expected contiguous int64 .* one per row of \[4, 5\], got Int of shape \[4\]\. Call"),
        ({"target": lambda c: c["target"][:3]}, r"target: expected .*, got Long of shape \[3\]\. Call torch.ops.maspo.logprob"),
        ({"first_word": lambda c: 3}, r"first_word: expected 0 to all_words - 5 = 0, got 3\. Where in the vocabulary of all_words = 5"),
        ({"state": lambda c: c["state"].float()}, r"state: expected what logprob_forward returned.*, got Float of shape \[4, 2\]\. Pass them"),
        ({"dlog_prob": lambda c: c["dlog_prob"][:3]}, r"dlog_prob, .*, got Float of shape \[3\]\. Pass them"),
        ({"grads": lambda c: [c["grads"][0][:3]]}, r"grads: expected shape \[4, 5\] .*, got Float of shape \[3, 5\]\. Make it"),
        ({"grads": lambda c: [c["grads"][0].double()]}, r"grads: expected .* the same arithmetic, got Double of shape \[4, 5\]\. Make it"),
        ({"grads": lambda c: [c["logits"].view(torch.bfloat16)[:, :5]]}, r"grads: expected the dtype and strides of logits, since .* got others\. Pass"),
        ({"grads": lambda c: []}, r"grads: expected those of all 5 words, got those of 0\. Pass one tensor like logits, or one for each"),
        ({"grads": lambda c: [c["grads"][0][:, :4]]}, r"grads: expected those of all 5 words, got those of 4\. Pass"),
        ({"grads": lambda c: c["grads"] * 2}, r"grads: expected shape \[4, 5\] \(that of logits\) or blocks of its words.* of shape \[4, 5\]\. Make it"),
        ({"grads": lambda c: [c["grads"][0][:, :3], c["grads"][0][:, 3:].half()]}, r"grads: expected .* one dtype .*, got Half of shape \[4, 2\]\. Make it"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_the_kernels_are_safe_below_the_validation_too(wrong, message):
    torch.ops.maspo.logprob_backward_blocks_out(**logprob_call())
    with pytest.raises(RuntimeError, match=f"maspo_ext: .*{message}"):
        torch.ops.maspo.logprob_backward_blocks_out(**logprob_call(**wrong))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_of_blocks_of_words_goes_to_a_place_for_each(dtype, device):
    """In steps of the kernels and beside them; more than one launch takes."""
    logits, target = (value.to(device) for value in random_rows(3, 9000, dtype))
    _, entropy, state = torch.ops.maspo.logprob_forward(logits, target, 1.0, -100)
    arguments = (torch.ones_like(entropy), None, logits, target, entropy, state, 1.0, -100)
    whole = torch.ops.maspo.logprob_backward(*arguments)
    sizes = [1, 4096, 0, 7, 512, 2, 3, 1000, 64, 3315]
    blocks = [torch.empty(3, size + 5, dtype=dtype, device=device)[:, :size] for size in sizes]
    torch.ops.maspo.logprob_backward_blocks_out(*arguments, grads=blocks)
    assert torch.equal(torch.cat(blocks, 1), whole)
