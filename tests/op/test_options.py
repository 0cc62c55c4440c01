"""What goes with every method: the dual clip, advantages shaped by entropy, the KL term, bounds of the rollout's weights."""

import math

import pytest
import torch

import maspo_ext

from .cases import (
    AGG_MODES,
    DEFAULT_METHODS,
    NONFINITE_COUNT,
    OPTIONS,
    assert_close,
    assert_same_bits,
    converted,
    every_method,
    every_mode,
    op,
    random_batch,
    reference,
    run,
)

RTOL = {torch.float64: 1e-12, torch.float32: 2e-5}
KL_TYPES = ("k1", "kl", "abs", "k2", "mse", "k3", "low_var_kl", "k3_unbounded")
ALL_KL_TYPES = [name + plus for name in KL_TYPES for plus in ("", "+")]
ALONE = {
    "dual clip": ((), {"dual_clip": True}),
    "entropy": (("entropy",), {"entropy_alpha": 0.3, "entropy_kappa": 1.5}),
    **{kl_type: (("ref_log_prob",), {"kl_coef": 0.4, "kl_type": kl_type}) for kl_type in ALL_KL_TYPES},
    "TIS": ((), {"rollout_is_upper": 1.2}),
    "IcePop": ((), {"rollout_is_lower": 0.7, "rollout_is_upper": 1.2}),
}


def stat(result, name, **options):
    return float(result.stats[maspo_ext.stat_names(**options).index(f"actor/{name}")])


def share(tokens, batch):
    """How many of the unmasked tokens are among ``tokens``."""
    return float((tokens & batch["response_mask"]).sum().double() / batch["response_mask"].sum())


def assert_like_the_reference(batch, **keywords):
    truth = run(converted(batch, torch.float64), reference, **keywords)
    assert truth.grad.any()
    assert_close(run(batch, **keywords), truth, RTOL[batch["log_prob"].dtype])


@pytest.mark.parametrize("option", ALONE)
@pytest.mark.parametrize("dtype", RTOL, ids=str)
@every_mode
def test_one_option_like_the_reference(method, dtype, option, device):
    tensors, keywords = ALONE[option]
    batch = method.batch(7, 600, dtype=dtype, device=device, spread=1.5)
    full = method.full_batch(7, 600, dtype=dtype, device=device, spread=1.5)
    batch |= {name: full[name] for name in tensors}
    assert_like_the_reference(batch, **method.keywords, **method.takes(keywords))


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("counts", ["local", "global"])
@pytest.mark.parametrize("dtype", RTOL, ids=str)
@every_method
def test_all_options_like_the_reference(method, dtype, counts, loss_agg_mode, device):
    batch = method.full_batch(7, 600, dtype=dtype, device=device, spread=1.5)
    counts = method.global_counts if counts == "global" else {}
    assert_like_the_reference(batch, **method.keywords, **method.takes(OPTIONS), **counts, loss_agg_mode=loss_agg_mode)


# Dual clip

# The loss of a token with A = -1 and old_log_prob 0 beyond the bound, where that is not the bound itself.
LOSS_AT_BOUND = {
    "sapo": lambda config, log_prob: 4 / config.tau_neg / (1 + math.exp(-config.tau_neg * (config.clip_ratio_c - 1)))
}


@pytest.mark.parametrize("dtype", RTOL, ids=str)
@every_method
def test_beyond_the_dual_clip_the_loss_is_that_at_the_bound(method, dtype, device):
    c = method.config.clip_ratio_c
    differences = [math.log(c) + 2**-10, math.log(c) + 0.5, 10.0, 20.0, 20.5, 60.0]
    log_prob = torch.tensor([differences], dtype=dtype, device=device)
    zeros = torch.zeros_like(log_prob)
    batch = {"log_prob": log_prob, "old_log_prob": zeros, "advantages": zeros - 1.5, "response_mask": zeros + 1}
    batch |= {"entropy": zeros}
    if method.mode == "bapo":
        method = method.with_(adv_ratio_target=0.0)  # a search would see other sums for other ratios
    keywords = {**method.keywords, "loss_agg_mode": "token-sum", "dual_clip": True}
    at_bound = LOSS_AT_BOUND.get(method.mode, lambda config, log_prob: c)
    for column, difference in enumerate(differences):
        result = run({name: value[:, column : column + 1] for name, value in batch.items()}, **keywords)
        assert float(result.grad) == 0.0 and stat(result, "pg_clipfrac_lower") == 1.0
        assert float(result.loss) == pytest.approx(1.5 * at_bound(method.config, difference), rel=1e-6)
    inside = {**batch, "log_prob": zeros + math.log(c) - 2**-10}
    result = run(inside, **keywords)
    assert result.grad.all() and stat(result, "pg_clipfrac_lower") == 0.0


@every_mode
def test_the_dual_clip_changes_only_negative_advantages_beyond_it(method, device):
    batch = method.batch(7, 600, device=device, spread=1.5)
    plain, dual = (run(batch, **method.keywords, dual_clip=dual_clip) for dual_clip in (False, True))
    ratio = (batch["log_prob"] - batch["old_log_prob"]).exp()
    beyond = (batch["advantages"] < 0) & (ratio > method.config.clip_ratio_c) & batch["response_mask"]
    fraction = share(beyond, batch)
    assert beyond.any() and stat(dual, "pg_clipfrac_lower") == pytest.approx(fraction, rel=1e-12)
    if method.config.dual_clip:
        assert_same_bits(dual, plain)  # they have it anyway
    else:
        assert torch.equal(dual.grad != plain.grad, beyond) and not dual.grad[beyond].any()
        assert stat(plain, "pg_clipfrac_lower") == pytest.approx(fraction if method.config.reports_dual_clip else 0.0, rel=1e-12)


# Advantages shaped by entropy


@pytest.mark.parametrize("alpha, kappa", [(0.4, 2.0), (0.1, 1.0), (3.0, 5.0), (0.0, 2.0)])
@pytest.mark.parametrize("dtype", RTOL, ids=str)
@every_mode
def test_entropy_is_the_method_on_shaped_advantages(method, dtype, alpha, kappa, device):
    batch = method.batch(7, 600, dtype=dtype, device=device, entropy=True)
    batch["entropy"] -= 0.1  # some below 0, as rounding gives
    keywords = {"entropy_alpha": alpha, "entropy_kappa": kappa}
    plain = method.mode
    if method.mode == "entropy_adv":
        method, keywords, plain = method.with_(alpha=alpha, kappa=kappa), {}, "clip_higher"
    result = run(batch, **method.keywords, **keywords)

    adv, entropy = batch["advantages"], batch.pop("entropy")
    # By a tensor: on a GPU torch divides by a number as it multiplies by its inverse.
    bonus = torch.minimum(alpha * entropy.clamp(min=0), adv.abs() / torch.full_like(adv, kappa))
    shaped = run({**batch, "advantages": adv + bonus}, **DEFAULT_METHODS[plain].keywords)
    assert_same_bits(result._replace(stats=shaped.stats), shaped)
    assert torch.equal(result.stats[:13], shaped.stats[:13])
    assert not alpha or not torch.equal(result.grad, run(batch, **DEFAULT_METHODS[plain].keywords).grad)
    mean = float((bonus.double() * batch["response_mask"]).sum() / batch["response_mask"].sum())
    assert stat(result, "entropy_adv_bonus", entropy_adv=True) == pytest.approx(mean, rel=1e-6)


def test_a_bonus_beside_large_advantages_is_seen(device):
    batch = {name: torch.zeros(1, 2, device=device) for name in ("log_prob", "old_log_prob")}
    batch |= {"advantages": torch.tensor([[1e8, 1.0]], device=device), "response_mask": torch.ones(1, 2, device=device)}
    for function in (op, reference):
        stats = function(**batch, entropy=torch.ones(1, 2, device=device), entropy_alpha=0.4)[1]
        assert stats[maspo_ext.stat_names("maspo", entropy_adv=True).index("actor/entropy_adv_bonus")].item() == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["advantages", "entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nan_is_no_bonus_of_the_other_input(dtype, name, device):
    """The mean of the bonus shows it, as the twin's does."""
    batch = random_batch(3, 70, dtype, device, entropy=True)
    batch["response_mask"][1, 20] = True
    batch[name][1, 20] = math.nan
    for loss in (op, reference):
        assert math.isnan(stat(run(batch, loss, entropy_alpha=0.3), "entropy_adv_bonus", entropy_adv=True))


def test_entropy_without_its_weight_changes_nothing(device):
    batch = random_batch(7, 40, device=device, entropy=True)
    without = {name: value for name, value in batch.items() if name != "entropy"}
    assert_same_bits(run(batch), run(without))


# KL


def kl_of(log_prob, ref_log_prob, kl_type):
    """verl 0.9.1's kl_penalty, written out, and TRL 1.16's k3."""
    if kl_type.endswith("+"):
        k2 = 0.5 * (log_prob - ref_log_prob).square()
        return k2 - k2.detach() + kl_of(log_prob, ref_log_prob, kl_type[:-1]).detach()
    if kl_type in ("k1", "kl"):
        return log_prob - ref_log_prob
    if kl_type == "abs":
        return (log_prob - ref_log_prob).abs()
    if kl_type in ("k2", "mse"):
        return 0.5 * (log_prob - ref_log_prob).square()
    if kl_type == "k3_unbounded":
        return torch.exp(ref_log_prob - log_prob) - (ref_log_prob - log_prob) - 1
    kl = torch.clamp(ref_log_prob - log_prob, min=-20, max=20)
    return torch.clamp(torch.exp(kl) - kl - 1, min=-10, max=10)


@pytest.mark.parametrize("threshold", [None, (0.7, 1.2)], ids=str)
@pytest.mark.parametrize("kl_type", ALL_KL_TYPES)
@every_mode
def test_kl_term_is_verls_or_trls_without_the_rollout_weights(method, kl_type, threshold, device):
    batch = method.batch(7, 600, device=device, ref_log_prob=True)
    batch["ref_log_prob"][:, ::5] += 30 * batch["ref_log_prob"][:, ::5].sin()  # both clamps of k3 are reached
    keywords = {"ratio_mode": method.mode, "loss_agg_mode": "seq-mean-token-mean", "rollout_is_threshold": threshold}

    def front(**arguments):
        output = maspo_ext.policy_loss(**arguments)
        return output.loss, output.stats.tensor

    result = run(batch, front, **keywords, kl_type=kl_type, kl_coef=0.3)
    without = run({**batch, "ref_log_prob": None}, front, **keywords)
    log_prob = batch["log_prob"].clone().requires_grad_()
    kl = kl_of(log_prob, batch["ref_log_prob"], kl_type)
    mask = batch["response_mask"]
    rows = (kl * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    (slope,) = torch.autograd.grad(0.3 * rows.sum() / 6, log_prob)
    torch.testing.assert_close(result.loss - without.loss, (0.3 * rows.sum() / 6).detach(), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(result.grad - without.grad, slope, rtol=1e-11, atol=1e-15)
    assert stat(result, "ref_kl", ref_kl=True) == pytest.approx(
        float((kl.detach() * mask).sum() / mask.sum()), rel=1e-12
    )
    assert torch.equal(result.stats[:14], without.stats[:14])


# log_prob - ref_log_prob, the estimate, its value, its slope
KL_TOKENS = [
    (0.7, "k1", 0.7, 1.0),
    (-0.7, "k1", -0.7, 1.0),
    (0.7, "abs", 0.7, 1.0),
    (-0.7, "abs", 0.7, -1.0),
    (0.0, "abs", 0.0, 0.0),
    (-0.7, "k2", 0.245, -0.7),
    (0.7, "k3", math.exp(-0.7) - 0.3, 1 - math.exp(-0.7)),
    (-0.7, "k3", math.exp(0.7) - 1.7, 1 - math.exp(0.7)),
    (0.0, "k3", 0.0, 0.0),
    (9.0, "k3", 8 + math.exp(-9), 1 - math.exp(-9)),
    (12.0, "k3", 10.0, 0.0),
    (-2.5, "k3", math.exp(2.5) - 3.5, 1 - math.exp(2.5)),
    (-3.0, "k3", 10.0, 0.0),
    (25.0, "k3", 10.0, 0.0),
    (-90.0, "k3", 10.0, 0.0),  # e^90 is inf in float32
    (-90.0, "k1", -90.0, 1.0),
    (-90.0, "k2", 4050.0, -90.0),
    (0.7, "k1+", 0.7, 0.7),
    (-0.7, "abs+", 0.7, -0.7),
    (0.7, "k2+", 0.245, 0.7),
    (-3.0, "k3+", 10.0, -3.0),
    (-90.0, "k3+", 10.0, -90.0),
    (0.7, "k3_unbounded", math.exp(-0.7) - 0.3, 1 - math.exp(-0.7)),
    (0.0, "k3_unbounded", 0.0, 0.0),
    (-3.0, "k3_unbounded", math.exp(3) - 4, 1 - math.exp(3)),
    (-25.0, "k3_unbounded", math.exp(25) - 26, 1 - math.exp(25)),
    (-88.0, "k3_unbounded", math.exp(88) - 89, 1 - math.exp(88)),
    (12.0, "k3_unbounded", 11 + math.exp(-12), 1 - math.exp(-12)),
    (90.0, "k3_unbounded", 89.0, 1.0),
    (-3.0, "k3_unbounded+", math.exp(3) - 4, -3.0),
    (25.0, "k3_unbounded+", 24 + math.exp(-25), 25.0),
]


@pytest.mark.parametrize("function", [op, reference], ids=["op", "reference"])
@pytest.mark.parametrize("dtype, rel", [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("difference, kl_type, value, slope", KL_TOKENS)
def test_kl_of_one_token_by_hand(difference, kl_type, value, slope, dtype, rel, function, device):
    one = torch.ones(1, 1, dtype=dtype, device=device)
    batch = {
        "log_prob": difference * one,
        "old_log_prob": difference * one,
        "advantages": 0 * one,
        "response_mask": one,
    }
    batch |= {"ref_log_prob": 0 * one, "rollout_is_weights": 7 * one}
    result = run(batch, function, kl_type=kl_type, kl_coef=0.5)
    assert float(result.loss) == pytest.approx(0.5 * value, rel=rel)
    assert float(result.grad) == pytest.approx(0.5 * slope, rel=rel)
    assert stat(result, "ref_kl", ref_kl=True) == pytest.approx(value, rel=rel)


@pytest.mark.parametrize("function", [op, reference], ids=["op", "reference"])
@pytest.mark.parametrize("difference, dtype", [(-90.0, torch.float32), (-710.0, torch.float64)], ids=str)
def test_the_unbounded_k3_is_inf_where_exp_is(difference, dtype, function, device):
    one = torch.ones(3, 40, dtype=dtype, device=device)
    batch = {"log_prob": -one, "old_log_prob": -one, "advantages": 0 * one, "response_mask": one}
    batch["ref_log_prob"] = -one
    batch["ref_log_prob"][1, 7] -= difference
    result = run(batch, function, kl_type="k3_unbounded", kl_coef=0.5)
    assert float(result.loss) == math.inf == stat(result, "ref_kl", ref_kl=True)
    assert float(result.grad[1, 7]) == -math.inf and int(result.grad.count_nonzero()) == 1
    straight_through = run(batch, function, kl_type="k3_unbounded+", kl_coef=0.5)
    assert float(straight_through.loss) == math.inf and float(straight_through.grad[1, 7]) < 0
    assert int(straight_through.grad.isfinite().sum()) == 120


@every_mode
def test_a_reference_without_weight_is_only_a_statistic(method, device):
    batch = method.batch(7, 40, device=device, ref_log_prob=True)
    result = run(batch, **method.keywords)
    del batch["ref_log_prob"]
    without = run(batch, **method.keywords)
    assert torch.equal(result.loss, without.loss) and torch.equal(result.grad, without.grad)
    assert stat(result, "ref_kl", ref_kl=True) > 0 and stat(without, "ref_kl", ref_kl=True) == 0


# Bounds of the rollout's weights

THRESHOLDS = {
    "TIS": (1.2, "1.2", (1.2,), [1.2]),
    "IcePop": ((0.7, 1.2), "0.7_1.2", [0.7, 1.2]),
}


@pytest.mark.parametrize("rule", THRESHOLDS)
@pytest.mark.parametrize("per_row", [False, True], ids=["[B, T]", "[B]"])
@every_mode
def test_bounded_weights(method, per_row, rule, device):
    batch = method.batch(7, 40, device=device)
    of_rows = torch.tensor([3.0, 0.7, 1.2, 0.1, torch.inf, 0.0, 1.0], dtype=torch.float64, device=device)
    batch["rollout_is_weights"][:, 0], batch["response_mask"][1:, 0] = of_rows, True  # two of them at the bounds
    if per_row:
        batch["rollout_is_weights"] = batch["rollout_is_weights"][:, 0].clone()
    weights = batch["rollout_is_weights"]
    outside = weights > 1.2 if rule == "TIS" else (weights > 1.2) | (weights < 0.7)
    bounded = torch.where(outside, 1.2 if rule == "TIS" else 0.0, weights)
    expected = run({**batch, "rollout_is_weights": bounded}, **method.keywords)
    where = outside.unsqueeze(1) if per_row else outside
    fraction = share(where, batch)

    def front(**arguments):
        output = maspo_ext.policy_loss(**arguments, ratio_mode=method.mode)
        return output.loss, output.stats.tensor

    assert 0 < fraction < 1
    for threshold in THRESHOLDS[rule]:
        result = run(batch, front, rollout_is_threshold=threshold)
        assert torch.equal(result.loss, expected.loss) and torch.equal(result.grad, expected.grad)
        assert stat(result, "rollout_is_outside_frac", rollout_is=True) == pytest.approx(fraction, rel=1e-14)
        # The rest is of the ratios, but the count, which is of the inputs as they were given.
        assert torch.equal(result.stats[:NONFINITE_COUNT], expected.stats[:NONFINITE_COUNT])


@pytest.mark.parametrize(
    "bounds", [{"rollout_is_upper": 1.2}, {"rollout_is_lower": 0.7, "rollout_is_upper": 1.2}], ids=str
)
@every_mode
def test_a_nan_weight_is_not_bounded_away(method, bounds, device):
    batch = method.batch(7, 40, device=device)
    clean = run(batch, **method.keywords, **bounds)
    batch["response_mask"][2, 3], batch["rollout_is_weights"][2, 3] = True, torch.nan
    result = run(batch, **method.keywords, **bounds)
    assert result.loss.isnan() and result.grad[2, 3].isnan() and int(result.grad.isnan().sum()) == 1
    assert float(result.stats[NONFINITE_COUNT]) == 1
    assert stat(result, "rollout_is_outside_frac", rollout_is=True) <= stat(
        clean, "rollout_is_outside_frac", rollout_is=True
    )


def test_bounds_without_a_weight_outside_change_nothing(device):
    batch = random_batch(7, 40, device=device)
    expected = run(batch)
    for bounds in ({"rollout_is_upper": 1e9}, {"rollout_is_lower": 0.0, "rollout_is_upper": 1e9}):
        assert_same_bits(run(batch, **bounds), expected)
