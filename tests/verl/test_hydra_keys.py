"""The published keys in the real Hydra configs of the installed verl."""

import subprocess
import sys
from pathlib import Path

import pytest
import verl  # noqa: F401  loads the plugin
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from maspo_ext import RATIO_MODES, MaspoConfig
from maspo_ext.integrations.verl import PolicyLossConfig
from maspo_ext.integrations.verl.actor_config import loss_config
from maspo_ext.integrations.verl.ratio_clip import keys
from maspo_ext.integrations.verl.ratio_modes import FUSED, ratio_mode_of
from maspo_ext.integrations.verl.search_path import ActorConfigSearchPath

from .hyper import HYPER
from .release import HAS_MODEL_ENGINE

POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
RATIO_CLIP = f"{POLICY_LOSS}.ratio_clip"
PUBLISHED = {
    "ratio_mode": "maspo",
    "maspo_sigma_base": 1.5,
    "maspo_alpha": 0.5,
    "maspo_beta_pos": 0.01,
    "maspo_beta_neg": 0.02,
    "maspo_sigma_high": 9.0,
    "maspo_adv_low": 0.2,
    "maspo_adv_high": 5.0,
}
# Beside the values of hyper.py: null, and a key that is no hyper-parameter.
BESIDE = {"bapo": {"ratio_lower_start": None, "ratio_upper_max": None}, "sapo": {"loss_agg_mode": "token-sum"}}
DEFAULTS = {
    "clip_higher": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 10.0},
    "dac": {"eps_low": 0.2, "eps_high": 0.28, "clip_ratio_c": 10.0},
    "entropy_adv": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 10.0, "alpha": 0.4, "kappa": 2.0},
    "bapo": {
        "adv_ratio_target": 1.0, "ratio_lower_start": 0.6, "ratio_lower_max": 0.8, "ratio_lower_step": 0.05,
        "ratio_upper_start": 1.2, "ratio_upper_max": 2.0, "ratio_upper_step": 0.05, "upper_first": False, "eps": 1e-8,
    },
    "sapo": {"tau_pos": 1.0, "tau_neg": 1.05, "loss_agg_mode": None},
}  # fmt: skip
VERL = "trainer/config"
ENTRY_CONFIGS = {
    "fsdp": (VERL, "ppo_trainer", []),
    "fsdp2": (VERL, "ppo_trainer", ["actor_rollout_ref.actor.strategy=fsdp2"]),
    "ppo_megatron_trainer": (VERL, "ppo_megatron_trainer", []),
}
if HAS_MODEL_ENGINE:
    ENTRY_CONFIGS |= {
        "megatron": (VERL, "ppo_trainer", ["model_engine=megatron"]),
        "veomni": (VERL, "ppo_trainer", ["model_engine=veomni"]),
        "torchtitan": (VERL, "ppo_trainer", ["model_engine=torchtitan"]),
        "fully_async": ("experimental/fully_async_policy/config", "fully_async_ppo_trainer", []),
    }
each_entry_config = pytest.mark.parametrize("entry", ENTRY_CONFIGS)


def compose_entry(entry, overrides=()):
    folder, name, selection = ENTRY_CONFIGS[entry]
    with initialize_config_dir(str(Path(verl.__file__).parent / folder), version_base=None):
        return compose(name, [*selection, *overrides])


@pytest.fixture
def without_plugin(monkeypatch):
    """Hydra as it is where maspo_ext is not installed."""
    by_type = Plugins.instance().plugin_type_to_subclass_list
    rest = [plugin for plugin in by_type[SearchPathPlugin] if plugin is not ActorConfigSearchPath]
    assert len(rest) < len(by_type[SearchPathPlugin])
    monkeypatch.setitem(by_type, SearchPathPlugin, rest)


def published(prefix):
    return [f"{prefix}{RATIO_CLIP}.{key}={value}" for key, value in PUBLISHED.items()]


@each_entry_config
@pytest.mark.parametrize("prefix", ["", "++"])
def test_published_keys_are_accepted(entry, prefix):
    config = compose_entry(entry, published(prefix))
    section = OmegaConf.select(config, RATIO_CLIP)
    assert {key: section[key] for key in PUBLISHED} == PUBLISHED
    policy_loss = omega_conf_to_dataclass(OmegaConf.select(config, POLICY_LOSS))
    assert isinstance(policy_loss, PolicyLossConfig)
    assert policy_loss.loss_mode == "maspo"
    assert policy_loss.ratio_clip.loss_config("maspo") == MaspoConfig(
        sigma_base=1.5, alpha=0.5, beta_pos=0.01, beta_neg=0.02, sigma_high=9.0, adv_low=0.2, adv_high=5.0
    )


@pytest.mark.parametrize("ratio_mode", FUSED)
def test_keys_of_every_mode_are_accepted(ratio_mode):
    hyper = HYPER[ratio_mode] | BESIDE.get(ratio_mode, {})
    keys_of_mode = {f"{ratio_mode}_{name}": "null" if value is None else value for name, value in hyper.items()}
    keys_of_mode |= {"ratio_mode": ratio_mode, "dual_clip": "true"}
    config = compose_entry("fsdp", [f"{RATIO_CLIP}.{key}={value}" for key, value in keys_of_mode.items()])
    policy_loss = omega_conf_to_dataclass(OmegaConf.select(config, POLICY_LOSS))
    assert ratio_mode_of(policy_loss.loss_mode) == ratio_mode
    assert policy_loss.ratio_clip.dual_clip is True
    assert policy_loss.ratio_clip.loss_agg_mode(ratio_mode, "token-mean") == hyper.pop("loss_agg_mode", "token-mean")
    assert policy_loss.ratio_clip.loss_config(ratio_mode) == RATIO_MODES[ratio_mode](**hyper)


@each_entry_config
def test_config_differs_from_stock_in_our_lines_only(entry, request):
    ours = compose_entry(entry)
    request.getfixturevalue("without_plugin")
    stock = compose_entry(entry)
    policy_loss = OmegaConf.select(ours, POLICY_LOSS)
    OmegaConf.set_struct(policy_loss, False)
    assert policy_loss.pop("ratio_clip") == keys()
    assert policy_loss._target_ == "maspo_ext.integrations.verl.PolicyLossConfig"
    policy_loss._target_ = "verl.workers.config.PolicyLossConfig"
    assert ours == stock
    # The order, too: it is what a user reads in the log.
    assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(stock)


def test_defaults_are_ppo_and_the_published_values():
    section = OmegaConf.select(compose_entry("fsdp"), RATIO_CLIP)
    assert section.ratio_mode == "ppo"
    published = dict(sigma_base=1, alpha=0.3, sigma_high=10, adv_low=0.1, adv_high=10, beta_pos=0.03, beta_neg=0.03)
    assert {name: section[f"maspo_{name}"] for name in published} == published
    others = {f"{ratio_mode}_{name}": value for ratio_mode, hyper in DEFAULTS.items() for name, value in hyper.items()}
    ours = {"ratio_mode": "ppo", "maspo_gate_gradient": False, "dual_clip": False, "entropy_adv": False}
    assert section == others | ours | {f"maspo_{name}": value for name, value in published.items()}


@pytest.mark.parametrize("ratio_mode", FUSED)
def test_ratio_mode_alone_is_the_published_method(ratio_mode):
    config = compose_entry("fsdp", [f"{RATIO_CLIP}.ratio_mode={ratio_mode}"])
    ratio_clip = omega_conf_to_dataclass(OmegaConf.select(config, POLICY_LOSS)).ratio_clip
    assert loss_config(config.actor_rollout_ref.actor, ratio_clip, ratio_mode) == RATIO_MODES[ratio_mode]()


def test_loss_mode_alone():
    config = compose_entry("fsdp", [f"{POLICY_LOSS}.loss_mode=maspo"])
    policy_loss = omega_conf_to_dataclass(OmegaConf.select(config, POLICY_LOSS))
    assert policy_loss.loss_mode == "maspo"


def test_plugin_free_form(without_plugin):
    with pytest.raises(ConfigCompositionException, match="ratio_clip"):
        compose_entry("fsdp", [f"{RATIO_CLIP}.ratio_mode=maspo"])
    target = f"{POLICY_LOSS}._target_=maspo_ext.integrations.verl.PolicyLossConfig"
    config = compose_entry("fsdp", [target, f"+{RATIO_CLIP}.ratio_mode=maspo", f"+{RATIO_CLIP}.maspo_alpha=0.5"])
    policy_loss = omega_conf_to_dataclass(OmegaConf.select(config, POLICY_LOSS))
    assert policy_loss.loss_mode == "maspo"
    assert policy_loss.ratio_clip.loss_config("maspo") == MaspoConfig(alpha=0.5)


def test_recipe_config_wins_over_ours(tmp_path):
    (tmp_path / "actor").mkdir()
    (tmp_path / "my_recipe.yaml").write_text(
        "hydra:\n  searchpath: [pkg://verl.trainer.config]\ndefaults: [ppo_trainer, _self_]\n"
    )
    with initialize_config_dir(str(tmp_path), version_base=None):
        assert OmegaConf.select(compose("my_recipe"), f"{RATIO_CLIP}.ratio_mode") == "ppo"
    (tmp_path / "actor" / "actor.yaml").write_text("strategy: ???\nrecipes_own: 1\n")
    with initialize_config_dir(str(tmp_path), version_base=None):
        actor = compose("my_recipe").actor_rollout_ref.actor
    assert actor.recipes_own == 1
    assert "policy_loss" not in actor


def test_second_registration_changes_nothing():
    from maspo_ext.integrations.verl import search_path

    before = compose_entry("fsdp")
    search_path.install()
    assert Plugins.instance().discover(SearchPathPlugin).count(ActorConfigSearchPath) == 1
    assert compose_entry("fsdp") == before


def test_pkg_path_of_verl_config_is_recognized():
    with initialize_config_module("verl.trainer.config", version_base=None):
        assert OmegaConf.select(compose("ppo_trainer"), f"{RATIO_CLIP}.ratio_mode") == "ppo"


@pytest.mark.slow
def test_the_command_line_of_main_ppo():
    fused_kernels = ["use_fused_kernels=True", "fused_kernel_options.impl_backend=maspo"]
    overrides = [*published(""), *(f"actor_rollout_ref.model.{key}" for key in fused_kernels)]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides, "--cfg", "job", "-p", "actor_rollout_ref"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    printed = OmegaConf.create(result.stdout[result.stdout.index("\nactor:") :])
    assert {key: printed.actor.policy_loss.ratio_clip[key] for key in PUBLISHED} == PUBLISHED
    assert printed.model.use_fused_kernels is True
    assert printed.model.fused_kernel_options == {"impl_backend": "maspo"}
