"""Keywords that nothing takes, or something near: the error names what was called, and a remedy that works."""

import pytest
import torch

import maspo_ext

from .cases import random_batch


def linear_batch():
    batch = random_batch(2, 3, dtype=torch.float32, weights=False)
    del batch["log_prob"]
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 3, 4, generator=generator), torch.randn(7, 4, generator=generator)
    return {"hidden": hidden, "weight": weight, "target": torch.zeros(2, 3, dtype=torch.int64), **batch}


# What is called, by the name in its errors; a module's call has that of the module.
CALLS = {
    "policy_loss": lambda **keywords: maspo_ext.policy_loss(**random_batch(4, 6), **keywords),
    "linear_loss": lambda **keywords: maspo_ext.linear_loss(**linear_batch(), **keywords),
    "PolicyLoss": maspo_ext.PolicyLoss,
    "LinearPolicyLoss": maspo_ext.LinearPolicyLoss,
    "PolicyLoss()": lambda **keywords: maspo_ext.PolicyLoss()(**random_batch(4, 6), **keywords),
    "LinearPolicyLoss()": lambda **keywords: maspo_ext.LinearPolicyLoss()(**linear_batch(), **keywords),
}
FUNCTIONS, MODULES = ("policy_loss", "linear_loss"), ("PolicyLoss", "LinearPolicyLoss")
LINEAR = ("linear_loss", "LinearPolicyLoss", "LinearPolicyLoss()")
ALL = tuple(CALLS)
MADE = "which belongs to the construction of the module"

MISSPELT = [
    (ALL, "kl_ceof", "Did you mean kl_coef?"),
    (FUNCTIONS + MODULES, "alhpa", "Did you mean alpha?"),
    (("PolicyLoss()", "LinearPolicyLoss()"), "alhpa", f"Did you mean alpha, {MADE}?"),
    (("PolicyLoss()", "LinearPolicyLoss()") + FUNCTIONS, "batch_num_token", "Did you mean batch_num_tokens?"),
    (MODULES, "batch_num_token", "Did you mean batch_num_tokens, which belongs to a call of the module?"),
    (MODULES, "dp_size", "It belongs to a call of the module."),
    (("LinearPolicyLoss",), "bias", "It belongs to a call of the module."),
    (LINEAR, "temprature", "Did you mean temperature?"),
    (LINEAR, "memory_budgt", "Did you mean memory_budget?"),
    (LINEAR, "entropy_coeff", "Did you mean entropy_coef?"),
    (("policy_loss",), "entropy_coeff", "Did you mean entropy_coef, which belongs to maspo_ext.linear_loss?"),
    (("policy_loss",), "temperature", "It belongs to maspo_ext.linear_loss."),
    (("PolicyLoss", "PolicyLoss()"), "entropy_coeff", "Did you mean entropy_coef, which belongs to maspo_ext.LinearPolicyLoss?"),
    (("PolicyLoss", "PolicyLoss()"), "temperature", "It belongs to maspo_ext.LinearPolicyLoss."),
    (FUNCTIONS + MODULES, "loss_type", "Did you mean ratio_mode and loss_agg_mode?"),
    (FUNCTIONS + MODULES, "clip_ratio", "Did you mean clip_ratio_low and clip_ratio_high?"),
    (("PolicyLoss()",), "clip_ratio", f"Did you mean clip_low and clip_high, {MADE}?"),
    *((FUNCTIONS + MODULES, name, "Did you mean clip_ratio_low and clip_ratio_high?") for name in ("clip_eps", "cliprange", "eps_clip")),
    (FUNCTIONS + MODULES, "hyper", "Did you mean config?"),
    (("policy_loss",), "bapo_sums", "Did you mean all_reduce_sums?"),
    (ALL, "rollout_is_lower", "Did you mean rollout_is_threshold?"),
    (ALL, "eps_high", "It belongs to ratio_mode='dac'."),
    (ALL, "zzzz", "Check the spelling."),
]


@pytest.mark.parametrize(
    "call, name, remedy", [(call, name, remedy) for calls, name, remedy in MISSPELT for call in calls]
)
def test_a_keyword_that_is_not_taken(call, name, remedy):
    if call.endswith("()"):
        remedy = remedy.replace("clip_low and clip_high", "clip_ratio_low and clip_ratio_high")
    with pytest.raises(TypeError) as raised:
        CALLS[call](**{name: None})
    text = str(raised.value)
    assert text.startswith(f"maspo_ext: {call.removesuffix('()')}: expected ")
    assert text.endswith(f", got {name}. {remedy}")


@pytest.mark.parametrize(
    "ratio_mode, remedy",
    [
        ("dac", "Did you mean eps_low and eps_high?"),
        ("sapo", "It would be clip_ratio_low and clip_ratio_high, which SapoConfig does not have: drop it."),
    ],
)
def test_anothers_name_is_that_of_the_mode(ratio_mode, remedy):
    with pytest.raises(TypeError) as raised:
        CALLS["policy_loss"](ratio_mode=ratio_mode, epsilon=0.2)
    assert str(raised.value).endswith(remedy)


SUGGESTIONS = [
    ({"sigma_bse": 1.0}, "sigma_base"),
    ({"rollout_is_treshold": 2.0}, "rollout_is_threshold"),
    ({"loss_agg_mod": "token-sum"}, "loss_agg_mode"),
    ({"beta": 0.1}, "kl_coef"),
    ({"epsilon_high": 0.3}, "clip_ratio_high"),
    ({"mask": None}, "response_mask"),
]


@pytest.mark.parametrize("wrong, meant", SUGGESTIONS, ids=str)
def test_a_misspelt_keyword_is_understood(wrong, meant):
    with pytest.raises(TypeError, match=rf"got {next(iter(wrong))}\. Did you mean {meant}\?"):
        maspo_ext.policy_loss(**random_batch(4, 6), **wrong)


def test_a_keyword_of_another_mode_is_known():
    with pytest.raises(TypeError, match=r"got eps_high\. It belongs to ratio_mode='dac'\."):
        maspo_ext.policy_loss(**random_batch(4, 6), eps_high=0.2)


@pytest.mark.parametrize("call", FUNCTIONS + MODULES)
def test_names_are_looked_at_before_a_config_beside_them(call):
    with pytest.raises(TypeError, match=r"got alhpa\. Did you mean alpha\?"):
        CALLS[call](config=maspo_ext.MaspoConfig(), alhpa=0.3)


@pytest.mark.parametrize("name", ["log_prob", "entropy"])
@pytest.mark.parametrize("call", ["linear_loss", "LinearPolicyLoss()"])
def test_what_linear_loss_makes_itself_is_not_taken(call, name):
    with pytest.raises(ValueError, match=f"maspo_ext: {name}: expected nothing, since linear_loss makes it, got a value. Drop it"):
        CALLS[call](**{name: torch.zeros(2, 3)})
    CALLS[call](**{name: None})


@pytest.mark.parametrize("call", FUNCTIONS + MODULES)
def test_a_config_says_its_mode(call):
    with pytest.raises(TypeError, match="config: expected a MaspoConfig for ratio_mode='maspo', got DacConfig. Pass ratio_mode='dac' with it."):
        CALLS[call](config=maspo_ext.DacConfig())
    with pytest.raises(TypeError, match=r"config: .*, got the class DacConfig. Make one: config=DacConfig\(\)."):
        CALLS[call](config=maspo_ext.DacConfig)
    with pytest.raises(ValueError, match=r"ratio_mode: .*, got DacConfig\(.*\). That is a config: pass ratio_mode='dac', and it as config="):
        CALLS[call](ratio_mode=maspo_ext.DacConfig())
    with pytest.raises(ValueError, match=r"pass ratio_mode='ppo' or 'grpo', and it as config="):
        CALLS[call](ratio_mode=maspo_ext.PpoConfig())


@pytest.mark.parametrize("setting", [{"temperature": 0.5}, {"entropy_coef": 0.1}, {"memory_budget": 4096}, {"kl_type": "k2"}], ids=str)
def test_a_call_may_have_a_setting_of_its_own(setting):
    batch = linear_batch() | {"ref_log_prob": torch.full((2, 3), -1.0), "kl_coef": 0.3}
    module = maspo_ext.LinearPolicyLoss(entropy_coef=0.7, temperature=0.9, kl_type="k1")
    fixed = {"entropy_coef": 0.7, "temperature": 0.9, "kl_type": "k1"}
    before = module(**batch).loss
    loss = module(**batch, **setting).loss
    assert torch.equal(loss, maspo_ext.linear_loss(**batch, **(fixed | setting)).loss)
    assert torch.equal(module(**batch).loss, before), "for that call alone"
    assert "memory_budget" in setting or not torch.equal(loss, before)


def test_the_twin_of_the_op_takes_its_keywords_alone():
    with pytest.raises(TypeError, match=r"^maspo_ext: reference\.loss: expected keywords of torch\.ops\.maspo\.loss, got kl_ceof\. Did you mean kl_coef\?$"):
        maspo_ext.reference.loss(**random_batch(4, 6), kl_ceof=0.1)
    of_op = {argument.name for argument in torch.ops.maspo.loss.default._schema.arguments}
    assert set(maspo_ext.reference._ARGUMENTS) == of_op


WRONG = [
    ("policy_loss", {"ratio_mode": "mapso"}, "ratio_mode: expected one of maspo, .*Choose one of these"),
    ("policy_loss", {"alhpa": 0.3}, "policy_loss: expected keywords of MaspoConfig .*Check the spelling"),
    ("policy_loss", {"config": maspo_ext.DacConfig()}, "config: expected a MaspoConfig .*Pass ratio_mode=.*dac"),
    ("PolicyLoss", {"alhpa": 0.3}, "PolicyLoss: expected in a call .*Check the spelling"),
]


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("front, wrong, text", WRONG, ids=lambda value: str(value)[:20])
def test_a_compiled_call_says_the_same(front, wrong, text, fullgraph):
    """torch.compile cannot trace how a name is suggested, and would speak of that alone."""
    torch._dynamo.reset()
    function = maspo_ext.policy_loss if front == "policy_loss" else maspo_ext.PolicyLoss()
    with pytest.raises(Exception, match=f"maspo_ext: {text}"):
        torch.compile(function, backend="eager", fullgraph=fullgraph)(**random_batch(4, 6), **wrong)
    torch._dynamo.reset()
