"""Shapes, strides and dtypes: what a user may pass, and that it changes nothing but what it must."""

import pytest
import torch

from .cases import (
    AGG_MODES,
    ALL_TENSORS,
    ARITHMETIC,
    FLOAT_DTYPES,
    MASK_DTYPES,
    OPTIONS,
    TENSORS,
    assert_close,
    assert_same_bits,
    assert_same_in_half,
    converted,
    every_mode,
    op,
    random_batch,
    reference,
    run,
)

RTOL = {torch.float64: 1e-12, torch.float32: 2e-5}


def assert_mixed_dtypes(batch):
    exact = assert_same_in_half(batch)
    arithmetic = exact.loss.dtype
    truth = run(converted(converted(batch, arithmetic), torch.float64), reference)
    assert_close(exact, truth, RTOL[arithmetic])


@pytest.mark.parametrize("name", ["old_log_prob", "advantages", "rollout_is_weights"])
@pytest.mark.parametrize("other", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_every_mix_of_float_dtypes(dtype, other, name, device):
    batch = random_batch(4, 600, dtype=dtype, device=device)
    assert_mixed_dtypes({**batch, name: batch[name].to(other)})


@pytest.mark.parametrize("mask_dtype", MASK_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_every_mask_dtype(dtype, mask_dtype, device):
    assert_mixed_dtypes(random_batch(4, 600, dtype=dtype, device=device, mask_dtype=mask_dtype))


@pytest.mark.parametrize("value", [2, 123, -1, 3])
@pytest.mark.parametrize("mask_dtype", [torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integer_masks_are_weights(mask_dtype, value, device):
    batch = random_batch(4, 9, device=device, mask_dtype=mask_dtype)
    batch["response_mask"] = batch["response_mask"] * value + batch["response_mask"] * 4
    assert batch["response_mask"].max() == value + 4
    assert_close(run(batch, loss_agg_mode="token-sum"), run(batch, reference, loss_agg_mode="token-sum"), 1e-12)


def transposed(t):
    return t.t().contiguous().t()


def inside_a_larger_tensor(t):
    rows, cols = t.shape
    larger = torch.zeros(rows + 3, cols + 5, dtype=t.dtype, device=t.device)
    larger[1 : rows + 1, 3 : cols + 3] = t
    return larger[1 : rows + 1, 3 : cols + 3]


def every_second_column(t):
    return torch.stack([t, torch.ones_like(t)], dim=-1)[..., 0]


def every_second_row(t):
    return torch.stack([t, torch.ones_like(t)], dim=1)[:, 0]


LAYOUTS = [transposed, inside_a_larger_tensor, every_second_column, every_second_row]


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_change_no_bit(dtype, layout, name, device):
    batch = random_batch(5, 600, dtype=dtype, device=device)
    strided = {**batch, name: layout(batch[name])}
    assert torch.equal(strided[name], batch[name]) and strided[name].stride() != batch[name].stride()
    result = run(strided)
    assert_same_bits(result, run(batch))
    assert result.grad.is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_strides_of_all_inputs_at_once(layout, device):
    batch = random_batch(5, 600, device=device)
    assert_same_bits(run({name: layout(value) for name, value in batch.items()}), run(batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_mode
def test_strides_change_no_bit_of_any_method(method, dtype, device):
    """Each tensor alone, entropy and ref_log_prob too; BAPO reads them in a pass of its own."""
    batch = method.full_batch(5, 600, dtype=dtype, device=device)
    expected = run(batch, **method.keywords, **method.takes(OPTIONS))
    for name in ALL_TENSORS:
        for layout in LAYOUTS:
            assert_same_bits(
                run({**batch, name: layout(batch[name])}, **method.keywords, **method.takes(OPTIONS)), expected
            )


@every_mode
def test_mixed_dtypes_of_every_method(method, device):
    batch = method.full_batch(5, 600, dtype=torch.bfloat16, device=device)
    mixed = dict(
        zip(
            ALL_TENSORS[1:],
            [torch.float32, torch.float16, torch.int8, torch.float64, torch.float32, torch.float16],
            strict=True,
        )
    )
    batch = {name: value.to(mixed.get(name, value.dtype)) for name, value in batch.items()}
    assert_same_in_half(batch, **method.keywords, **method.takes(OPTIONS))


@pytest.mark.parametrize("shape", [(5, 1), (5,)], ids=str)
@every_mode
def test_one_value_per_row_with_every_method(method, shape, device):
    batch = method.full_batch(5, 600, device=device)
    first = {name: batch[name][:, :1] for name in ("advantages", "rollout_is_weights")}
    keywords = {**method.keywords, **method.takes(OPTIONS)}
    expected = run({**batch, **{name: value.repeat(1, 600) for name, value in first.items()}}, **keywords)
    assert_same_bits(
        run({**batch, **{name: value.reshape(shape) for name, value in first.items()}}, **keywords), expected
    )


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
@every_mode
def test_empty_shapes_of_every_method(method, shape, device):
    result = run(method.full_batch(*shape, device=device), **method.keywords, **method.takes(OPTIONS))
    assert float(result.loss) == 0.0 and result.grad.shape == shape
    assert not result.stats.isnan().any() and float(result.stats.abs().sum()) == (
        torch.inf if method.mode == "bapo" else 0.0
    )


@pytest.mark.parametrize(
    "index", [(slice(0, 1), slice(None)), (slice(None), slice(0, 1))], ids=["one row", "one column"]
)
@pytest.mark.parametrize("name", TENSORS)
def test_expanded_inputs(name, index, device):
    batch = random_batch(5, 600, dtype=torch.float32, device=device)
    batch["response_mask"] = ~batch["response_mask"]  # row 0 is full
    batch[name] = batch[name][index].expand(5, 600)
    assert 0 in batch[name].stride()
    assert_same_bits(run(batch), run({**batch, name: batch[name].contiguous()}))


@pytest.mark.parametrize("name", ["advantages", "rollout_is_weights"])
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("shape", [(5, 1), (5,)], ids=str)
def test_one_value_per_row(shape, loss_agg_mode, name, device):
    batch = random_batch(5, 7, device=device)
    per_row = {**batch, name: batch[name][:, 0].reshape(shape).clone()}
    result = run(per_row, loss_agg_mode=loss_agg_mode)
    assert_same_bits(result, run({**batch, name: batch[name][:, :1].repeat(1, 7)}, loss_agg_mode=loss_agg_mode))
    assert_close(result, run(per_row, reference, loss_agg_mode=loss_agg_mode), 1e-12)


def test_square_batch_takes_a_vector_per_row_not_per_column(device):
    batch = random_batch(4, 4, device=device)
    batch["advantages"] = batch["advantages"][:, 1].clone()
    assert_same_bits(run(batch), run({**batch, "advantages": batch["advantages"].unsqueeze(1).repeat(1, 4)}))


# Around the sizes at which the engines cut: 512 tokens staged at a time, 4096 tokens of a row in one piece.
SIZES = [(2, width) for width in (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 255, 256, 511, 512, 513, 4095, 4096, 4097, 8193)]
SIZES += [(1, 1), (1, 8193), (4097, 3), (10001, 1), (17, 512), (33, 513), (3, 20000)]


@pytest.mark.parametrize("rows, cols", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sizes(dtype, rows, cols, device):
    batch = random_batch(rows, cols, dtype=dtype, device=device)
    # The last token counts: a lost tail shows.
    batch["response_mask"][-1, -1] = True
    batch["advantages"][-1, -1] = -1.5
    for loss_agg_mode in ("token-sum", "seq-mean-token-mean"):
        result = run(batch, loss_agg_mode=loss_agg_mode)
        truth = run(converted(batch, torch.float64), reference, loss_agg_mode=loss_agg_mode)
        scale = result.grad.double().abs().sum()
        assert abs(result.loss.double() - truth.loss) <= 0.01 * RTOL[dtype] * scale
        assert_close(result._replace(loss=truth.loss), truth, RTOL[dtype])
        assert result.grad[-1, -1] != 0


@pytest.mark.parametrize("position", range(8193 * 2 - 40, 8193 * 2))
def test_a_single_token_anywhere_in_the_tail_is_seen(position, device):
    batch = random_batch(2, 8193, dtype=torch.float32, device=device)
    batch["response_mask"] = torch.zeros_like(batch["response_mask"])
    batch["response_mask"].view(-1)[position] = True
    batch["advantages"].view(-1)[position] = 1.5
    result = run(batch)
    assert result.grad.view(-1)[position] != 0 and int((result.grad != 0).sum()) == 1
    assert float(result.loss) == float(result.grad.view(-1)[position])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_empty_shapes(dtype, loss_agg_mode, shape, device):
    batch = random_batch(*shape, dtype=dtype, device=device)
    result = run(batch, loss_agg_mode=loss_agg_mode)
    assert result.loss.dtype == ARITHMETIC[dtype] and result.loss.shape == () and float(result.loss) == 0.0
    assert result.grad.dtype == dtype and result.grad.shape == shape
    assert not result.stats.any()
    per_row = {**batch, "advantages": torch.ones(shape[0], device=device)}
    assert_same_bits(run(per_row, loss_agg_mode=loss_agg_mode), result)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("dimension", ["row", "column"])
def test_offsets_beyond_32_bits(dimension, name, device):
    """Two rows or columns 2^31 elements apart; the memory between them is never touched, so a CPU need not have it."""
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 2**34:
        pytest.skip("needs 16 GiB of GPU memory")
    batch = random_batch(2, 2, dtype=torch.bfloat16, device=device, mask_dtype=torch.int8)
    batch["response_mask"] = torch.tensor([[1, 1], [0, 1]], dtype=torch.int8, device=device)
    far = 2**31 + 8
    storage = torch.empty(far + 16, dtype=batch[name].dtype, device=device)
    strided = storage.as_strided((2, 2), (far, 1) if dimension == "row" else (1, far))
    strided.copy_(batch[name])
    assert_same_bits(run({**batch, name: strided}), run(batch))


@pytest.mark.slow
def test_more_than_2_to_the_31_tokens(device):
    """One token expanded: no memory, but indices beyond 32 bits."""
    rows, cols = 2**16 + 1, 2**15
    batch = {
        name: value.expand(rows, cols) for name, value in random_batch(1, 1, dtype=torch.float32, device=device).items()
    }
    batch["response_mask"] = torch.ones(1, 1, dtype=torch.bool, device=device).expand(rows, cols)
    total, stats = op(**batch, loss_agg_mode="token-sum")
    one, one_stats = op(**{name: value[:1, :1] for name, value in batch.items()})
    # A lane of a GPU adds 128 float32 numbers one by one: of equal numbers the roundings do not cancel.
    rtol = 1e-6 if device == "cpu" else 1e-5
    torch.testing.assert_close(total, one * (rows * cols), rtol=rtol, atol=0)
    torch.testing.assert_close(stats, one_stats, rtol=rtol, atol=0)
