"""The CPU platform is opt-in, registers with verl's registries, and refuses what cannot run."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from maspo_ext.integrations.verl import import_hook
from maspo_ext.integrations.verl.cpu import adaptations, requirements
from maspo_ext.integrations.verl.cpu.platform import PlatformCPU

PLUGIN = "maspo_ext.integrations.verl.cpu.plugin"


def run_python(code, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


# ---- opt-in


def test_plugin_registers_with_verl_only_when_asked():
    code = (
        f"import verl, {PLUGIN}, os\n"
        "from verl.plugin.platform import PlatformRegistry, get_platform\n"
        "from verl.workers.rollout.replica import RolloutReplicaRegistry\n"
        "from verl.workers.rollout.base import _ROLLOUT_REGISTRY\n"
        "print('cpu' in PlatformRegistry.registered_names(), 'hf_cpu' in RolloutReplicaRegistry._registry,"
        " ('hf_cpu', 'async') in _ROLLOUT_REGISTRY, 'VERL_ENGINE_DEVICE' in os.environ, get_platform().device_name)"
    )
    asked = run_python(code, VERL_PLATFORM="cpu")
    assert asked.stdout.split() == ["True"] * 4 + ["cpu"], asked.stderr
    other = run_python(code)
    assert other.stdout.split()[:4] == ["False"] * 4, other.stderr


def test_rollout_classes_resolve():
    code = (
        f"import verl, {PLUGIN}\n"
        "from verl.workers.rollout.replica import get_rollout_replica_class\n"
        "from verl.workers.rollout.base import get_rollout_class\n"
        "print(get_rollout_replica_class('hf_cpu').__name__, get_rollout_class('hf_cpu').__name__)"
    )
    result = run_python(code, VERL_PLATFORM="cpu")
    assert result.stdout.split() == ["CPUReplica", "CPUServerAdapter"], result.stderr


def test_plugin_is_light():
    code = f"import verl, {PLUGIN}, sys; print([m for m in sys.modules if m.startswith('verl.workers')])"
    result = run_python(code, VERL_PLATFORM="cpu")
    assert result.stdout.strip() == "[]", result.stderr


def test_platform_never_takes_part_in_detection():
    assert not PlatformCPU().is_platform_available(use_smi_check=True)
    assert PlatformCPU().is_available()


def test_device_module_answers_what_torch_cpu_lacks():
    device = PlatformCPU().device_module
    assert device.max_memory_allocated() == device.max_memory_reserved() == 0
    assert device.get_device_name() == "CPU"
    assert 0 < device.mem_get_info()[0] <= device.mem_get_info()[1]
    assert device.current_stream() == torch.cpu.current_stream()
    with pytest.raises(AttributeError):
        _ = device.no_such_function
    assert torch.zeros(1).to(PlatformCPU().current_device()).device.type == "cpu"


# ---- import hook


@pytest.fixture
def importable(tmp_path, monkeypatch):
    (tmp_path / "hooked_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "hooked_module"
    sys.modules.pop("hooked_module", None)


def test_callback_runs_once_after_the_import(importable):
    seen = []
    import_hook.when_imported(importable, lambda module: seen.append(module.value))
    assert seen == []
    module = __import__(importable)
    assert seen == [1]
    assert module.__spec__.loader is module.__loader__
    import_hook.when_imported(importable, lambda module: seen.append("at once"))
    assert seen == [1, "at once"]


def test_two_callbacks_on_one_module_both_run(importable):
    seen = []
    import_hook.when_imported(importable, lambda module: seen.append("first"))
    import_hook.when_imported(importable, lambda module: seen.append("second"))
    __import__(importable)
    assert sorted(seen) == ["first", "second"]


def test_the_same_request_made_twice_calls_once(importable):
    seen = []

    def callback(module):
        seen.append(module.value)

    for _ in range(2):
        import_hook.when_imported(importable, callback)
    __import__(importable)
    import_hook.when_imported(importable, callback)
    assert seen == [1]


def test_a_failing_callback_fails_the_import(importable):
    def fail(module):
        raise RuntimeError("cannot adapt")

    import_hook.when_imported(importable, fail)
    for _ in range(2):  # and the next one
        with pytest.raises(RuntimeError, match="cannot adapt"):
            __import__(importable)


def test_a_failing_callback_is_called_again_where_the_module_is_imported_already(importable):
    def fail(module):
        raise RuntimeError("cannot adapt")

    __import__(importable)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot adapt"):
            import_hook.when_imported(importable, fail)


def test_who_only_looks_for_the_module_takes_no_callback_away(importable):
    seen = []
    finders = len(sys.meta_path)
    import_hook.when_imported(importable, lambda module: seen.append("first"))
    import_hook.when_imported(importable, lambda module: seen.append("second"))
    assert importlib.util.find_spec(importable) is not None and seen == []
    module = __import__(importable)
    assert sorted(seen) == ["first", "second"] and len(sys.meta_path) == finders
    assert type(module.__loader__).__name__ == "SourceFileLoader" and module.__spec__.loader is module.__loader__


def test_a_module_that_fails_first_has_its_callback_at_the_second_import(importable, monkeypatch):
    seen = []
    path = Path(importlib.util.find_spec(importable).origin)
    path.write_text("import os\nvalue = os.environ['SET_FOR_THE_MODULE']\n")
    import_hook.when_imported(importable, lambda module: seen.append(module.value))
    with pytest.raises(KeyError):
        __import__(importable)
    monkeypatch.setenv("SET_FOR_THE_MODULE", "found")
    __import__(importable)
    assert seen == ["found"]


# ---- adaptations


def test_process_group_is_opened_with_gloo():
    calls = []
    module = types.SimpleNamespace(
        initialize_global_process_group_ray=lambda timeout_second=None, backend=None: calls.append(backend)
    )
    adaptations.use_plain_gloo(module)
    module.initialize_global_process_group_ray(timeout_second=None)
    assert calls == ["gloo"]


def test_offload_policy_does_not_pin():
    from torch.distributed.fsdp import CPUOffloadPolicy

    module = types.SimpleNamespace(CPUOffloadPolicy=CPUOffloadPolicy)
    adaptations.do_not_pin_memory(module)
    assert module.CPUOffloadPolicy(pin_memory=True).pin_memory is False


# ---- refusals


def cpu_config(**overrides):
    config = OmegaConf.create(
        {
            "algorithm": {"adv_estimator": "grpo"},
            "actor_rollout_ref": {
                "actor": {"strategy": "fsdp2"},
                "model": {"override_config": {"attn_implementation": "sdpa"}},
                "rollout": {
                    "name": "hf_cpu",
                    "tensor_model_parallel_size": 1,
                    "data_parallel_size": 1,
                    "pipeline_model_parallel_size": 1,
                },
            },
            "trainer": {"device": "cpu", "n_gpus_per_node": 2, "v1": {"trainer_mode": "sync"}},
            "ray_kwargs": {"ray_init": {"num_gpus": 2}},
        }
    )
    for key, value in overrides.items():
        OmegaConf.update(config, key, value)
    return config


def test_a_good_config_is_accepted():
    requirements.check_config(cpu_config(), use_critic=False)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("actor_rollout_ref.actor.strategy", "fsdp", "actor.strategy=fsdp2"),
        ("trainer.v1.trainer_mode", "separate_async", "trainer_mode=sync"),
        ("actor_rollout_ref.rollout.name", "vllm", "rollout.name=hf_cpu"),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", 2, "tensor_model_parallel_size"),
        ("actor_rollout_ref.model.override_config", {}, "attn_implementation=sdpa"),
        ("trainer.device", "cuda", "trainer.device=cpu"),
        ("ray_kwargs.ray_init.num_gpus", None, "ray_init.num_gpus=2"),
    ],
)
def test_what_cannot_run_is_refused_with_a_remedy(key, value, remedy):
    config = cpu_config()
    OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(ValueError, match="VERL_PLATFORM=cpu") as error:
        requirements.check_config(config, use_critic=False)
    lines = str(error.value).splitlines()[1:]
    assert remedy in " ".join(lines)
    assert sum("got" in line for line in lines) == 1  # only what is wrong


def test_a_critic_is_refused():
    with pytest.raises(ValueError, match="adv_estimator=grpo"):
        requirements.check_config(cpu_config(**{"algorithm.adv_estimator": "gae"}), use_critic=True)


def test_verls_own_validation_still_runs():
    calls = []
    module = types.SimpleNamespace(
        validate_config=lambda config, use_reference_policy, use_critic: calls.append(use_reference_policy)
    )
    requirements.check_before_validate_config(module)
    module.validate_config(config=cpu_config(), use_reference_policy=True, use_critic=False)
    assert calls == [True]
    with pytest.raises(ValueError, match="VERL_PLATFORM=cpu"):
        bad = cpu_config(**{"trainer.device": "cuda"})
        module.validate_config(config=bad, use_reference_policy=True, use_critic=False)
    assert calls == [True]
