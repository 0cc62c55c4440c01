"""The statistics: names, order, values."""

import math

import pytest
import torch

import maspo_ext

from .cases import CLIP, DEFAULT_METHODS, OTHER_METHODS, converted, every_mode, op, random_batch, reference, run

CLIP_NAMES = ["actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower"]
METHOD_NAMES = {
    "maspo": [
        "actor/maspo_gate_mean_pos",
        "actor/maspo_gate_mean_neg",
        "actor/maspo_gated_frac_pos",
        "actor/maspo_gated_frac_neg",
        "actor/maspo_sigma_mean",
    ],
    "dac": ["actor/dac_clip_low_mean", "actor/dac_clip_high_mean"],
    "bapo": ["actor/bapo_clip_low", "actor/bapo_clip_high", "actor/bapo_pos_neg_ratio"],
    "sapo": ["actor/sapo_gate_mean_pos", "actor/sapo_gate_mean_neg"],
}
RATIO_NAMES = [
    "actor/ratio_min",
    "actor/ratio_mean",
    "actor/ratio_max",
    "actor/log_ratio_clamped_frac",
    "actor/nonfinite_count",
]
WITHOUT_CLIP = ("sapo",)
OPTION_NAMES = ["actor/entropy_adv_bonus", "actor/ref_kl", "actor/rollout_is_outside_frac"]


def stats_of(batch, function=op, names=maspo_ext.stat_names(), **keywords):
    return maspo_ext.PolicyLossStats(function(**batch, **keywords)[1], names).to_dict()


@pytest.mark.parametrize("options", [False, True], ids=["without options", "with options"])
@every_mode
def test_to_dict_has_all_names_in_order_and_python_floats(method, options, device):
    batch = method.batch(3, 5, device=device, **(dict(entropy=True, ref_log_prob=True) if options else {}))
    keywords = {"rollout_is_threshold": 1.5, "kl_coef": 0.1} if options else {}
    output = maspo_ext.policy_loss(**batch, ratio_mode=method.mode, **keywords)
    assert output.stats.tensor.dtype == torch.float64 and output.stats.tensor.device == output.loss.device
    stats = output.stats.to_dict()
    of_options = OPTION_NAMES if options else OPTION_NAMES[: method.mode == "entropy_adv"]
    assert list(stats) == CLIP_NAMES + METHOD_NAMES.get(method.mode, []) + RATIO_NAMES + of_options
    assert all(type(value) is float for value in stats.values())
    tensor = output.stats.tensor.tolist()
    assert len(tensor) == maspo_ext.NUM_STATS == len(output.stats.names)
    for name, value in zip(output.stats.names, tensor, strict=True):
        assert value == (0.0 if name is None else stats[name]), name


@every_mode
def test_a_statistic_by_its_name_stays_on_the_device(method, device):
    stats = maspo_ext.policy_loss(**method.batch(3, 5, device=device), ratio_mode=method.mode).stats
    for name, value in stats.to_dict().items():
        assert stats[name].shape == () and stats[name].device == stats.tensor.device
        assert stats[name].item() == value, name
    tensor, names = stats
    assert stats[0] is tensor is stats.tensor and stats[-1] is names and stats[:] == (tensor, names), "a tuple still"


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("ratio_mean", "Did you mean actor/ratio_mean?"),
        ("actor/ratio_maen", "Did you mean actor/ratio_mean?"),
        ("zzz", "The others come with a ratio_mode or an option."),
    ],
)
def test_a_statistic_that_is_not_there(name, remedy):
    stats = maspo_ext.policy_loss(**random_batch(3, 5)).stats
    with pytest.raises(KeyError) as raised:
        stats[name]
    text = raised.value.args[0]
    assert text.startswith("maspo_ext: stats: expected one of actor/pg_clipfrac, ") and "None" not in text
    assert text.endswith(f", got {name!r}. {remedy}")
    with pytest.raises(KeyError):
        stats["actor/dac_clip_low_mean"]
    assert name not in stats and "actor/dac_clip_low_mean" not in stats and None not in stats
    assert all(name in stats for name in stats.to_dict())


# (log_prob - old, A, mask) of six tokens with old = 0 and the default hyper-parameters; the last is masked.
TOKENS = [
    (math.log(1.5), 1.0, 1),
    (math.log(0.5), -1.0, 1),
    (math.log(4.0), -1.0, 1),
    (21.0, -2.0, 1),
    (0.1, 0.0, 2),
    (9.0, 9.0, 0),
]
WEIGHT = 6.0  # sum of the mask: the fifth token counts twice
RATIOS = [1.5, 0.5, 4.0, math.exp(20), math.exp(0.1)]
BY_HAND = {
    "actor/pg_clipfrac": 2 / WEIGHT,
    "actor/ppo_kl": -(math.log(1.5) + math.log(0.5) + math.log(4.0) + 20 + 2 * 0.1) / WEIGHT,
    "actor/pg_clipfrac_lower": 2 / WEIGHT,
    "actor/maspo_gate_mean_pos": math.exp(-(0.5**2) / 2 / 1.03**2),
    "actor/maspo_gate_mean_neg": math.exp(-(0.5**2) / 2 * 1.03**2),
    "actor/maspo_gated_frac_pos": 1 / WEIGHT,
    "actor/maspo_gated_frac_neg": 1 / WEIGHT,
    "actor/maspo_sigma_mean": (1.03 + 2 / 1.03 + 1 / 1.06 + 2) / WEIGHT,
    "actor/ratio_min": 0.5,
    "actor/ratio_mean": (sum(RATIOS) + RATIOS[-1]) / WEIGHT,
    "actor/ratio_max": math.exp(20),
    "actor/log_ratio_clamped_frac": 1 / WEIGHT,
    "actor/nonfinite_count": 0.0,
}


@pytest.mark.parametrize("function", [op, reference], ids=["op", "reference"])
@pytest.mark.parametrize("dtype, rel", [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str)
def test_by_hand(dtype, rel, function, device):
    values = torch.tensor([TOKENS], dtype=torch.float64, device=device).to(dtype)
    batch = {
        "log_prob": values[..., 0],
        "old_log_prob": 0 * values[..., 0],
        "advantages": values[..., 1],
        "response_mask": values[..., 2],
    }
    assert stats_of(batch, function) == pytest.approx(BY_HAND, rel=rel)


@pytest.mark.parametrize("shape", [(7, 40), (3, 5000), (300, 3)], ids=str)
@pytest.mark.parametrize(
    "hyper",
    [{}, {"clip_ratio_low": 0.4, "clip_ratio_high": 0.9, "clip_ratio_c": 1.5}, {"alpha": 0.0, "beta_neg": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("dtype, rel", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 1e-5)], ids=str)
def test_like_the_reference(dtype, rel, hyper, shape, device):
    batch = random_batch(*shape, dtype=dtype, device=device, spread=2.0)
    batch["log_prob"][:, 0] += 30  # some are clamped
    batch["old_log_prob"][-1, -1], batch["response_mask"][-1, -1] = -torch.inf, True
    stats = stats_of(batch, **hyper)
    arithmetic = converted(batch, torch.float64 if dtype == torch.float64 else torch.float32)
    expected = stats_of(converted(arithmetic, torch.float64), reference, **hyper)
    assert all(value != 0 and not math.isnan(value) for value in expected.values())
    assert stats == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize(
    "agg",
    [{"loss_agg_mode": "seq-mean-token-mean"}, {"dp_size": 4, "batch_num_tokens": 999}, {"gate_gradient": True}],
    ids=str,
)
def test_statistics_do_not_depend_on_aggregation_or_weights(agg, device):
    batch = random_batch(5, 40, device=device)
    expected = run(batch).stats
    assert torch.equal(run(batch, **agg).stats, expected)
    del batch["rollout_is_weights"]
    assert torch.equal(run(batch).stats, expected)


def test_nan_is_skipped_by_ratio_min_and_max_and_seen_in_the_means(device):
    batch = random_batch(5, 40, device=device)
    batch["log_prob"][2, 3], batch["response_mask"][2, 3] = torch.nan, True
    stats = stats_of(batch)
    ratio = (batch["log_prob"] - batch["old_log_prob"]).exp()
    seen = ratio[(batch["response_mask"] != 0) & ~ratio.isnan()]
    assert stats["actor/ratio_min"] == pytest.approx(float(seen.min()), rel=1e-14)
    assert stats["actor/ratio_max"] == pytest.approx(float(seen.max()), rel=1e-14)
    assert math.isnan(stats["actor/ratio_mean"]) and math.isnan(stats["actor/ppo_kl"])
    assert stats["actor/nonfinite_count"] == 1.0


def only(name):
    """The names without all others, so that to_dict gives one."""
    return tuple(n if n == name else None for n in maspo_ext.stat_names(name.split("/")[1].split("_")[0]))


# tokens (log_prob - old, A, mask) with old = 0; the method; one of its statistics; its value
OF_METHODS = [
    ("sapo", "actor/sapo_gate_mean_pos", (1 / math.cosh(0.25) ** 2 + 3 / math.cosh(0.5) ** 2) / 4),
    ("sapo", "actor/sapo_gate_mean_neg", 1 / math.cosh(1.05 * 0.25) ** 2),
    ("dac", "actor/dac_clip_low_mean", (5 * (1 + math.sqrt(0.2)) / 2 + 0.5 + math.sqrt(1 - 0.8 / 1.25) / 2) / 6),
    ("dac", "actor/dac_clip_high_mean", (5 * (1 + math.sqrt(2.12)) / 2 + 0.5 + math.sqrt(1 + 1.12 / 1.25) / 2) / 6),
]


@pytest.mark.parametrize("function", [op, reference], ids=["op", "reference"])
@pytest.mark.parametrize("mode, name, expected", OF_METHODS)
def test_statistics_of_methods_by_hand(mode, name, expected, function, device):
    ratios, old = [1.5, 2.0, 0.5, 1.0, 99.0], [0.0, 0.0, 0.0, math.log(1.25), 0.0]
    old = torch.tensor([old], dtype=torch.float64, device=device)
    batch = {
        "log_prob": torch.tensor([ratios], dtype=torch.float64, device=device).log() + old,
        "old_log_prob": old,
        "advantages": torch.tensor([[1.0, 2.0, -1.0, 0.0, 5.0]], dtype=torch.float64, device=device),
        "response_mask": torch.tensor([[1, 3, 1, 1, 0]], device=device),
    }
    stats = stats_of(batch, function, only(name), **DEFAULT_METHODS[mode].keywords)
    assert stats == pytest.approx({name: expected}, rel=1e-14)


@every_mode
def test_statistics_of_methods_without_tokens_of_a_side(method, device):
    """Gates are open on average where there is nothing to average; a batch without tokens has zeros."""
    batch = method.batch(5, 40, device=device)
    batch["advantages"] = torch.zeros_like(batch["advantages"])
    stats = stats_of(batch, names=maspo_ext.stat_names(method.mode), **method.keywords)
    gates = {name: value for name, value in stats.items() if "gate_mean" in name}
    assert gates == {name: 1.0 for name in METHOD_NAMES.get(method.mode, []) if "gate_mean" in name}
    batch["response_mask"] = torch.zeros_like(batch["response_mask"])
    stats = op(**batch, **method.keywords)[1]
    if method.mode == "bapo":  # its bounds are where they start, and there is nothing negative
        assert stats[3:6].tolist() == [0.6, 1.2, math.inf]
        stats[3:6] = 0
    assert not stats.any()


def test_clip_statistics_of_methods(device):
    """SAPO has no clip; MASPO counts what PPO would clip; the clip family counts what it clips."""
    batch = random_batch(20, 40, device=device, spread=1.0, entropy=True)
    of_ppo = run(batch, **OTHER_METHODS["ppo with other values"].keywords).stats
    assert torch.equal(run(batch, **OTHER_METHODS["maspo with other values"].keywords).stats[:3], of_ppo[:3])
    for method in OTHER_METHODS.values():
        stats = run(batch, **method.keywords).stats
        assert (stats[0] > 0) == (method.mode not in WITHOUT_CLIP), method.mode
        assert (stats[2] > 0) == method.config.reports_dual_clip, method.mode
        dual = run(batch, **method.keywords, dual_clip=True).stats
        assert (dual[0] > 0) == (method.mode not in WITHOUT_CLIP) and dual[2] > 0, method.mode
        if method.config.clip_ratio_c == CLIP["clip_ratio_c"] and method.mode != "entropy_adv":  # of other advantages
            assert dual[2] == of_ppo[2], method.mode


def test_gates_are_open_where_nothing_is_gated(device):
    batch = random_batch(5, 40, device=device)
    batch["log_prob"] = batch["old_log_prob"]
    stats = stats_of(batch)
    assert stats["actor/maspo_gate_mean_pos"] == stats["actor/maspo_gate_mean_neg"] == 1.0
    assert stats["actor/ratio_min"] == stats["actor/ratio_mean"] == stats["actor/ratio_max"] == 1.0
    assert stats["actor/maspo_gated_frac_pos"] == stats["actor/maspo_gated_frac_neg"] == 0.0
