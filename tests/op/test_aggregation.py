"""From token losses to one number: five modes, local and global counts, micro-batches and data-parallel ranks."""

import pytest
import torch

from .cases import AGG_MODES, GLOBAL_COUNTS, assert_close, assert_same_bits, op, random_batch, reference, run

COUNTS = {
    "local": {},
    "global": GLOBAL_COUNTS,
    "both": {"batch_num_tokens": 977, "global_batch_size": 31},
    "factor": {"loss_scale_factor": 3.5},
    "all": {**GLOBAL_COUNTS, "loss_scale_factor": 3.5},
}


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-13), (torch.float32, 2e-5)], ids=str)
def test_like_the_reference(dtype, rtol, loss_agg_mode, counts, device):
    batch = random_batch(7, 40, dtype=dtype, device=device)
    keywords = {"loss_agg_mode": loss_agg_mode, **COUNTS[counts]}
    assert_close(run(batch, **keywords), run(batch, reference, **keywords), rtol)


# With ratio 1 a token's loss is -A. Rows have 3, 0 and 1 tokens of 4: sums -6, -, -9.
BY_HAND = [
    ("token-mean", {}, -15 / 4),
    ("token-sum", {}, -15),
    ("seq-mean-token-sum", {}, -15 / 2),
    ("seq-mean-token-mean", {}, (-6 / 3 - 9) / 2),
    ("seq-mean-token-sum-norm", {}, -15 / 2 / 4),
    ("token-mean", {"dp_size": 2, "batch_num_tokens": 10}, -15 * 2 / 10),
    ("token-sum", {"dp_size": 2}, -15 * 2),
    ("seq-mean-token-sum", {"dp_size": 2, "global_batch_size": 5}, -15 * 2 / 5),
    ("seq-mean-token-mean", {"dp_size": 2, "global_batch_size": 5}, (-6 / 3 - 9) * 2 / 5),
    ("seq-mean-token-sum-norm", {"dp_size": 2, "global_batch_size": 5}, -15 * 2 / 5 / 4),
    ("seq-mean-token-sum-norm", {"dp_size": 2, "global_batch_size": 5, "loss_scale_factor": 8}, -15 * 2 / 5 / 8),
    ("seq-mean-token-sum-norm", {"loss_scale_factor": 0.5}, -15 / 2 / 0.5),
    # Counts and factors that a mode has no use for.
    ("token-mean", {"loss_scale_factor": 8}, -15 / 4),
    ("token-mean", {"batch_num_tokens": 10, "global_batch_size": 5}, -15 / 10),
    ("token-sum", {"batch_num_tokens": 10, "global_batch_size": 5, "loss_scale_factor": 8}, -15),
    ("seq-mean-token-sum", {"batch_num_tokens": 10, "global_batch_size": 5, "loss_scale_factor": 8}, -15 / 5),
]


@pytest.mark.parametrize("function", [op, reference], ids=["op", "reference"])
@pytest.mark.parametrize("loss_agg_mode, counts, expected", BY_HAND)
def test_by_hand(loss_agg_mode, counts, expected, function, device):
    zeros = torch.zeros(3, 4, dtype=torch.float64, device=device)
    advantages = torch.arange(1.0, 13.0, dtype=torch.float64, device=device).reshape(3, 4)
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], device=device)
    loss, _ = function(zeros, zeros, advantages, mask, loss_agg_mode=loss_agg_mode, **counts)
    assert float(loss) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
def test_local_counts_given_explicitly_change_no_bit(loss_agg_mode, device):
    batch = random_batch(6, 20, device=device)
    mask = batch["response_mask"]
    counts = {
        "batch_num_tokens": int(mask.sum()),
        "global_batch_size": int(mask.any(-1).sum()),
        "loss_scale_factor": 20.0,
    }
    assert counts["global_batch_size"] == 5
    assert_same_bits(run(batch, loss_agg_mode=loss_agg_mode, **counts), run(batch, loss_agg_mode=loss_agg_mode))


def parts_of(batch, pieces):
    """The batch cut into micro-batches of rows, and the counts of the whole."""
    mask = batch["response_mask"]
    counts = {"batch_num_tokens": int(mask.sum()), "global_batch_size": int(mask.any(-1).sum())}
    rows = torch.arange(mask.shape[0], device=mask.device)
    return [{name: value[part] for name, value in batch.items()} for part in rows.tensor_split(pieces)], counts


@pytest.mark.parametrize("pieces", [2, 3, 12])
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
def test_micro_batches_with_global_counts_give_the_gradient_of_one_batch(loss_agg_mode, pieces, device):
    batch = random_batch(12, 20, device=device)  # of 12 pieces one has no token at all
    whole = run(batch, loss_agg_mode=loss_agg_mode)
    parts, counts = parts_of(batch, pieces)
    results = [run(part, loss_agg_mode=loss_agg_mode, **counts) for part in parts]
    torch.testing.assert_close(sum(result.loss for result in results), whole.loss, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(torch.cat([result.grad for result in results]), whole.grad, rtol=1e-14, atol=0)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
def test_averaged_gradients_of_ranks_are_those_of_the_whole_batch(loss_agg_mode, ranks, device):
    """A trainer averages a shared parameter's gradient over ranks; here the parameter shifts every log_prob."""
    batch = random_batch(12, 20, device=device)

    def gradient_of_shift(part, **keywords):
        shift = torch.zeros((), dtype=torch.float64, device=device, requires_grad=True)
        loss, _ = op(**{**part, "log_prob": part["log_prob"] + shift}, loss_agg_mode=loss_agg_mode, **keywords)
        return torch.autograd.grad(loss, shift)[0]

    parts, counts = parts_of(batch, ranks)
    of_ranks = [gradient_of_shift(part, dp_size=ranks, **counts) for part in parts]
    torch.testing.assert_close(sum(of_ranks) / ranks, gradient_of_shift(batch), rtol=1e-12, atol=0)


def test_a_large_batch_of_float32_sums_loses_no_digits(device):
    """A mean of a million tokens with e^20 among them, where a float32 running sum would be off by percents."""
    rows, cols = 64, 16384
    ones = torch.ones(rows, cols, device=device)
    log_prob = torch.zeros(rows, cols, device=device)
    log_prob[::7, ::1000] = 19.0
    batch = {"log_prob": log_prob, "old_log_prob": 0 * ones, "advantages": -ones, "response_mask": ones.bool()}
    result = run(batch)
    truth = log_prob.double().exp().mean()
    assert abs(float(result.loss.double() / truth) - 1) < 1e-6
    assert float(result.stats[9]) == pytest.approx(float(truth), rel=1e-6)  # actor/ratio_mean
