"""The public contract: the schema, the function, the module, the configs."""

import copy
import dataclasses
import inspect
import pickle

import pytest
import torch

import maspo_ext

from .cases import (
    AGG_MODES,
    DEFAULT_METHODS,
    OPTIONS,
    OTHER_HYPER,
    OTHER_METHODS,
    Result,
    assert_same_bits,
    every_method,
    every_mode,
    op,
    random_batch,
    reference,
    run,
)

PUBLISHED = {
    "sigma_base": 1.0,
    "alpha": 0.3,
    "sigma_high": 10.0,
    "adv_low": 0.1,
    "adv_high": 10.0,
    "beta_pos": 0.03,
    "beta_neg": 0.03,
}
EXTRA = {"gate_gradient": False, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}
KEYWORDS = {
    "rollout_is_weights": None,
    **PUBLISHED,
    "loss_agg_mode": None,
    "dp_size": 1,
    "batch_num_tokens": None,
    "global_batch_size": None,
    "loss_scale_factor": None,
    **EXTRA,
    "ratio_mode": "maspo",
    "hyper": [],
    "bapo_sums": None,
    "dual_clip": False,
    "entropy": None,
    "entropy_alpha": 0.0,
    "entropy_kappa": 2.0,
    "ref_log_prob": None,
    "kl_type": "k3",
    "kl_coef": 0.0,
    "rollout_is_lower": None,
    "rollout_is_upper": None,
    "cu_seqlens": None,
    "max_seqlen": None,
}
POSITIONAL = ["log_prob", "old_log_prob", "advantages", "response_mask"]
PPO_CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}
DAPO_CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 10.0}
# Of each mode: where the values come from is in its config class.
DEFAULTS = {
    "maspo": PUBLISHED | EXTRA,
    "ppo": PPO_CLIP,
    "grpo": PPO_CLIP,
    "clip_higher": DAPO_CLIP,
    "dac": {"eps_low": 0.2, "eps_high": 0.28, "clip_ratio_c": 10.0},
    "entropy_adv": DAPO_CLIP | {"alpha": 0.4, "kappa": 2.0},
    "bapo": {
        "adv_ratio_target": 1.0,
        "ratio_lower_start": 0.6,
        "ratio_lower_max": 0.8,
        "ratio_lower_step": 0.05,
        "ratio_upper_start": 1.2,
        "ratio_upper_max": 2.0,
        "ratio_upper_step": 0.05,
        "upper_first": False,
        "eps": 1e-8,
        **PPO_CLIP,
    },
    "sapo": {"tau_pos": 1.0, "tau_neg": 1.05, "clip_ratio_c": 3.0},
}
# Of each mode: dual_clip, reports_dual_clip and default_loss_agg_mode. The other tests take them from the config.
TRAITS = {
    "maspo": (False, True, "token-mean"),
    "ppo": (True, True, "token-mean"),
    "grpo": (True, True, "token-mean"),
    "clip_higher": (True, True, "token-mean"),
    "dac": (True, True, "token-mean"),
    "entropy_adv": (True, True, "token-mean"),
    "bapo": (True, True, "token-mean"),
    "sapo": (False, False, "seq-mean-token-mean"),
}


def test_schema():
    arguments = torch.ops.maspo.loss.default._schema.arguments
    assert [a.name for a in arguments if not a.kwarg_only] == POSITIONAL
    keywords = {a.name: a.default_value for a in arguments if a.kwarg_only}
    assert list(keywords) == list(KEYWORDS) and keywords == KEYWORDS
    assert [r.name for r in torch.ops.maspo.loss.default._schema.returns] == ["loss", "stats"]


def test_the_reference_has_the_same_options():
    parameters = inspect.signature(maspo_ext.reference.unchecked_loss).parameters
    others = {*DEFAULTS["maspo"], "ratio_mode", "hyper", "bapo_sums", "cu_seqlens", "max_seqlen"}
    options = {name: default for name, default in KEYWORDS.items() if name not in others}
    assert list(parameters) == ["config", *POSITIONAL, *options]
    assert {name: parameters[name].default for name in options} == options


# What a reference without checks would take for another value, or ignore.
WRONG_FOR_THE_REFERENCE = {
    "loss_agg_mode": "tokn-mean",
    "kl_type": "k9",
    "sigma_base": -1.0,
    "kl_coef": 1.0,
    "dp_size": 2,
    "entropy_alpha": 0.3,
    "rollout_is_upper": 2.0,
    "ratio_mode": "entropy_adv",
}


@pytest.mark.parametrize("name", WRONG_FOR_THE_REFERENCE)
def test_the_reference_refuses_what_the_op_refuses(name):
    batch, wrong = random_batch(2, 5), {name: WRONG_FOR_THE_REFERENCE[name]}
    batch.pop("rollout_is_weights")
    refused = []
    for function in (reference, op):
        with pytest.raises(ValueError) as error:
            function(**batch, **wrong)
        refused.append(str(error.value))
    assert refused[0] == refused[1]


def test_the_reference_refuses_wrong_tensors():
    batch = random_batch(2, 5)
    for name, value in {"old_log_prob": None, "advantages": batch["advantages"][:1], "response_mask": batch["response_mask"].bool().tolist()}.items():
        with pytest.raises((TypeError, ValueError), match=f"maspo_ext: {name}: expected"):
            reference(**batch | {name: value})
    for name in ("bapo_sums", "cu_seqlens", "max_seqlen"):
        with pytest.raises(NotImplementedError, match=f"reference.loss: {name}: expected None, got a value. Use torch.ops.maspo.loss"):
            reference(**batch, **{name: torch.ones(3)})


@every_mode
def test_config_defaults_are_the_published_ones(method):
    config = maspo_ext.RATIO_MODES[method.mode]()
    assert dataclasses.asdict(config) == DEFAULTS[method.mode]
    assert (config.dual_clip, config.reports_dual_clip, config.default_loss_agg_mode) == TRAITS[method.mode]
    if method.mode == "maspo":
        assert config.op_keywords() == DEFAULTS["maspo"]
    else:
        assert config.op_keywords(method.mode) == {
            "ratio_mode": method.mode,
            "hyper": list(DEFAULTS[method.mode].values()),
        }


@every_mode
def test_an_empty_hyper_has_the_defaults(method, device):
    batch = method.batch(5, 9, device=device)
    assert_same_bits(run(batch, ratio_mode=method.mode), run(batch, **method.keywords))


def test_there_are_these_modes():
    assert list(maspo_ext.RATIO_MODES) == list(DEFAULTS) == list(TRAITS) == list(OTHER_HYPER)


def test_every_mode_has_a_bound_of_the_dual_clip():
    """Which the loss reads of every config."""
    assert all("clip_ratio_c" in config_class.__dataclass_fields__ for config_class in maspo_ext.RATIO_MODES.values())


def test_a_keyword_given_by_name_is_the_default(device):
    batch = random_batch(5, 9, device=device, weights=False)
    assert_same_bits(run(batch, **KEYWORDS), run(batch))


def test_other_values_are_given_for_every_field():
    for mode, config_class in maspo_ext.RATIO_MODES.items():
        defaults = dataclasses.asdict(config_class())
        assert OTHER_HYPER[mode].keys() == defaults.keys()
        assert all(value != defaults[name] for name, value in OTHER_HYPER[mode].items())


# What has to be off its default for a field to matter at all: by rights the lower bound ends at its maximum.
NEEDS = {
    ("bapo", "ratio_lower_start"): {"ratio_lower_max": None},
    ("bapo", "clip_ratio_low"): {"ratio_lower_start": None, "ratio_lower_max": None},
    ("bapo", "clip_ratio_high"): {"ratio_upper_start": None},
}
VALUES = {("bapo", "ratio_lower_step"): 0.0, ("bapo", "ratio_upper_max"): 1.3}  # any other comes to the same end


@pytest.mark.parametrize("mode, name", [(mode, name) for mode, fields in OTHER_HYPER.items() for name in fields])
def test_every_hyper_parameter_matters(mode, name, device):
    """One lost on its way would change nothing; one in another's place would not agree with the reference."""
    default = DEFAULT_METHODS[mode].with_(**NEEDS.get((mode, name), {}))
    batch = default.batch(20, 40, device=device, spread=1.5)
    batch["advantages"] *= 10  # so that the bounds of the advantage's factor are reached
    if mode == "bapo":
        batch["advantages"] += 12.0  # so that the search ends in the middle
        assert 1.2 < float(run(batch, **default.keywords).stats[4]) < 2.0
    changed = default.with_(**{name: VALUES.get((mode, name), OTHER_HYPER[mode][name])})
    options = {"dual_clip": not default.config.reports_dual_clip}  # the bound is of no use otherwise
    result = run(batch, **changed.keywords, **options)
    assert any(not torch.equal(a, b) for a, b in zip(result, run(batch, **default.keywords, **options), strict=True))
    for actual, expected in zip(result, run(batch, reference, **changed.keywords, **options), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-14)
    front = through_policy_loss(maspo_ext.policy_loss)
    fields = dataclasses.asdict(changed.config)
    keywords = {"ratio_mode": mode, **options}
    assert_same_bits(run(batch, front, **keywords, **fields), result)


def through_policy_loss(front):
    def function(**arguments):
        output = front(**arguments)
        assert isinstance(output, maspo_ext.PolicyLossOutput)
        return output.loss, output.stats.tensor

    return function


CONFIG = OTHER_METHODS["maspo with other values"].config
OPTIONS_OF_FRONTS = {name: value for name, value in OPTIONS.items() if not name.startswith("rollout_is")}
OPTIONS_OF_FRONTS["rollout_is_threshold"] = (OPTIONS["rollout_is_lower"], OPTIONS["rollout_is_upper"])


def front_and_keywords(form, method, loss_agg_mode):
    """One way to call a method, and what to give with the call."""
    config, fields = method.config, dataclasses.asdict(method.config)
    return {
        "config": (
            maspo_ext.policy_loss,
            {"ratio_mode": method.mode, "config": config, "loss_agg_mode": loss_agg_mode},
        ),
        "keywords": (maspo_ext.policy_loss, {"ratio_mode": method.mode, "loss_agg_mode": loss_agg_mode, **fields}),
        "module of a config": (maspo_ext.PolicyLoss(method.mode, config, loss_agg_mode), {}),
        "module of keywords": (maspo_ext.PolicyLoss(method.mode, loss_agg_mode=loss_agg_mode, **fields), {}),
    }[form]


@pytest.mark.parametrize("form", ["config", "keywords", "module of a config", "module of keywords"])
@pytest.mark.parametrize("counts", ["local", "global"])
@every_method
def test_fronts_hand_everything_to_the_op(method, counts, form, device):
    counts = method.global_counts if counts == "global" else {}
    front, keywords = front_and_keywords(form, method, "seq-mean-token-sum")
    if isinstance(front, torch.nn.Module):
        assert not list(front.parameters()) and repr(method.config) in repr(front) and method.mode in repr(front)
    for batch, options, of_front in (
        (method.batch(5, 9, device=device), {}, {}),
        (method.full_batch(5, 9, device=device), OPTIONS, OPTIONS_OF_FRONTS),
    ):
        expected = run(batch, loss_agg_mode="seq-mean-token-sum", **method.keywords, **method.takes(options), **counts)
        assert_same_bits(
            run(batch, through_policy_loss(front), **keywords, **method.takes(of_front), **counts), expected
        )


def test_fronts_without_a_mode_are_maspo(device):
    batch = random_batch(5, 9, device=device)
    for front in (maspo_ext.policy_loss, maspo_ext.PolicyLoss()):
        assert_same_bits(run(batch, through_policy_loss(front)), run(batch))


@pytest.mark.parametrize("front", ["policy_loss", "PolicyLoss"])
@every_mode
def test_aggregation_of_fronts(method, front, device):
    """Without a choice that of the method's reference; any choice is honoured. So do the op and its twin."""

    def call(**choice):
        if front == "PolicyLoss":
            return maspo_ext.PolicyLoss(method.mode, **choice)
        return lambda **arguments: maspo_ext.policy_loss(**arguments, ratio_mode=method.mode, **choice)

    batch = method.batch(5, 9, device=device)
    results = {mode: run(batch, **method.keywords, loss_agg_mode=mode) for mode in AGG_MODES}
    assert len({float(result.loss) for result in results.values()}) == len(AGG_MODES)
    default = method.config.default_loss_agg_mode
    assert_same_bits(run(batch, through_policy_loss(call())), results[default])
    for mode in AGG_MODES:
        assert_same_bits(run(batch, through_policy_loss(call(loss_agg_mode=mode))), results[mode])
    assert_same_bits(run(batch, **method.keywords), results[default])
    assert_same_bits(run(batch, reference, **method.keywords), run(batch, reference, **method.keywords, loss_agg_mode=default))


ALIASES = {
    "clip": {"clip_low": "clip_ratio_low", "clip_high": "clip_ratio_high", "clip_c": "clip_ratio_c"},
    "dac": {"clip_low": "eps_low", "clip_high": "eps_high", "clip_c": "clip_ratio_c"},
    "sapo": {"clip_c": "clip_ratio_c"},
}


@every_mode
def test_names_of_the_reference_implementations(method):
    aliases = ALIASES.get(method.mode, ALIASES["clip"])
    values = {alias: OTHER_HYPER[method.mode][name] for alias, name in aliases.items()}
    expected = dataclasses.replace(method.config, **{name: values[alias] for alias, name in aliases.items()})
    assert maspo_ext.PolicyLoss(method.mode, **values).config == expected != method.config
    for alias, name in aliases.items():
        both = {alias: values[alias], name: values[alias]}
        with pytest.raises(TypeError, match=f"PolicyLoss: expected {name} once, got it twice, .*{', '.join(both)}"):
            maspo_ext.PolicyLoss(method.mode, **both)


def test_an_alias_of_a_field_that_a_config_lacks_is_unknown():
    with pytest.raises(TypeError, match=r"expected keywords of SapoConfig \(tau_pos, .*\), or .*, got clip_ratio_low. It belongs to ratio_mode='maspo' or "):
        maspo_ext.PolicyLoss("sapo", clip_low=0.2)


def test_config_is_frozen_and_comparable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.alpha = 0.1
    assert dataclasses.replace(CONFIG, alpha=0.1) != CONFIG
    assert len({CONFIG, dataclasses.replace(CONFIG)}) == 1
    with pytest.raises(ValueError, match="alpha"):
        dataclasses.replace(CONFIG, alpha=-1.0)


@every_method
def test_hyper_goes_back_to_the_config(method):
    """For BAPO with its starts written out."""
    config_class = type(method.config)
    assert config_class.from_hyper(method.config.hyper()) == method.config
    assert config_class.from_hyper([]) == config_class()
    assert all(type(value) is float for value in method.config.hyper())


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@every_method
def test_configs_and_modules_can_be_copied_and_pickled(method, duplicate, device):
    assert duplicate(method.config) == method.config
    module = maspo_ext.PolicyLoss(method.mode, method.config)
    batch = method.batch(5, 9, device=device)
    assert_same_bits(run(batch, through_policy_loss(duplicate(module))), run(batch, through_policy_loss(module)))


@every_method
def test_inputs_are_not_modified(method, device):
    """Nor does anything build up from call to call: the published code adds the entropy to the advantages in place."""
    batch = method.full_batch(5, 9, dtype=torch.float32, device=device)
    before = {name: value.clone() for name, value in batch.items()}
    first = run(batch, **method.keywords, **method.takes(OPTIONS))
    assert_same_bits(run(batch, **method.keywords, **method.takes(OPTIONS)), first)
    assert all(torch.equal(batch[name], before[name]) for name in batch)


def test_positional_call(device):
    batch = random_batch(5, 9, device=device, weights=False)
    loss, stats = op(*(batch[name] for name in POSITIONAL))
    expected = run(batch)
    assert_same_bits(Result(loss, expected.grad, stats), expected)


@every_mode
def test_without_old_log_prob_the_policy_is_its_own(method, device):
    batch = method.batch(5, 9, device=device)
    on_policy = {**batch, "old_log_prob": batch["log_prob"].clone()}
    keywords = {"ratio_mode": method.mode, "config": method.config}
    expected = run(on_policy, through_policy_loss(maspo_ext.policy_loss), **keywords)
    for front in (maspo_ext.policy_loss, lambda **a: maspo_ext.PolicyLoss(method.mode)(**a)):
        given = keywords if front is maspo_ext.policy_loss else {}
        assert_same_bits(run({**batch, "old_log_prob": None}, through_policy_loss(front), **given), expected)
    assert expected.grad.any()


SETTINGS = {
    "loss_agg_mode": "seq-mean-token-sum-norm",
    "loss_scale_factor": 7.0,
    "dual_clip": True,
    "entropy_alpha": 0.3,
    "entropy_kappa": 3.0,
    "kl_type": "k2",
    "kl_coef": 0.2,
    "rollout_is_threshold": (0.5, 1.5),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_module_holds_the_settings_of_a_run(name, device):
    batch = DEFAULT_METHODS["maspo"].full_batch(5, 9, device=device)
    batch["log_prob"] = batch["log_prob"] + 3  # beyond the dual clip
    all_but_one = {other: value for other, value in SETTINGS.items() if other != name}
    expected = run(batch, through_policy_loss(maspo_ext.policy_loss), **SETTINGS)
    module = maspo_ext.PolicyLoss(**SETTINGS)
    assert f"{name}={SETTINGS[name]!r}" in repr(module)
    assert_same_bits(run(batch, through_policy_loss(module)), expected)
    assert_same_bits(run(batch, through_policy_loss(maspo_ext.PolicyLoss(**all_but_one)), **{name: SETTINGS[name]}), expected)
    other = run(batch, through_policy_loss(maspo_ext.PolicyLoss(**all_but_one)))
    assert any(not torch.equal(a, b) for a, b in zip(other, expected, strict=True)), "the setting matters"


@pytest.mark.parametrize(
    "wrong", [{"kl_coef": -1.0}, {"kl_type": "k4"}, {"rollout_is_threshold": "a"}, {"entropy_kappa": 0.5}, {"loss_scale_factor": 0}, {"dual_clip": 1}], ids=str
)  # fmt: skip
def test_the_module_checks_its_settings_when_made(wrong):
    with pytest.raises((TypeError, ValueError), match=f"maspo_ext: {next(iter(wrong))}: expected"):
        maspo_ext.PolicyLoss(**wrong)


@pytest.mark.parametrize("given", [{"ratio_mode": "dac"}, {"alpha": 0.1}, {"config": None}, {"clip_low": 0.2}], ids=str)
def test_the_method_of_a_module_is_fixed(given, device):
    with pytest.raises(TypeError, match="PolicyLoss: expected the method and its hyper-parameters at construction, got"):
        maspo_ext.PolicyLoss()(**random_batch(4, 6), **given)


NO_BOUNDS = [
    ("maspo", {"sigma_high": float("inf")}, {"sigma_high": 1e30}),
    ("maspo", {"adv_high": float("inf")}, {"adv_high": 1e30}),
    ("ppo", {"clip_ratio_c": float("inf")}, {"clip_ratio_c": 1e30}),
    ("dac", {"clip_ratio_c": float("inf")}, {"clip_ratio_c": 1e30}),
    ("bapo", {"clip_ratio_c": float("inf")}, {"clip_ratio_c": 1e30}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode, none, large", NO_BOUNDS, ids=str)
def test_inf_is_no_bound(mode, none, large, dtype, device):
    batch = random_batch(5, 40, dtype=dtype, spread=3.0, device=device)
    batch["advantages"] *= 100  # so that the bound of its factor is reached
    front = through_policy_loss(maspo_ext.policy_loss)
    result = run(batch, front, ratio_mode=mode, **none)
    assert_same_bits(result, run(batch, front, ratio_mode=mode, **large))
    assert not torch.equal(result.loss, run(batch, front, ratio_mode=mode, **(none | {name: 2.0 if name != "sigma_high" else 1.1 for name in none})).loss)  # fmt: skip
    expected = run(batch, reference, **maspo_ext.config.config_for(mode, None, none, "policy_loss").op_keywords(mode))
    for actual, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_keeps_the_gradient(device):
    batch = random_batch(4, 6, device=device, weights=False)
    log_probs = torch.stack([batch["log_prob"], batch["log_prob"] + 0.1]).requires_grad_()
    others = [batch[name] for name in ("old_log_prob", "advantages", "response_mask")]
    torch.func.vmap(lambda log_prob: maspo_ext.policy_loss(log_prob, *others).loss)(log_probs).sum().backward()
    for log_prob, grad in zip(log_probs.detach(), log_probs.grad, strict=True):
        assert torch.equal(grad, run({**batch, "log_prob": log_prob}).grad)
