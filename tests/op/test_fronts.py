"""The public contract: the schema, the function, the module, the configs."""

import copy
import dataclasses
import inspect
import pickle

import pytest
import torch

import maspo_ext

from .cases import GLOBAL_COUNTS, Result, assert_same_bits, op, random_batch, reference, run

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
    "loss_agg_mode": "token-mean",
    "dp_size": 1,
    "batch_num_tokens": None,
    "global_batch_size": None,
    "loss_scale_factor": None,
    **EXTRA,
}
POSITIONAL = ["log_prob", "old_log_prob", "advantages", "response_mask"]
OTHER = {
    "alpha": 0.5,
    "sigma_base": 0.7,
    "beta_pos": 0.4,
    "beta_neg": 0.2,
    "sigma_high": 4.0,
    "adv_low": 0.6,
    "adv_high": 1.4,
}


@pytest.mark.parametrize("name", ["loss", "loss_forward"])
def test_schema(name):
    arguments = getattr(torch.ops.maspo, name).default._schema.arguments
    assert [a.name for a in arguments if not a.kwarg_only] == POSITIONAL
    keywords = {a.name: a.default_value for a in arguments if a.kwarg_only and a.name != "need_grad"}
    assert list(keywords) == list(KEYWORDS) and keywords == KEYWORDS
    assert [r.name for r in torch.ops.maspo.loss.default._schema.returns] == ["loss", "stats"]


def test_the_reference_has_the_same_signature():
    parameters = inspect.signature(reference).parameters
    assert list(parameters) == POSITIONAL + list(KEYWORDS)
    assert {name: parameters[name].default for name in KEYWORDS} == KEYWORDS


def test_config_defaults_are_the_published_ones():
    assert dataclasses.asdict(maspo_ext.MaspoConfig()) == PUBLISHED | EXTRA == maspo_ext.MaspoConfig().to_kwargs()


def test_a_keyword_given_by_name_is_the_default(device):
    batch = random_batch(5, 9, device=device, weights=False)
    assert_same_bits(run(batch, **KEYWORDS), run(batch))


@pytest.mark.parametrize(
    "name, value",
    [*OTHER.items(), ("clip_ratio_low", 0.5), ("clip_ratio_high", 0.7), ("clip_ratio_c", 1.1), ("gate_gradient", True)],
)
def test_every_hyper_parameter_matters(name, value, device):
    """One lost on its way would change nothing; one in another's place would not agree with the reference."""
    batch = random_batch(20, 40, device=device, spread=1.0)
    batch["advantages"] *= 10  # so that the bounds of the advantage's factor are reached
    result, default = run(batch, **{name: value}), run(batch)
    assert any(not torch.equal(a, b) for a, b in zip(result, default, strict=True))
    for actual, expected in zip(result, run(batch, reference, **{name: value}), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-14)


def through_policy_loss(front):
    def function(**arguments):
        output = front(**arguments)
        assert isinstance(output, maspo_ext.PolicyLossOutput)
        return output.loss, output.stats.tensor

    return function


CONFIG = maspo_ext.MaspoConfig(gate_gradient=True, clip_ratio_c=1.5, **OTHER)
CALLS = {
    "config": (maspo_ext.policy_loss, {"config": CONFIG}),
    "keywords": (maspo_ext.policy_loss, CONFIG.to_kwargs()),
    "module of a config": (maspo_ext.PolicyLoss(config=CONFIG, loss_agg_mode="seq-mean-token-sum"), {}),
    "module of keywords": (maspo_ext.PolicyLoss("maspo", loss_agg_mode="seq-mean-token-sum", **CONFIG.to_kwargs()), {}),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("counts", [{}, GLOBAL_COUNTS], ids=["local", "global"])
def test_fronts_hand_everything_to_the_op(counts, call, device):
    front, keywords = CALLS[call]
    batch = random_batch(5, 9, device=device)
    if isinstance(front, torch.nn.Module):
        agg = {}
        assert not list(front.parameters()) and "alpha=0.5" in repr(front)
    else:
        agg = {"loss_agg_mode": "seq-mean-token-sum"}
    expected = run(batch, loss_agg_mode="seq-mean-token-sum", **CONFIG.to_kwargs(), **counts)
    assert_same_bits(run(batch, through_policy_loss(front), **keywords, **agg, **counts), expected)


def test_config_is_frozen_and_comparable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.alpha = 0.1
    assert dataclasses.replace(CONFIG, alpha=0.1) != CONFIG
    assert len({CONFIG, dataclasses.replace(CONFIG)}) == 1
    with pytest.raises(ValueError, match="alpha"):
        dataclasses.replace(CONFIG, alpha=-1.0)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_configs_and_modules_can_be_copied_and_pickled(duplicate, device):
    assert duplicate(CONFIG) == CONFIG
    module = maspo_ext.PolicyLoss(config=CONFIG)
    batch = random_batch(5, 9, device=device)
    assert_same_bits(run(batch, through_policy_loss(duplicate(module))), run(batch, through_policy_loss(module)))


def test_inputs_are_not_modified(device):
    batch = random_batch(5, 9, dtype=torch.float32, device=device)
    before = {name: value.clone() for name, value in batch.items()}
    run(batch)
    assert all(torch.equal(batch[name], before[name]) for name in batch)


def test_positional_call(device):
    batch = random_batch(5, 9, device=device, weights=False)
    loss, stats = op(*(batch[name] for name in POSITIONAL))
    expected = run(batch)
    assert_same_bits(Result(loss, expected.grad, stats), expected)
