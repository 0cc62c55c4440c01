"""``linear_loss`` does not use a masked token; an unmasked one it always does."""

import pytest
import torch

import maspo_ext

from ..op.cases import AGG_MODES, DEFAULT_METHODS, FLOAT_DTYPES, NONFINITE_COUNT, every_mode
from .cases import assert_same_bits, run_loss
from .test_linear_loss import FRONT_OPTIONS, WORDS, batch_of, of_mode

linear_loss = maspo_ext.linear_loss
OF_TOKENS = ("hidden", "old_log_prob", "advantages", "rollout_is_weights", "ref_log_prob")
BUDGETS = [1, 4 * WORDS * 7, None]


def dirtied(arguments, masked, value):
    dirty = dict(arguments)
    for name in OF_TOKENS:
        dirty[name] = arguments[name].clone()
        dirty[name][masked] = value
    wrong = torch.tensor([-1, WORDS, 2**40, -(2**40)], device=masked.device)
    wrong = wrong[torch.arange(masked.numel(), device=masked.device) % 4].view(masked.shape)
    return {**dirty, "target": torch.where(masked, wrong, arguments["target"])}


@pytest.mark.parametrize("memory_budget", BUDGETS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@every_mode
def test_masked_garbage_changes_no_bit(method, dtype, memory_budget, device):
    arguments = batch_of(method, dtype, device)
    masked = ~arguments["response_mask"]
    keywords = {**of_mode(method, **FRONT_OPTIONS), "memory_budget": memory_budget}
    clean = run_loss(linear_loss, arguments, **keywords)
    assert clean[0].isfinite() and clean[4].any() and not any(value[masked].any() for value in clean[2:5])
    for value in (torch.nan, torch.inf, -torch.inf):
        assert_same_bits(run_loss(linear_loss, dirtied(arguments, masked, value), **keywords), clean)


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("counts", ["local", "global"])
@every_mode
def test_batch_without_tokens(method, counts, loss_agg_mode, device):
    counts = method.global_counts if counts == "global" else {}
    arguments = batch_of(method, device=device)
    arguments["response_mask"] = torch.zeros_like(arguments["response_mask"])
    arguments = dirtied(arguments, ~arguments["response_mask"], torch.nan)
    keywords = of_mode(method, **FRONT_OPTIONS, loss_agg_mode=loss_agg_mode, **counts)
    loss, stats, log_prob, entropy, *grads = run_loss(linear_loss, arguments, **keywords)
    assert float(loss) == 0 and not any(value.any() for value in (log_prob, entropy, *grads))
    assert method.mode == "bapo" or not stats.any()


@every_mode
def test_nan_at_a_valid_token_propagates(method, device):
    arguments = batch_of(method, device=device)
    arguments["response_mask"][1, 3] = True
    arguments["advantages"][1, 3] = 1.0
    if method.mode == "bapo":
        method = method.with_(ratio_lower_max=None, ratio_upper_max=None)  # a NaN ends the search
    keywords = of_mode(method, memory_budget=4 * WORDS * 7)
    clean = run_loss(linear_loss, arguments, **keywords)
    dirty = {**arguments, "old_log_prob": arguments["old_log_prob"].clone()}
    dirty["old_log_prob"][1, 3] = torch.nan
    loss, stats, log_prob, entropy, hidden, *_ = run_loss(linear_loss, dirty, **keywords)
    assert loss.isnan() and hidden[1, 3].isnan().all() and float(stats[NONFINITE_COUNT]) == 1
    assert_same_bits((log_prob, entropy), clean[2:4])
    others = hidden.clone()
    others[1, 3] = clean[4][1, 3]
    assert_same_bits([others], [clean[4]])


def test_nan_in_the_hidden_state_of_a_valid_token_propagates(device):
    arguments = batch_of(DEFAULT_METHODS["maspo"], device=device)
    arguments["response_mask"][1, 3] = True
    arguments["hidden"][1, 3, 0] = torch.nan
    loss, _, log_prob, _, hidden, weight, _ = run_loss(linear_loss, arguments)
    assert loss.isnan() and log_prob.isnan().sum() == 1 and hidden[1, 3].isnan().all() and weight.isnan().any()
    assert hidden.isnan().any(-1).sum() == 1
