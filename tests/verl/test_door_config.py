"""Wrong settings stop the run in the driver, with the key that the user typed and what to do."""

import logging
import pickle

import pytest
import verl  # noqa: F401  loads the plugin
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass, validate_config

from maspo_ext.integrations.verl import PolicyLossConfig, RatioClipConfig

POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
RATIO_CLIP = f"{POLICY_LOSS}.ratio_clip"
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


@pytest.mark.parametrize("section", [None, 3, "maspo"])
def test_section_that_is_none(section):
    with pytest.raises(ValueError, match=f"maspo_ext: {RATIO_CLIP}: expected a section with keys out of ratio_mode"):
        PolicyLossConfig(ratio_clip=section)


@pytest.mark.parametrize("loss_mode", ["gspo", "sapo", "bypass_mode"])
def test_two_losses_at_once(loss_mode):
    with pytest.raises(ValueError) as caught:
        PolicyLossConfig(loss_mode=loss_mode, ratio_clip={"ratio_mode": "maspo"})
    message = str(caught.value)
    assert message.startswith(f"maspo_ext: {POLICY_LOSS}.loss_mode: expected vanilla or maspo, since {RATIO_CLIP}.")
    assert f"got {loss_mode!r}" in message
    assert ("algorithm.rollout_correction.bypass_mode=True" in message) == (loss_mode == "bypass_mode")


@pytest.mark.parametrize("loss_mode", ["vanilla", "gspo", "bypass_mode"])
def test_ratio_mode_ppo_leaves_loss_mode_alone(loss_mode):
    assert PolicyLossConfig(loss_mode=loss_mode).loss_mode == loss_mode
    assert PolicyLossConfig(loss_mode=loss_mode, ratio_clip={"ratio_mode": "ppo"}).loss_mode == loss_mode


@pytest.mark.parametrize("loss_mode", ["vanilla", "maspo"])
def test_ratio_mode_maspo_routes(loss_mode):
    assert PolicyLossConfig(loss_mode=loss_mode, ratio_clip={"ratio_mode": "maspo"}).loss_mode == "maspo"


def test_keys_without_their_mode_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        PolicyLossConfig()
        PolicyLossConfig(ratio_clip={"ratio_mode": "maspo", "maspo_alpha": 0.5})
        assert not caplog.records
        PolicyLossConfig(ratio_clip={"maspo_alpha": 0.5})
    assert "maspo_alpha set but not used" in caplog.text
    assert f"{RATIO_CLIP}.ratio_mode=maspo" in caplog.text


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
    assert driver([*RUNNABLE, f"{RATIO_CLIP}.ratio_mode=maspo"]).policy_loss.loss_mode == "maspo"


@pytest.mark.parametrize("override", ["ratio_mode=xyz", "maspo_alpha=-1", "maspo_alhpa=1"])
@pytest.mark.parametrize("prefix", ["", "++"])
def test_driver_refuses(override, prefix):
    with pytest.raises(Exception) as caught:
        driver([*RUNNABLE, f"{prefix}{RATIO_CLIP}.{override}"])
    key = override.partition("=")[0]
    assert f"maspo_ext: {RATIO_CLIP}.{key}: expected" in str(caught.value)
