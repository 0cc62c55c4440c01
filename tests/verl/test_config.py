"""Wrong settings stop the run in the driver, with the key that the user typed and what to do."""

import copy
import dataclasses
import logging
import pickle
import re
from dataclasses import fields
from pathlib import Path

import pytest
import verl  # noqa: F401  loads the plugin
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.workers.config import ActorConfig

from maspo_ext import RATIO_MODES
from maspo_ext.integrations.verl import PolicyLossConfig, RatioClipConfig
from maspo_ext.integrations.verl.ratio_clip import VERL_CLIP, VERL_LOSS_AGG_MODE
from maspo_ext.integrations.verl.ratio_modes import FUSED, ratio_mode_of, registry_name

ACTOR = "actor_rollout_ref.actor"
POLICY_LOSS = f"{ACTOR}.policy_loss"
RATIO_CLIP = f"{POLICY_LOSS}.ratio_clip"
VERLS_OWN = f"For verl's own loss of that name set {POLICY_LOSS}.loss_mode="
# section, key named, and words that the message must have: what was expected, what came, what to do
WRONG = {
    "unknown mode": ({"ratio_mode": "xyz"}, "ratio_mode", ["one of ppo, maspo", "'xyz'"]),
    "misspelt mode": ({"ratio_mode": "MASPO"}, "ratio_mode", ["'MASPO'", "Did you mean maspo?"]),
    "no mode": ({"ratio_mode": None}, "ratio_mode", ["None"]),
    "list of modes": ({"ratio_mode": ["maspo"]}, "ratio_mode", ["['maspo']"]),
    "misspelt key": ({"maspo_alhpa": 0.5}, "maspo_alhpa", ["maspo_sigma_base", "Did you mean maspo_alpha?"]),
    "unknown key": ({"xyz": 0.5}, "xyz", ["ratio_mode, maspo_sigma_base", "Remove it"]),
    "alpha": ({"maspo_alpha": -0.1}, "maspo_alpha", [">= 0", "-0.1", "0.3"]),
    "sigma_base": ({"maspo_sigma_base": 0}, "maspo_sigma_base", ["> 0", "got 0"]),
    "sigma_high": ({"maspo_sigma_high": 0.5}, "maspo_sigma_high", [">= maspo_sigma_base = 1.0", "0.5"]),
    "adv_low": ({"maspo_adv_low": 0.0}, "maspo_adv_low", ["> 0"]),
    "adv_high": ({"maspo_adv_high": 0.05}, "maspo_adv_high", [">= maspo_adv_low = 0.1"]),
    "beta_pos": ({"maspo_beta_pos": -1.0}, "maspo_beta_pos", [">= 0"]),
    "beta_neg": ({"maspo_beta_neg": float("nan")}, "maspo_beta_neg", [">= 0", "nan"]),
    "word": ({"maspo_alpha": "high"}, "maspo_alpha", ["a number", "'high'"]),
    "null": ({"maspo_alpha": None}, "maspo_alpha", ["a number", "None"]),
    "verl's name of a mode": ({"ratio_mode": "vanilla"}, "ratio_mode", ["one of ppo, maspo, grpo", "'vanilla'", VERLS_OWN]),
    "verl's own method": ({"ratio_mode": "gspo"}, "ratio_mode", ["one of ppo, maspo, grpo", "'gspo'", VERLS_OWN]),
    "nobody's method": ({"ratio_mode": "gmpo"}, "ratio_mode", ["'gmpo'. ppo leaves the loss to loss_mode"]),
    "DAPO": ({"ratio_mode": "dapo"}, "ratio_mode", ["Did you mean clip_higher, the clip of DAPO?"]),
    "registry name": ({"ratio_mode": "maspo_ext.dac"}, "ratio_mode", ["'maspo_ext.dac'"]),
    "grpo has no keys": ({"grpo_clip_ratio_low": 0.1}, "grpo_clip_ratio_low", ["one of the keys"]),
    "clip of maspo": ({"maspo_clip_ratio_c": 2.0}, "maspo_clip_ratio_c", ["one of the keys"]),
    "gate_gradient": ({"maspo_gate_gradient": "yes"}, "maspo_gate_gradient", ["True or False", "'yes'"]),
    "clip_ratio_high": ({"clip_higher_clip_ratio_high": -0.1}, "clip_higher_clip_ratio_high", [">= 0", "-0.1"]),
    "clip_ratio_c": ({"dac_clip_ratio_c": 1.0}, "dac_clip_ratio_c", ["> 1", "got 1.0"]),
    "eps_high": ({"dac_eps_high": None}, "dac_eps_high", ["a number", "None"]),
    "kappa": ({"entropy_adv_kappa": 0.5}, "entropy_adv_kappa", [">= 1", "0.5"]),
    "lower_max": ({"bapo_ratio_lower_max": 0.5}, "bapo_ratio_lower_max", [">= bapo_ratio_lower_start = 0.6", "0.5"]),
    "lower bound above 1": ({"bapo_ratio_lower_max": 1.5}, "bapo_ratio_lower_max", ["<= 1.0", "1.5"]),
    "upper_first": ({"bapo_upper_first": 1}, "bapo_upper_first", ["True or False", "got 1"]),
    "null step": ({"bapo_ratio_upper_step": None}, "bapo_ratio_upper_step", ["a number", "None"]),
    "tau_pos": ({"sapo_tau_pos": 0}, "sapo_tau_pos", ["> 0", "got 0"]),
    "agg mode": ({"sapo_loss_agg_mode": "token_mean"}, "sapo_loss_agg_mode", ["null or one of", "mean token-mean?"]),
    "dual_clip": ({"dual_clip": "true"}, "dual_clip", ["True or False", "'true'"]),
    "entropy_adv": ({"entropy_adv": 0.4}, "entropy_adv", ["True or False", "0.4"]),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("mode", [{}, {"ratio_mode": "maspo"}], ids=["ppo", "maspo"])
def test_wrong_section(case, mode):
    section, key, words = WRONG[case]
    with pytest.raises(ValueError) as caught:
        PolicyLossConfig(ratio_clip=mode | section)
    message = str(caught.value)
    assert message.startswith(f"maspo_ext: {RATIO_CLIP}.{key}: expected ")
    assert "\n" not in message  # Hydra prints it by its repr
    for word in words:
        assert word in message


def test_every_key_that_a_message_names_is_full():
    with pytest.raises(ValueError) as caught:
        PolicyLossConfig(ratio_clip={"bapo_ratio_lower_step": 1e-3})
    both = f"{RATIO_CLIP}.bapo_ratio_lower_step, {RATIO_CLIP}.bapo_ratio_upper_step"
    assert str(caught.value).startswith(f"maspo_ext: {both}: expected steps that make at most 128 bounds to try")


@pytest.mark.parametrize("section", [None, 3, "maspo"])
def test_section_that_is_none(section):
    with pytest.raises(ValueError, match=f"maspo_ext: {RATIO_CLIP}: expected a section with keys out of ratio_mode"):
        PolicyLossConfig(ratio_clip=section)


@pytest.mark.parametrize("loss_mode", ["gspo", "sapo", "bypass_mode", "maspo_ext.xyz"])
@pytest.mark.parametrize("ratio_mode", FUSED)
def test_two_losses_at_once(loss_mode, ratio_mode):
    with pytest.raises(ValueError) as caught:
        PolicyLossConfig(loss_mode=loss_mode, ratio_clip={"ratio_mode": ratio_mode})
    message, name = str(caught.value), registry_name(ratio_mode)
    assert message.startswith(f"maspo_ext: {POLICY_LOSS}.loss_mode: expected vanilla or {name}, since {RATIO_CLIP}.")
    assert f"got {loss_mode!r}" in message
    assert ("algorithm.rollout_correction.bypass_mode=True" in message) == (loss_mode == "bypass_mode")
    # What is no loss of verl's is refused with ratio_mode=ppo, too.
    assert (f"or set ratio_mode=ppo to train with {loss_mode}." in message) == (loss_mode != "maspo_ext.xyz")


@pytest.mark.parametrize(
    "loss_mode, meant",
    [("dac", "dac"), ("grpo", "grpo"), ("mapso", "maspo"), ("MASPO", "maspo"), ("maspo_ext.sappo", "sapo"), ("dapo", "clip_higher"), ("dcpo", "dac")],
)
def test_a_mode_as_loss_mode(loss_mode, meant):
    with pytest.raises(ValueError) as raised:
        PolicyLossConfig(loss_mode=loss_mode)
    assert "loss_mode: expected one of verl's losses (bypass_mode, " in str(raised.value)
    assert f"got {loss_mode!r}. Did you mean {RATIO_CLIP}.ratio_mode={meant}?" in str(raised.value)


@pytest.mark.parametrize(
    "loss_mode, remedy", [("my_loss", "Check the spelling."), ("gmpo", "Did you mean gspo?"), ("gspp", "Did you mean gspo?"), ("vanila", "Did you mean vanilla?")]
)
def test_a_loss_that_somebody_registers_later_is_left_alone(loss_mode, remedy, caplog):
    """Only said to be unknown: verl itself stops with one that is misspelt, but after the first rollout."""
    with caplog.at_level(logging.WARNING):
        assert PolicyLossConfig(loss_mode=loss_mode).loss_mode == loss_mode
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith(f"maspo_ext: {POLICY_LOSS}.loss_mode: expected a loss that is registered (bypass_mode, ")
    assert f"got {loss_mode!r}. {remedy} If your own code registers it later" in text


@pytest.mark.parametrize("key, value", [("ratio_mode", "maspo"), ("maspo_alpha", 0.2), ("dual_clip", True)])
def test_a_key_one_level_too_high(key, value):
    message = f"maspo_ext: {POLICY_LOSS}.{key}: expected this key one level below, under ratio_clip, got {value!r}. Set {RATIO_CLIP}.{key}={value}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PolicyLossConfig(**{key: value})


@pytest.mark.parametrize("value", [".inf", "+.Inf"])
def test_inf_as_yaml_writes_it(value):
    """Hydra's command line takes it for a word."""
    key = f"{RATIO_CLIP}.maspo_sigma_high"
    message = f"maspo_ext: {key}: expected a number, got {value!r}. On a command line it has no dot: {key}=inf."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PolicyLossConfig(ratio_clip={"maspo_sigma_high": value})


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), dataclasses.replace])
def test_the_section_can_be_copied_and_sent(duplicate):
    config = PolicyLossConfig(ratio_clip={"ratio_mode": "dac"})
    assert duplicate(config) == config


@pytest.mark.parametrize("loss_mode", ["vanilla", "gspo", "sapo", "bypass_mode"])
def test_ratio_mode_ppo_leaves_loss_mode_alone(loss_mode):
    assert PolicyLossConfig(loss_mode=loss_mode).loss_mode == loss_mode
    assert PolicyLossConfig(loss_mode=loss_mode, ratio_clip={"ratio_mode": "ppo"}).loss_mode == loss_mode


ROUTES = {ratio_mode: f"maspo_ext.{ratio_mode}" for ratio_mode in FUSED} | {"maspo": "maspo"}


@pytest.mark.parametrize(("ratio_mode", "name"), ROUTES.items())
def test_ratio_mode_routes(ratio_mode, name):
    for loss_mode in ("vanilla", name):
        assert PolicyLossConfig(loss_mode=loss_mode, ratio_clip={"ratio_mode": ratio_mode}).loss_mode == name
    assert PolicyLossConfig(loss_mode=name).loss_mode == name


def test_keys_without_their_mode_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        PolicyLossConfig()
        PolicyLossConfig(ratio_clip={"ratio_mode": "maspo", "maspo_alpha": 0.5})
        assert not caplog.records
        PolicyLossConfig(ratio_clip={"maspo_alpha": 0.5})
    assert "maspo_alpha set but not used by ratio_mode=ppo, verl's own loss" in caplog.text
    assert f"{RATIO_CLIP}.ratio_mode=maspo" in caplog.text


@pytest.mark.parametrize("ratio_mode", FUSED)
def test_keys_of_another_mode_are_warned_of(caplog, ratio_mode):
    PolicyLossConfig(ratio_clip={"ratio_mode": ratio_mode, "dac_eps_low": 0.16, "sapo_loss_agg_mode": "token-sum"})
    for other, key in (("dac", "dac_eps_low"), ("sapo", "sapo_loss_agg_mode")):
        message = f"{key} set but not used by ratio_mode={ratio_mode}. Set {RATIO_CLIP}.ratio_mode={other} to use it"
        assert (message in caplog.text) == (ratio_mode != other)


def test_keys_that_entropy_adv_uses(caplog):
    own = {"entropy_adv_alpha": 0.1, "entropy_adv_kappa": 3.0}
    PolicyLossConfig(ratio_clip={"ratio_mode": "maspo", "entropy_adv": True} | own)
    assert not caplog.records
    PolicyLossConfig(ratio_clip={"ratio_mode": "maspo", "entropy_adv": True, "entropy_adv_clip_ratio_high": 0.3} | own)
    assert "entropy_adv_clip_ratio_high set but not used by ratio_mode=maspo" in caplog.text
    assert "to use it beside" not in caplog.text, "it is beside maspo, and does not use that key"
    PolicyLossConfig(ratio_clip={"ratio_mode": "maspo", "entropy_adv_kappa": 3.0})
    assert f"{RATIO_CLIP}.entropy_adv=True to use it beside maspo" in caplog.text
    assert "alpha" not in caplog.text


@pytest.mark.parametrize("switch", ["dual_clip", "entropy_adv"])
@pytest.mark.parametrize("loss_mode", ["vanilla", "sapo"])
def test_verls_own_loss_has_no_switches(switch, loss_mode):
    with pytest.raises(ValueError) as caught:
        PolicyLossConfig(loss_mode=loss_mode, ratio_clip={switch: True})
    message = str(caught.value)
    assert message.startswith(f"maspo_ext: {RATIO_CLIP}.{switch}: expected False, since ratio_mode=ppo trains with")
    assert f"verl's own {loss_mode} loss, got True. Set {RATIO_CLIP}.ratio_mode=grpo" in message
    PolicyLossConfig(loss_mode="maspo_ext.grpo", ratio_clip={switch: True})


# ---- what depends on the rest of the actor config


def actor(section, **settings):
    policy_loss = PolicyLossConfig(ratio_clip=section)
    return ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss, **settings
    )


def test_our_copy_of_verls_defaults():
    defaults = {f.name: f.default for f in fields(ActorConfig)}
    assert VERL_CLIP == {name: defaults[name] for name in VERL_CLIP}
    assert VERL_LOSS_AGG_MODE == defaults["loss_agg_mode"]


def test_null_bounds_of_bapo_are_those_of_the_actors_clip():
    section = {"ratio_mode": "bapo", "bapo_ratio_lower_start": None, "bapo_ratio_lower_max": 0.75}
    actor(section, clip_ratio_low=0.3)
    with pytest.raises(ValueError, match=r"\.bapo_ratio_lower_max: expected >= bapo_ratio_lower_start = 0\.8"):
        actor(section, clip_ratio_low=0.2)
    for name in ("lower_max", "upper_start", "upper_max"):
        actor({"ratio_mode": "bapo", f"bapo_ratio_{name}": None})
    with pytest.raises(ValueError, match=rf"{RATIO_CLIP}\.bapo_eps: expected >= 0"):
        actor(section | {"bapo_eps": -1.0}, clip_ratio_low=0.3)


@pytest.mark.parametrize(
    ("ratio_mode", "setting", "used"),
    [
        ("clip_higher", {"clip_ratio_high": 0.3}, False),
        ("dac", {"clip_ratio_low": 0.1}, False),
        ("sapo", {"tau_pos": 2.0}, False),
        ("sapo", {"clip_ratio_low": 0.3}, False),
        ("sapo", {"clip_ratio_c": 2.0}, True),
        ("grpo", {"clip_ratio_high": 0.3}, True),
        ("bapo", {"clip_ratio_c": 2.0}, True),
        ("maspo", {"clip_ratio_low": None}, True),
    ],
)
def test_settings_of_the_actor_that_have_other_keys_here(caplog, ratio_mode, setting, used):
    actor({"ratio_mode": ratio_mode}, **setting)
    ((name, value),) = setting.items()
    assert (f"{ACTOR}.{name}={value!r} set but not used by ratio_mode={ratio_mode}" in caplog.text) == (not used)
    # SAPO has no clip that a key of its own could stand for.
    assert (f"{RATIO_CLIP}.{ratio_mode}_" in caplog.text) == (not used and (ratio_mode, name) != ("sapo", "clip_ratio_low"))
    assert ("which has none: drop it" in caplog.text) == ((ratio_mode, name) == ("sapo", "clip_ratio_low"))


@pytest.mark.parametrize("agg_mode", ["token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("factor", [0, -1])
def test_a_loss_scale_factor_out_of_range_stops_before_the_first_rollout(factor, agg_mode):
    actor({"ratio_mode": "maspo"}, loss_scale_factor=7, loss_agg_mode=agg_mode)
    with pytest.raises(ValueError, match=rf"^maspo_ext: {ACTOR}\.loss_scale_factor: expected > 0, got {factor}\. "):
        actor({"ratio_mode": "maspo"}, loss_scale_factor=factor, loss_agg_mode=agg_mode)


@pytest.mark.parametrize("dynamic", [True, False])
def test_bapo_needs_one_group_of_ranks_per_micro_batch(dynamic):
    from verl.workers.config import McoreActorConfig, McoreEngineConfig

    engine = McoreEngineConfig(dynamic_context_parallel=dynamic, max_seqlen_per_dp_cp_rank=1024)
    for ratio_mode in ("bapo", "maspo"):
        policy_loss = PolicyLossConfig(ratio_clip={"ratio_mode": ratio_mode})
        settings = dict(rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss, megatron=engine)
        if dynamic and ratio_mode == "bapo":
            with pytest.raises(ValueError, match=r"megatron\.dynamic_context_parallel: expected False, since .*=bapo"):
                McoreActorConfig(**settings)
        else:
            McoreActorConfig(**settings)


def test_config_is_typed_frozen_and_picklable():
    config = PolicyLossConfig(ratio_clip={"ratio_mode": "maspo", "maspo_alpha": 0.5})
    assert isinstance(config, verl.workers.config.PolicyLossConfig)
    assert isinstance(config.ratio_clip, RatioClipConfig)
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(AttributeError, match="frozen"):
        config.ratio_clip.maspo_alpha = 0.3


def driver(overrides):
    """What main_ppo does before it starts anything."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", *overrides])
    OmegaConf.resolve(config)
    validate_config(config, use_reference_policy=False, use_critic=False)
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


RUNNABLE = ["trainer.n_gpus_per_node=1", "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1"]


def test_driver_accepts():
    for ratio_mode, name in ROUTES.items():
        entropy = f"{ACTOR}.calculate_entropy={ratio_mode == 'entropy_adv'}"
        assert driver([*RUNNABLE, entropy, f"{RATIO_CLIP}.ratio_mode={ratio_mode}"]).policy_loss.loss_mode == name


@pytest.mark.parametrize("overrides", [["ratio_mode=entropy_adv"], ["ratio_mode=dac", "entropy_adv=true"]])
def test_driver_refuses_a_run_without_the_entropy_it_needs(overrides):
    with pytest.raises(Exception) as caught:
        driver([*RUNNABLE, *(f"{RATIO_CLIP}.{override}" for override in overrides)])
    assert f"maspo_ext: {ACTOR}.calculate_entropy: expected True" in str(caught.value)


@pytest.mark.parametrize("override", ["ratio_mode=xyz", "maspo_alpha=-1", "maspo_alhpa=1", "dual_clip=1"])
@pytest.mark.parametrize("prefix", ["", "++"])
def test_driver_refuses(override, prefix):
    with pytest.raises(Exception) as caught:
        driver([*RUNNABLE, f"{prefix}{RATIO_CLIP}.{override}"])
    key = override.partition("=")[0]
    assert f"maspo_ext: {RATIO_CLIP}.{key}: expected" in str(caught.value)


# ---- the backend of verl's fused kernels, as far as the driver knows of it

MODEL = "actor_rollout_ref.model"
BACKEND = f"{MODEL}.fused_kernel_options.impl_backend"
FUSED_KERNELS = [f"{MODEL}.use_fused_kernels=True", f"{BACKEND}=maspo"]


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_driver_accepts_our_backend(strategy, caplog):
    driver([*RUNNABLE, *FUSED_KERNELS, f"{ACTOR}.strategy={strategy}"])
    assert not caplog.records


@pytest.mark.parametrize("impl_backend", ["torch", "triton", "liger", "null"])
def test_driver_leaves_other_backends_to_verl(impl_backend, caplog):
    driver([*RUNNABLE, f"{MODEL}.use_fused_kernels=True", f"{BACKEND}={impl_backend}"])
    assert not caplog.records


def test_driver_refuses_a_misspelt_backend():
    with pytest.raises(ValueError, match=f"{BACKEND}: expected maspo .*, got 'masp0'. Did you mean maspo?"):
        driver([*RUNNABLE, f"{MODEL}.use_fused_kernels=True", f"{BACKEND}=masp0"])


@pytest.mark.parametrize("engine", ["megatron", "veomni", "torchtitan"])
def test_driver_refuses_our_backend_for_other_engines(engine):
    driver([*RUNNABLE, f"model_engine={engine}"])
    with pytest.raises(ValueError, match=f"{BACKEND}=maspo: expected .*fsdp or fsdp2, got '{engine}'"):
        driver([*RUNNABLE, f"model_engine={engine}", *FUSED_KERNELS])


def test_driver_warns_of_our_backend_without_fused_kernels(caplog):
    driver([*RUNNABLE, f"{BACKEND}=maspo"])
    assert f"{BACKEND}=maspo set but not used. Set {MODEL}.use_fused_kernels=True" in caplog.text


# ---- the README's table of command lines

README = Path(__file__).resolve().parents[2] / "README.md"
ROWS = {"GRPO": "grpo", "Clip Higher": "clip_higher", "DAC": "dac", "Entropy Adv.": "entropy_adv"}
ROWS |= {"BAPO": "bapo", "SAPO": "sapo", "MASPO": "maspo"}


def test_every_mode_has_a_row_and_a_config_class_in_the_readme():
    assert set(ROWS.values()) == set(FUSED)
    for ratio_mode in FUSED:
        assert f"| **`{RATIO_MODES[ratio_mode].__name__}`**" in README.read_text(), ratio_mode


@pytest.mark.parametrize("row", ROWS)
def test_command_line_of_the_readme(row):
    (line,) = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", README.read_text(), re.MULTILINE)
    (overrides,) = re.findall(rf"`([^`]*{RATIO_CLIP}[^`]*)`", line)
    actor = driver([*RUNNABLE, "algorithm.adv_estimator=grpo", *overrides.split()])
    assert actor.policy_loss.ratio_clip.ratio_mode == ROWS[row]
    assert ratio_mode_of(actor.policy_loss.loss_mode) == ROWS[row]


def test_fused_kernels_of_the_readme(caplog):
    (line,) = re.findall(rf"^  (.*{re.escape(BACKEND)}.*)$", README.read_text(), re.MULTILINE)
    assert line.split() == FUSED_KERNELS
    driver([*RUNNABLE, *line.split()])
    assert not caplog.records


def test_every_key_is_in_the_readme():
    text = README.read_text()
    # A row may name several keys that share their beginning: `bapo_ratio_lower_start`, `_max`; or "...".
    for key in RatioClipConfig.__dataclass_fields__:
        end = key.rpartition("_")[2]
        assert key in text or f"_{end}`" in text or re.search(rf"`{key.rpartition('_')[0]}_start`, \.\.\.", text), key
