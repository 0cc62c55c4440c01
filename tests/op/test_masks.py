"""A masked token never matters; an unmasked one always does."""

import pytest
import torch

from .cases import (
    AGG_MODES,
    ALL_TENSORS,
    NONFINITE_COUNT,
    OPTIONS,
    TENSORS,
    assert_close,
    assert_same_bits,
    bits,
    every_method,
    every_mode,
    op,
    random_batch,
    reference,
    run,
)

INPUTS = [name for name in TENSORS if name != "response_mask"]
ALL_INPUTS = [name for name in ALL_TENSORS if name != "response_mask"]


def noise(like):
    """Random bits: NaN with payloads, subnormals, everything."""
    generator = torch.Generator().manual_seed(7)
    integers = bits(like)
    return (
        torch.randint(-(2**63), 2**63 - 1, like.shape, generator=generator)
        .to(integers.device)
        .to(integers.dtype)
        .view(like.dtype)
    )


GARBAGE = {
    "nan": lambda like: torch.full_like(like, torch.nan),
    "inf": lambda like: torch.full_like(like, torch.inf),
    "-inf": lambda like: torch.full_like(like, -torch.inf),
    "1e38": lambda like: torch.full_like(like, 1e38),
    "-1e38": lambda like: torch.full_like(like, -1e38),
    "noise": noise,
}


@pytest.mark.parametrize("names", [[name] for name in INPUTS] + [INPUTS], ids="+".join)
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
def test_masked_garbage_changes_no_bit(loss_agg_mode, garbage, names, device):
    # 600 columns: full runs of 512 tokens are read in place, the rest through a buffer.
    for dtype, gate_gradient in ((torch.float32, False), (torch.float64, True), (torch.bfloat16, False)):
        batch = random_batch(4, 600, dtype=dtype, device=device)
        masked = batch["response_mask"] == 0
        dirty = {**batch, **{name: torch.where(masked, GARBAGE[garbage](batch[name]), batch[name]) for name in names}}
        keywords = {"loss_agg_mode": loss_agg_mode, "gate_gradient": gate_gradient}
        clean = run(batch, **keywords)
        assert clean.loss.isfinite() and clean.grad.any() and not clean.grad[masked].any()
        assert_same_bits(run(dirty, **keywords), clean)


def dirtied(batch, garbage, names):
    masked = batch["response_mask"] == 0
    return {**batch, **{name: torch.where(masked, GARBAGE[garbage](batch[name]), batch[name]) for name in names}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@every_method
def test_masked_garbage_changes_no_bit_of_any_method(method, loss_agg_mode, dtype, device):
    batch = method.full_batch(4, 600, dtype=dtype, device=device)
    keywords = {**method.keywords, **method.takes(OPTIONS), "loss_agg_mode": loss_agg_mode}
    clean = run(batch, **keywords)
    assert clean.loss.isfinite() and clean.grad.any() and clean.stats.isfinite().all()
    for garbage in GARBAGE:
        assert_same_bits(run(dirtied(batch, garbage, ALL_INPUTS), **keywords), clean)


@pytest.mark.parametrize("name", ["entropy", "ref_log_prob"])
@pytest.mark.parametrize("garbage", GARBAGE)
@every_mode
def test_masked_garbage_of_the_options_alone(method, garbage, name, device):
    batch = method.full_batch(4, 30, dtype=torch.float32, device=device)
    keywords = {**method.keywords, **method.takes(OPTIONS)}
    assert_same_bits(run(dirtied(batch, garbage, [name]), **keywords), run(batch, **keywords))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("garbage", ["nan", "inf", "-inf"])
def test_garbage_in_empty_rows_given_once_per_row(garbage, name, device):
    batch = random_batch(4, 9, device=device)
    if name not in ("advantages", "rollout_is_weights"):
        dirty = {**batch, name: batch[name].clone()}
    else:
        batch[name] = batch[name][:, 0].clone()
        dirty = {**batch, name: batch[name].clone()}
    dirty[name][0] = float(garbage)
    assert_same_bits(run(dirty), run(batch))


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize(
    "global_counts", [{}, {"batch_num_tokens": 100, "global_batch_size": 10, "dp_size": 2}], ids=["local", "global"]
)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_batch_without_tokens(garbage, global_counts, loss_agg_mode, device):
    batch = random_batch(3, 40, dtype=torch.float32, device=device)
    batch["response_mask"] = torch.zeros_like(batch["response_mask"])
    batch.update({name: GARBAGE[garbage](batch[name]) for name in INPUTS})
    result = run(batch, loss_agg_mode=loss_agg_mode, **global_counts)
    assert not any(tensor.any() for tensor in result)  # NaN would count as true


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("counts", ["local", "global"])
@every_method
def test_batch_without_tokens_of_any_method(method, counts, loss_agg_mode, device):
    counts = method.global_counts if counts == "global" else {}
    batch = method.full_batch(3, 40, device=device)
    batch["response_mask"] = torch.zeros_like(batch["response_mask"])
    batch.update({name: GARBAGE["noise"](batch[name]) for name in ALL_INPUTS})
    loss, grad, stats = run(batch, **method.keywords, **method.takes(OPTIONS), loss_agg_mode=loss_agg_mode, **counts)
    assert float(loss) == 0.0 and not grad.any()
    if method.mode == "bapo":
        bounds = [method.config.ratio_lower_start, method.config.ratio_upper_start, torch.inf]
        assert stats[3:6].tolist() == bounds
        stats[3:6] = 0
    assert not stats.any()


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@every_method
def test_empty_rows_of_any_method_are_left_out(method, loss_agg_mode, device):
    batch = method.full_batch(5, 12, device=device)
    batch["response_mask"][3] = False
    keywords = {**method.keywords, **method.takes(OPTIONS), "loss_agg_mode": loss_agg_mode}
    keep = torch.tensor([1, 2, 4], device=device)
    whole = run(batch, **keywords)
    kept = run({name: value[keep] for name, value in batch.items()}, **keywords)
    assert_close(whole._replace(grad=whole.grad[keep]), kept, 1e-14)
    assert not whole.grad[[0, 3]].any()


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
def test_empty_rows_are_left_out(loss_agg_mode, device):
    batch = random_batch(5, 12, device=device)
    batch["response_mask"][3] = False
    keep = torch.tensor([1, 2, 4], device=device)
    whole = run(batch, loss_agg_mode=loss_agg_mode)
    kept = run({name: value[keep] for name, value in batch.items()}, loss_agg_mode=loss_agg_mode)
    assert_close(whole._replace(grad=whole.grad[keep]), kept, 1e-14)
    assert not whole.grad[[0, 3]].any()


# dtype and width choose between reading in place and through a buffer.
@pytest.mark.parametrize("dtype, cols", [(torch.float32, 512), (torch.float64, 5), (torch.float16, 5)], ids=str)
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("gate_gradient", [False, True])
def test_nan_at_a_valid_token_propagates(gate_gradient, loss_agg_mode, name, dtype, cols, device):
    batch = random_batch(3, cols, dtype=dtype, device=device)
    keywords = {"loss_agg_mode": loss_agg_mode, "gate_gradient": gate_gradient}
    batch["response_mask"][1, 3] = True
    clean = run(batch, **keywords)
    batch[name][1, 3] = torch.nan
    result = run(batch, **keywords)
    assert result.loss.isnan() and result.grad[1, 3].isnan()
    assert float(clean.stats[NONFINITE_COUNT]) == 0 and float(result.stats[NONFINITE_COUNT]) == 1
    others = result.grad.clone()
    others[1, 3] = clean.grad[1, 3]
    assert torch.equal(bits(others), bits(clean.grad))  # only this token's


@pytest.mark.parametrize("name", ALL_INPUTS)
@pytest.mark.parametrize("advantage", [1.5, -1.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@every_method
def test_nan_at_a_valid_token_propagates_in_any_method(method, dtype, advantage, name, device):
    batch = method.full_batch(3, 40, dtype=dtype, device=device)
    batch["response_mask"][1, 3], batch["advantages"][1, 3] = True, advantage
    clean_method = method
    if method.mode == "bapo" and name not in ("rollout_is_weights", "ref_log_prob"):
        clean_method = method.with_(ratio_lower_max=None, ratio_upper_max=None)  # a NaN ends the search
    clean = run(batch, **clean_method.keywords, **clean_method.takes(OPTIONS))
    batch[name][1, 3] = torch.nan
    result = run(batch, **method.keywords, **method.takes(OPTIONS))
    assert result.loss.isnan() and result.grad[1, 3].isnan()
    assert float(clean.stats[NONFINITE_COUNT]) == 0 and float(result.stats[NONFINITE_COUNT]) == 1
    others = result.grad.clone()
    others[1, 3] = clean.grad[1, 3]
    assert clean.grad.any() and torch.equal(bits(others), bits(clean.grad))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@every_mode
def test_nonfinite_inputs_of_options_are_counted_once_per_token(method, value, device):
    batch = method.full_batch(4, 40, device=device)
    for name, columns in {"entropy": slice(5, 9), "ref_log_prob": slice(7, 12)}.items():
        batch[name][:, columns] = value
    expected = batch["response_mask"][:, 5:12].sum()
    stats = op(**batch, **method.keywords, **method.takes(OPTIONS))[1]
    assert float(stats[NONFINITE_COUNT]) == float(expected) > 5
    # What no option uses is no input.
    unused = {name: value for name, value in batch.items() if name not in ("entropy", "ref_log_prob")}
    if method.mode != "entropy_adv":
        assert float(op(**unused, **method.keywords)[1][NONFINITE_COUNT]) == 0


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_nonfinite_valid_inputs_are_counted_once_per_token(value, name, device):
    batch = random_batch(4, 40, device=device)
    batch[name][:, 5:12] = value
    batch["old_log_prob"][1, 7] = torch.nan  # a second one at a token that is counted already, or a token of its own
    batch["response_mask"][1, 7] = True
    expected = batch["response_mask"][:, 5:12].sum()
    stats = op(**batch)[1]
    assert float(stats[NONFINITE_COUNT]) == float(expected) > 5


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("mask_dtype", [torch.float64, torch.float32], ids=str)
def test_fractional_masks_are_weights(mask_dtype, loss_agg_mode, device):
    batch = random_batch(4, 9, device=device, mask_dtype=mask_dtype)
    fractions = torch.linspace(0.25, 2.0, 36, device=device).reshape(4, 9).to(mask_dtype)
    batch["response_mask"] = batch["response_mask"] * fractions
    result = run(batch, loss_agg_mode=loss_agg_mode)
    assert_close(result, run(batch, reference, loss_agg_mode=loss_agg_mode), 1e-12)

    # By hand: a weight is a factor of the token's gradient, and counts as that many tokens.
    ones = {**batch, "response_mask": (batch["response_mask"] != 0).to(mask_dtype)}
    plain = run(ones, loss_agg_mode="token-sum").grad * batch["response_mask"]
    tokens = batch["response_mask"].double().sum(-1, keepdim=True).clamp(min=1e-9)
    divisor = {
        "token-mean": batch["response_mask"].double().sum(),
        "token-sum": 1,
        "seq-mean-token-sum": 3,
        "seq-mean-token-mean": 3 * tokens,
        "seq-mean-token-sum-norm": 3 * 9,
    }[loss_agg_mode]
    torch.testing.assert_close(result.grad, plain / divisor, rtol=1e-12, atol=0)


@pytest.mark.parametrize("function", [op, reference], ids=["op", "reference"])
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
def test_labels_taken_for_a_mask_make_the_loss_nan(loss_agg_mode, function, device):
    """A count below 0 is none: a loss of 0 would let a run go on without learning."""
    batch = random_batch(4, 6, device=device)
    batch["response_mask"] = torch.full((4, 6), -100, device=device)
    batch["response_mask"][1] = 1
    loss, _ = function(**batch, loss_agg_mode=loss_agg_mode)
    assert loss.isnan()
    batch["response_mask"][:] = -100
    assert function(**batch, loss_agg_mode=loss_agg_mode)[0].isnan()
