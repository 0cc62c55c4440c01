"""What policy_loss and its module refuse beyond the op: modes, configs, thresholds, and how BAPO's sums are reduced."""

import dataclasses
import itertools
import re

import numpy
import pytest
import torch

import maspo_ext
from maspo_ext.methods.names import CLIP_OF, NOT_HERE

from .cases import DEFAULT_METHODS, random_batch
from .wrong import INF, NAN, ones

FRONTS = {
    "policy_loss": lambda **keywords: maspo_ext.policy_loss(**random_batch(4, 6), **keywords),
    "PolicyLoss": maspo_ext.PolicyLoss,
}
MODES_OF = dict.fromkeys(("ppo", "grpo"), "'ppo' or 'grpo'")  # of a config that two modes share
ALL_MODES = ", ".join(maspo_ext.RATIO_MODES)
FRONT_ERRORS = [
    ({"ratio_mode": "ppo2"}, ValueError, rf"ratio_mode: expected one of {ALL_MODES}, got 'ppo2'\. Did you mean ppo\?"),
    ({"ratio_mode": None}, ValueError, rf"ratio_mode: expected one of {ALL_MODES}, got None\. Choose"),
    ({"ratio_mode": ["maspo"]}, ValueError, rf"ratio_mode: expected one of {ALL_MODES}, got \['maspo'\]\. Did you mean maspo\?"),
    (
        {"alhpa": 0.3},
        TypeError,
        r"FRONT: expected keywords of MaspoConfig \(sigma_base, alpha, .*\), or those of FRONT itself, got alhpa\. "
        r"Did you mean alpha\?",
    ),
    (
        {"config": maspo_ext.MaspoConfig(), "alpha": 0.3},
        TypeError,
        r"FRONT: expected either config or hyper-parameters as keywords, got both \(alpha\)\. Use dataclasses",
    ),
    (
        {"config": {"alpha": 0.3}},
        TypeError,
        r"config: expected a MaspoConfig for ratio_mode='maspo', got dict\. Make one: config=MaspoConfig\(\.\.\.\)",
    ),
    ({"alpha": -1.0}, ValueError, r"alpha: expected >= 0, got -1\.0\. "),
    ({"sigma_high": NAN}, ValueError, r"sigma_high: expected >= sigma_base = 1\.0 \(inf for no bound\), got nan\. "),
    ({"loss_agg_mode": "mean"}, ValueError, r"loss_agg_mode: expected one of token-mean, .*, got 'mean'\. Choose"),
    *(
        (
            {"ratio_mode": mode, "sigma_bse": 1.0},
            TypeError,
            rf"FRONT: expected keywords of {type(method.config).__name__} \({', '.join(dataclasses.asdict(method.config))}\), "
            r"or those of FRONT itself, got sigma_bse\. "
            + (r"Did you mean sigma_base\?" if mode == "maspo" else "Check the spelling"),
        )
        for mode, method in DEFAULT_METHODS.items()
    ),
    *(
        (
            {"ratio_mode": mode, "config": other.config},
            TypeError,
            rf"config: expected a {type(method.config).__name__} for ratio_mode='{mode}', got {type(other.config).__name__}\. "
            rf"Pass ratio_mode={MODES_OF.get(other.mode, repr(other.mode))} with it",
        )
        for (mode, method), other in itertools.product(DEFAULT_METHODS.items(), DEFAULT_METHODS.values())
        if type(method.config) is not type(other.config)  # a subclass, too: it has other defaults and may be another method
    ),
    (
        {"ratio_mode": "dac", "clip_ratio_low": 0.2},
        TypeError,
        r"FRONT: expected keywords of DacConfig .*, got clip_ratio_low",
    ),
    ({"ratio_mode": "ppo", "alpha": 0.2}, TypeError, r"FRONT: expected keywords of PpoConfig .*, got alpha"),
    (
        {"ratio_mode": "ppo", "clip_low": 0.2, "clip_ratio_low": 0.2},
        TypeError,
        r"FRONT: expected clip_ratio_low once, got it twice, .* \(clip_low, clip_ratio_low\)\. Drop",
    ),
    (
        {"ratio_mode": "sapo", "config": maspo_ext.SapoConfig(), "tau_pos": 0.3},
        TypeError,
        r"FRONT: expected either config or hyper-parameters as keywords, got both \(tau_pos\)",
    ),
]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("wrong, error, message", FRONT_ERRORS)
def test_fronts(front, wrong, error, message):
    with pytest.raises(error, match=f"maspo_ext: {message.replace('FRONT', front)}"):
        FRONTS[front](**wrong)


THRESHOLDS = [
    ("2", None),
    (2, None),
    ((0.5, 2), None),
    ([0.5, 2.0], None),
    ("0.5_2", None),
    ("0.5-2", 'a number, a pair (lower, upper), or "lower_upper"'),
    ("", "a number, a pair"),
    ("0.5_1_2", "a number, a pair"),
    ((), "a number, a pair"),
    ((1.0, 2.0, 3.0), "a number, a pair"),
    (0.0, "> 0"),
    (-2.0, "> 0"),
    ((0.0, 2.0), "> 0"),
    ("0_2", "> 0"),
    (NAN, "> 0 and finite"),
    (INF, "> 0 and finite"),
    ("0.5_inf", "> 0 and finite"),
    ("nan", "> 0 and finite"),
    ((2.0, 0.5), None),
]


@pytest.mark.parametrize("threshold, expected", THRESHOLDS, ids=repr)
def test_rollout_is_threshold(threshold, expected):
    batch = random_batch(4, 6)
    if expected is not None:
        remedy = re.escape("One number truncates (TIS), two mask what lies outside (IcePop).")
        message = f"maspo_ext: rollout_is_threshold: expected {re.escape(expected)}.*, got .*\\. {remedy}$"
    elif threshold == (2.0, 0.5):
        message = r"maspo_ext: rollout_is_threshold: expected >= its lower bound = 2\.0, got 0\.5\. "
    else:
        maspo_ext.policy_loss(**batch, rollout_is_threshold=threshold)
        message = (
            r"maspo_ext: rollout_is_weights: expected a tensor, since rollout_is_threshold = .*, got None\. Pass the weights"
        )
        del batch["rollout_is_weights"]
    with pytest.raises(ValueError, match=message):
        maspo_ext.policy_loss(**batch, rollout_is_threshold=threshold)


@pytest.mark.parametrize("threshold", [True, {"upper": 2.0}, (None, 2.0), ("0.5", "2")], ids=repr)
def test_rollout_is_threshold_of_another_type(threshold):
    with pytest.raises(
        TypeError, match="maspo_ext: rollout_is_threshold: expected a number, > 0.*, got .*One number truncates"
    ):
        maspo_ext.policy_loss(**random_batch(4, 6), rollout_is_threshold=threshold)


@pytest.mark.parametrize("mode", [mode for mode in DEFAULT_METHODS if mode != "bapo"])
def test_only_bapo_reduces_sums(mode):
    def never(sums):
        raise AssertionError

    batch = random_batch(4, 6, entropy=True)
    with pytest.raises(
        ValueError, match=r"all_reduce_sums: expected None for \w+Config, got .*\. Only bapo has sums: drop it"
    ):
        maspo_ext.policy_loss(**batch, ratio_mode=mode, all_reduce_sums=never)


@pytest.mark.parametrize(
    "reduced, error, text",
    [
        (lambda sums: sums[:3], ValueError, r"all_reduce_sums: expected sums like those that it gets \(\[22\], torch.float64, cpu\), got \[3\], torch.float64, cpu. Return"),
        (lambda sums: sums.float(), ValueError, r"got \[22\], torch.float32, cpu. Return their sum over the ranks, or None."),
        (lambda sums: 3, TypeError, "all_reduce_sums: expected a function that adds in place, or returns a tensor or a Work of torch.distributed, got 3 from it"),
    ],
)  # fmt: skip
def test_what_all_reduce_sums_returns(reduced, error, text):
    with pytest.raises(error, match=text):
        maspo_ext.policy_loss(**random_batch(4, 6), ratio_mode="bapo", all_reduce_sums=reduced)


def test_tensors_are_checked_before_the_sums_are_taken():
    called = []
    for wrong in ({"advantages": ones(3)}, {"entropy": ones(4, 5)}, {"old_log_prob": ones(4, 6, device="meta")}):
        with pytest.raises(ValueError, match=f"maspo_ext: {next(iter(wrong))}: expected"):
            maspo_ext.policy_loss(
                **{**random_batch(4, 6, dtype=torch.float32), **wrong}, ratio_mode="bapo", all_reduce_sums=called.append
            )
    assert not called


def test_a_threshold_is_called_by_its_name():
    """And not by those of its bounds, which are the op's."""
    batch = random_batch(4, 6, weights=False)
    for threshold in (2.0, (0.5, 2.0), "0.5_2"):
        message = re.escape(f"rollout_is_weights: expected a tensor, since rollout_is_threshold = {threshold!r}, got None. Pass the")
        with pytest.raises(ValueError, match=message):
            maspo_ext.policy_loss(**batch, rollout_is_threshold=threshold)


def test_ranks_without_a_reduction_of_bapos_sums():
    for dp_size in (2, 2.0, numpy.int64(2)):
        with pytest.raises(
            ValueError, match="^maspo_ext: all_reduce_sums: expected a function .* over all 2.* data-parallel ranks.*, got None. Pass torch.distributed"
        ):
            maspo_ext.policy_loss(**random_batch(4, 6), ratio_mode="bapo", dp_size=dp_size, batch_num_tokens=8)
    with pytest.raises(TypeError, match="dp_size: expected a whole number >= 1, got '2'"):
        maspo_ext.policy_loss(**random_batch(4, 6), ratio_mode="bapo", dp_size="2")


# A name that is no mode: of a paper whose clip is one, of another method, misspelt.
NO_MODES = {
    "dapo": r"Did you mean clip_higher, the clip of DAPO\?",
    "DCPO": r"Did you mean dac, the clip of DCPO\?",
    "gspo": "Choose one of these",
    "GMPO": "Choose one of these",
    "gpro": r"Did you mean grpo\?",
    "sappo": r"Did you mean sapo\?",
}


@pytest.mark.parametrize("name", NO_MODES)
def test_a_name_that_is_no_mode(name):
    with pytest.raises(ValueError, match=rf"ratio_mode: expected one of {ALL_MODES}, got '{name}'\. {NO_MODES[name]}"):
        maspo_ext.policy_loss(**random_batch(4, 6), ratio_mode=name)


def test_no_mode_is_among_the_methods_that_are_not_here():
    assert {*NOT_HERE, *CLIP_OF} & set(maspo_ext.RATIO_MODES) == set()
    assert set(CLIP_OF.values()) <= set(maspo_ext.RATIO_MODES)


def test_stat_names_of_no_mode():
    with pytest.raises(ValueError, match=r"ratio_mode: expected one of maspo, .*, got 'mapso'\. Did you mean maspo\?"):
        maspo_ext.stat_names("mapso")
