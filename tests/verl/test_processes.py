"""The integration in a process of its own: what is imported when, without plugins, with a broken library, with an old verl."""

import os
import re
import subprocess
import sys

import pytest
import verl

from maspo_ext.integrations.verl.versions import require_supported_verl

POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
PLUGIN = "maspo_ext.integrations.verl.plugin"
TARGET = "maspo_ext.integrations.verl.PolicyLossConfig"
NO_PLUGINS = {"VERL_USE_EXTERNAL_PLUGINS": "none"}
# As verl's workers do: the losses and the models are imported before the config is made.
WORKER = f"""
import verl
from verl.models.transformers import monkey_patch
from verl.trainer.ppo import core_algos
from verl.workers import engine_workers
from verl.workers.utils import losses
from verl.utils.config import omega_conf_to_dataclass
config = omega_conf_to_dataclass({{"_target_": "{TARGET}", "ratio_clip": {{"ratio_mode": "maspo"}}}})
print("registered:", core_algos.get_policy_loss_fn(config.loss_mode))
print("wrapped:", engine_workers.ppo_loss is losses.ppo_loss and hasattr(losses.ppo_loss, "__wrapped__"))
print("fused:", hasattr(monkey_patch.patch_forward_with_backends, "__wrapped__"))
"""


def run(*arguments, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
    env |= {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)


@pytest.fixture
def broken_library(tmp_path):
    """Environment of processes in which the compiled library cannot be loaded."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'maspo_ext._C':\n"
        "            raise ImportError('undefined symbol: made_up', name=name)\n"
        "sys.meta_path.insert(0, Broken())\n"
    )
    return {"PYTHONPATH": str(tmp_path)}


def assert_names_cause_and_place(text):
    assert "maspo_ext._C cannot be loaded" in text
    assert "undefined symbol: made_up" in text
    assert re.search(r"host \S+, pid \d+", text) and sys.executable in text
    assert "Remedy" in text
    # By us, at the start of a line; a traceback that ends in the same message is the interpreter's.
    assert len(re.findall(r"^maspo_ext: .* cannot be loaded", text, re.MULTILINE)) == 1


@pytest.mark.slow
def test_import_of_verl_stays_light():
    result = run(
        "-c",
        "import sys, verl\n"
        f"print([name in sys.modules for name in ('{PLUGIN}', 'verl.trainer.ppo.core_algos', 'verl.workers.config')])\n"
        "from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY\n"
        "print('maspo' in POLICY_LOSS_REGISTRY)",
    )
    assert result.stdout.splitlines() == ["[True, False, False]", "True"], result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, NO_PLUGINS], ids=["entry_point", "no_plugins"])
def test_config_class_brings_the_loss_where_no_plugin_is_loaded(environment):
    result = run("-c", WORKER, **environment)
    assert "registered: PolicyLossAdapter('maspo')" in result.stdout, result.stderr
    assert "wrapped: True" in result.stdout
    assert "fused: True" in result.stdout


@pytest.mark.slow
def test_external_modules_stand_in_for_the_entry_point():
    keys = ["--cfg", "job", "-p", f"{POLICY_LOSS}.ratio_clip", f"{POLICY_LOSS}.ratio_clip.ratio_mode=maspo"]
    with_module = run("-m", "verl.trainer.main_ppo", *keys, **NO_PLUGINS, VERL_USE_EXTERNAL_MODULES=PLUGIN)
    assert "ratio_mode: maspo" in with_module.stdout, with_module.stderr


@pytest.mark.slow
def test_broken_library_stops_the_driver(broken_library):
    result = run("-m", "verl.trainer.main_ppo", f"{POLICY_LOSS}.ratio_clip.ratio_mode=maspo", **broken_library)
    assert result.returncode != 0
    assert_names_cause_and_place(result.stderr)
    assert f"{POLICY_LOSS}.ratio_clip.ratio_mode" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, NO_PLUGINS], ids=["entry_point", "no_plugins"])
def test_broken_library_stops_a_worker(broken_library, environment):
    result = run("-c", WORKER, **broken_library, **environment)
    assert result.returncode != 0 and "registered" not in result.stdout
    assert_names_cause_and_place(result.stderr)
    assert "Unsupported loss mode" not in result.stderr


@pytest.mark.slow
def test_broken_library_stops_the_fallback(broken_library):
    result = run("-c", "import verl", **broken_library, **NO_PLUGINS, VERL_USE_EXTERNAL_MODULES=PLUGIN)
    assert result.returncode != 0
    assert_names_cause_and_place(result.stderr)


@pytest.mark.parametrize("version", ["0.5.0", "0.6.1"])
def test_old_verl_is_refused(version, monkeypatch):
    monkeypatch.setattr(verl, "__version__", version)
    with pytest.raises(RuntimeError, match=rf"expected version 0\.7\.0 or later, got {version}.*pip install"):
        require_supported_verl()


@pytest.mark.parametrize("version", ["0.7.0.dev0", "0.7.1", "0.9.1", "0.10.0"])
def test_supported_verl(version, monkeypatch):
    monkeypatch.setattr(verl, "__version__", version)
    require_supported_verl()


def test_failing_plugin_says_so_where_verl_does_not(monkeypatch, capsys):
    from maspo_ext.integrations.verl import plugin

    monkeypatch.setattr(verl, "__version__", "0.6.1")
    with pytest.raises(RuntimeError, match="0.6.1"):
        plugin.install()
    message = capsys.readouterr().err
    assert "the plugin for verl cannot be installed" in message and "got 0.6.1" in message
    assert re.search(r"host \S+, pid \d+", message) and sys.executable in message
