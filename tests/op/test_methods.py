"""Every method against its plain-torch twin: values, gradients and all statistics."""

import pytest
import torch

import maspo_ext
from maspo_ext.methods.base import TokenLoss

from .cases import (
    AGG_MODES,
    DEFAULT_METHODS,
    HALF_DTYPES,
    OPTIONS,
    assert_close,
    assert_same_bits,
    assert_same_in_half,
    converted,
    every_method,
    every_mode,
    reference,
    run,
)

RTOL = {torch.float64: 1e-12, torch.float32: 2e-5}
# Around the sizes at which the engines cut: 512 tokens staged at a time, 4096 tokens of a row in one piece.
SIZES = [(1, 1), (2, 7), (3, 511), (2, 512), (3, 513), (2, 4095), (1, 4096), (2, 4097), (2, 8193), (1001, 3), (33, 513)]


def assert_like_the_reference(batch, **keywords):
    result = run(batch, **keywords)
    truth = run(converted(batch, torch.float64), reference, **keywords)
    assert truth.grad.any() or not (batch["response_mask"] * batch["advantages"]).any()
    assert_close(result, truth, RTOL[batch["log_prob"].dtype])


@pytest.mark.parametrize("rows, cols", SIZES)
@pytest.mark.parametrize("dtype", RTOL, ids=str)
@every_method
def test_sizes(method, dtype, rows, cols, device):
    batch = method.batch(rows, cols, dtype=dtype, device=device)
    # The last token counts: a lost tail shows.
    batch["response_mask"][-1, -1], batch["advantages"][-1, -1] = True, -1.5
    batch["log_prob"][-1, -1] = batch["old_log_prob"][-1, -1] + 0.05
    for loss_agg_mode in ("token-sum", "seq-mean-token-mean"):
        keywords = {**method.keywords, "loss_agg_mode": loss_agg_mode}
        assert_like_the_reference(batch, **keywords)
        assert run(batch, **keywords).grad[-1, -1] != 0


@pytest.mark.parametrize("counts", ["local", "global", "factor"])
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("dtype", RTOL, ids=str)
@every_method
def test_aggregation(method, dtype, loss_agg_mode, counts, device):
    counts = {"local": {}, "global": method.global_counts, "factor": {"loss_scale_factor": 3.5}}[counts]
    batch = method.batch(7, 40, dtype=dtype, device=device, spread=1.5)
    assert_like_the_reference(batch, **method.keywords, loss_agg_mode=loss_agg_mode, **counts)


@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.float64], ids=str)
@every_method
def test_masks_are_weights(method, mask_dtype, device):
    batch = method.batch(7, 40, device=device, mask_dtype=mask_dtype)
    batch["response_mask"] = batch["response_mask"] * torch.tensor([1, 2, 3, 0], device=device).repeat(10)
    if mask_dtype.is_floating_point:
        batch["response_mask"] *= 0.3
    assert_like_the_reference(batch, **method.keywords)


@pytest.mark.parametrize("dtype", RTOL, ids=str)
@every_method
def test_extremes(method, dtype, device):
    """Log-ratios at, near and beyond the clamp, and tokens of hardly any probability: each gradient on its own."""
    differences = [0.0, 0.3, -0.3, 3.0, -3.0, 12.0, -12.0, 19.75, -19.75, 20.0, -20.0, 20.25, -20.25, 60.0, -60.0]
    old = [0.5, 0.0, -1.0, -30.0, -79.0, -81.0, -88.0, -95.0, -105.0, -120.0, -800.0, -torch.inf]
    advantages = torch.tensor([2.0, -2.0, 0.0, 1e-3, -400.0], dtype=dtype, device=device)
    difference, old_log_prob, advantage = torch.meshgrid(
        torch.tensor(differences, dtype=dtype, device=device), torch.tensor(old, dtype=dtype, device=device), advantages,
        indexing="ij",
    )  # fmt: skip
    log_prob = torch.where(old_log_prob.isinf(), difference, old_log_prob + difference)
    tensors = {"log_prob": log_prob, "old_log_prob": old_log_prob, "advantages": advantage}
    batch = {name: value.reshape(len(differences), -1) for name, value in tensors.items()}
    batch["response_mask"] = torch.ones_like(batch["log_prob"])
    batch["entropy"] = batch["log_prob"].cos().abs()
    keywords = {**method.keywords, "loss_agg_mode": "token-sum"}
    result, truth = run(batch, **keywords), run(converted(batch, torch.float64), reference, **keywords)
    assert truth.loss.isfinite() and truth.grad.isfinite().all()
    torch.testing.assert_close(result.grad.double(), truth.grad, rtol=RTOL[dtype], atol=1e-30)
    assert_close(result, truth, RTOL[dtype])


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["without options", "with options"])
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@every_method
def test_half_dtypes(method, dtype, options, device):
    batch = method.full_batch if options else method.batch
    assert_same_in_half(batch(4, 600, dtype=dtype, device=device), **method.keywords, **method.takes(options))


def test_grpo_is_ppo(device):
    batch = DEFAULT_METHODS["ppo"].batch(7, 40, device=device)
    assert_same_bits(run(batch, **DEFAULT_METHODS["grpo"].keywords), run(batch, **DEFAULT_METHODS["ppo"].keywords))


@pytest.mark.parametrize(
    "mode, hyper",
    [
        ("clip_higher", {"clip_ratio_high": 0.2, "clip_ratio_c": 3.0}),
        ("bapo", {"ratio_lower_start": 0.8, "ratio_lower_max": None, "ratio_upper_max": None}),
        ("entropy_adv", {"alpha": 0.0, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}),
    ],
    ids=["clip_higher", "bapo", "entropy_adv"],
)
def test_methods_that_come_to_ppo(mode, hyper, device):
    """Their loss and gradient, bit for bit, where their own part has no effect."""
    method = DEFAULT_METHODS[mode].with_(**hyper)
    batch = method.batch(7, 40, device=device)
    result = run(batch, **method.keywords)
    batch.pop("entropy", None)
    ppo = run(batch, **DEFAULT_METHODS["ppo"].keywords)
    assert_same_bits(result._replace(stats=ppo.stats), ppo)


@every_mode
def test_on_policy_gradient_is_the_advantage(method, device):
    """At ratio 1 all methods have the policy gradient, whatever their loss is."""
    batch = method.batch(7, 40, device=device, weights=False)
    batch["log_prob"] = batch["old_log_prob"].clone()
    if method.mode == "entropy_adv":
        batch["entropy"] = torch.zeros_like(batch["entropy"])
    result = run(batch, **method.keywords, loss_agg_mode="token-sum")
    expected = torch.where(batch["response_mask"], -batch["advantages"], 0.0)
    torch.testing.assert_close(result.grad, expected, rtol=1e-15, atol=0)


class LogProbTimesAdvantage(maspo_ext.PpoConfig):
    """A formula whose gradient does not go through the ratio."""

    def token_loss(self, token):
        return TokenLoss(-token.advantages * token.log_prob, None)


@pytest.mark.parametrize(
    "difference, advantage, passes",
    [(0.5, -1.0, True), (2.0, -1.0, False), (2.0, 1.0, True), (20.0, 1.0, True), (20.5, 1.0, False), (-20.0, -1.0, True), (-20.5, -1.0, False)],
)
def test_log_prob_of_a_formula_has_a_gradient_where_the_ratio_has_one(difference, advantage, passes):
    """Not beyond the clamp, nor, for A < 0, beyond a ratio of 3; a NaN is let through."""
    old, one = torch.tensor([[-0.25]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for value in (difference, torch.nan):
        log_prob = (old + value).requires_grad_()
        loss, _ = maspo_ext.reference.unchecked_loss(LogProbTimesAdvantage(), log_prob, old, advantage * one, one)
        loss.backward()
        assert loss.isnan() if value != value else float(loss.detach()) == -advantage * (difference - 0.25)
        assert float(log_prob.grad) == -advantage * (passes or value != value)
