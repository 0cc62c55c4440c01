"""maspo_ext.integrations.trl in examples/trl: TRL's trainer with our losses, for two steps on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maspo_ext import stat_names

TESTS = Path(__file__).resolve().parents[1]
for folder in ("benchmarks", "examples/models"):
    if str(TESTS.parent / folder) not in sys.path:
        sys.path.append(str(TESTS.parent / folder))

import extras  # noqa: E402
import make_tiny_qwen2  # noqa: E402
from byte_tokenizer import build_tokenizer  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not extras.TRL.is_found(), reason=f"TRL is not installed. {extras.TRL.remedy()}"),
]
RTOL = 1e-5
# Two ranks on a CPU, for accelerate.
FSDP = {
    "distributed_type": "FSDP",
    "num_machines": 1,
    "num_processes": 2,
    "use_cpu": True,
    "mixed_precision": "no",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "Qwen2DecoderLayer",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": False,
    },
}


class Run:
    """What a run left: its steps as TRL logged them, and the trained parameters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps = [entry for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry]

    def parameters(self) -> dict[str, torch.Tensor]:
        from transformers import AutoModelForCausalLM

        return dict(AutoModelForCausalLM.from_pretrained(self.folder).named_parameters())


def run_beside_trl(*command) -> None:
    paths = [os.environ.get("PYTHONPATH"), str(extras.ROOT / extras.TRL.folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trl")
    run_beside_trl(TESTS / "trl" / "runs.py", folder)
    return folder


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    config = folder / "accelerate.json"
    config.write_text(json.dumps(FSDP))
    launch = ("-m", "accelerate.commands.launch", "--config_file", config)
    run_beside_trl(*launch, TESTS / "trl" / "fsdp_runs.py", folder)
    return folder


@pytest.fixture(params=["policy", "linear"])
def run(request, out) -> Run:
    return Run(out / request.param)


def assert_same(one: dict, other: dict, names) -> None:
    for name in names:
        assert one[name] == pytest.approx(other[name], rel=RTOL, abs=RTOL), name


def before() -> dict[str, torch.Tensor]:
    """The parameters that the training starts with."""
    torch.manual_seed(0)
    return dict(make_tiny_qwen2.build_model(build_tokenizer()).named_parameters())


def test_every_parameter_changed(run):
    start, after = before(), run.parameters()
    assert start.keys() == after.keys()
    for name, value in after.items():
        assert value.isfinite().all() and not torch.equal(value, start[name]), name


def test_our_statistics_are_logged(run):
    assert len(run.steps) == 2
    for step in run.steps:
        assert {name for name in stat_names("maspo") if name is not None} <= step.keys()
        assert step["actor/nonfinite_count"] == 0
        assert 0 < step["entropy"] < 5.6  # log 262 is 5.57


def test_the_ratio_is_1_on_the_first_update_and_moves_on_the_second(run):
    first, second = run.steps
    for name in ("actor/ratio_min", "actor/ratio_mean", "actor/ratio_max"):
        assert first[name] == pytest.approx(1, abs=RTOL)
    assert first["actor/maspo_gate_mean_pos"] == pytest.approx(1, abs=RTOL)
    assert 0.1 < second["actor/ratio_min"] < 0.99 and 1.01 < second["actor/ratio_max"] < 10
    assert second["actor/maspo_gated_frac_pos"] > 0 and second["actor/maspo_gate_mean_pos"] < 1


def test_used_for_one_update_only_the_ratio_is_exactly_1(out):
    for step in Run(out / "on-policy").steps:
        assert step["actor/ratio_min"] == step["actor/ratio_max"] == 1


def test_both_trainers_do_the_same(out):
    names = ["loss", "grad_norm", "reward", "entropy", *(name for name in stat_names("maspo") if name is not None)]
    for one, other in zip(Run(out / "policy").steps, Run(out / "linear").steps, strict=True):
        assert_same(one, other, [name for name in names if name in one])
        assert one["loss"] != 0 and one["grad_norm"] > 0


def same_runs(folder: Path, name: str, loss: str, *names: str) -> tuple[Run, Run]:
    """The run with TRL's own loss and the one with ours, whose steps have the same numbers of these names."""
    theirs, ours = Run(folder / f"{name}-trl"), Run(folder / f"{name}-{loss}")
    for one, other in zip(theirs.steps, ours.steps, strict=True):
        assert_same(one, other, names)
    return theirs, ours


@pytest.mark.parametrize("loss", ["policy", "linear"])
def test_grpo_trains_as_trls_own_loss_does(loss, out):
    """A batch for two updates of two micro-batches each, a temperature and a KL term; the second update is clipped."""
    theirs, ours = (run.steps for run in same_runs(out, "shared", loss, "loss", "grad_norm", "entropy"))
    assert theirs[1]["clip_ratio/region_mean"] == pytest.approx(ours[1]["actor/pg_clipfrac"], abs=0.05) != 0
    assert theirs[1]["kl"] == pytest.approx(ours[1]["actor/ref_kl"], rel=0.05) != 0


@pytest.mark.parametrize("loss", ["policy", "linear"])
def test_adapters_and_a_head_that_is_saved_train_as_with_trls_own_loss(loss, out):
    """LoRA by peft: the reference is the model without its adapters, and the head a wrapped module."""
    theirs, ours = (run.steps for run in same_runs(out, "adapters", loss, "loss", "grad_norm", "entropy"))
    assert theirs[1]["kl"] == pytest.approx(ours[1]["actor/ref_kl"], rel=0.05) != 0
    assert ours[1]["actor/ratio_max"] > 1.05


@pytest.mark.parametrize("loss", ["policy", "linear"])
def test_fsdp2_trains_as_with_trls_own_loss(loss, fsdp):
    theirs, ours = same_runs(fsdp, "fsdp", loss, "loss", "grad_norm")  # TRL's entropy is of all ranks, ours of the first
    start, parameters = before(), ours.parameters()
    for name, expected in theirs.parameters().items():
        # Of their way, since Adam makes a large step of a gradient that is next to nothing, and so of what is rounded there.
        way = (expected - start[name]).norm()
        assert way > 0 and (parameters[name] - expected).norm() < 1e-3 * way, name


@pytest.mark.parametrize("setting", ["no delta", "delta", "clip", "KL"])
@pytest.mark.parametrize("loss", ["policy", "linear"])
def test_grpo_has_trls_clip_delta_and_kl(loss, setting, out):
    """Where the ratio is about 7 and the advantage negative, a dual clip shows: TRL has one with delta only.

    Where the reference is far off, the bound of verl's k3 would show: TRL's has none.
    """
    results = json.loads((out / "far.json").read_text())
    assert len({tuple(result) for result in results["trl"].values()}) == 4
    assert results[loss][setting] == pytest.approx(results["trl"][setting], rel=RTOL)


def test_the_linear_trainer_keeps_the_hidden_states_of_the_head_alone(out):
    """With loss and gradients of the same bits as from all layers' hidden states."""
    forward = json.loads((out / "forward.json").read_text())
    assert forward["calls"] == [
        {"hidden_states": False, "logits": [4, 1, 262]},  # with gradient, and without
        {"hidden_states": False, "logits": [4, 1, 262]},
    ]
    assert forward["same"]
    assert forward["hooks"] == forward["hooks after an error"] == 0


def test_gradient_checkpointing_changes_nothing(out):
    for one, other in zip(Run(out / "linear").steps, Run(out / "checkpointed").steps, strict=True):
        assert_same(one, other, ["loss", "grad_norm", "entropy", "actor/ratio_mean"])


def test_a_bfloat16_model_is_trained_under_autocast(out):
    """As PolicyLossTrainer does, but for what bfloat16 rounds away."""
    for one, other in zip(Run(out / "bfloat16-policy").steps, Run(out / "bfloat16-linear").steps, strict=True):
        assert one["actor/nonfinite_count"] == other["actor/nonfinite_count"] == 0
        assert one["loss"] != 0 and one["grad_norm"] > 0
        for name in ("loss", "grad_norm", "entropy", "actor/ratio_mean"):
            assert one[name] == pytest.approx(other[name], rel=0.01), name


def test_what_our_loss_does_not_have_is_refused(out):
    said = json.loads((out / "refused.json").read_text())
    images = "maspo_ext: inputs: expected tokens only, got pixel_values. Train with PolicyLossTrainer"
    assert said.pop("images").startswith(images)
    assert said.pop("scaled by policy") == "nothing"
    assert said.pop("scaled").startswith("maspo_ext: model: expected logits that are what the head makes")
    assert said.pop("headless") == (
        "maspo_ext: model: expected a forward that calls its head once, with hidden states [B, T, H] for tokens [1, 1], "
        "got no call (Qwen2ForCausalLM). Train with PolicyLossTrainer, which takes TRL's log-probabilities."
    )
    assert said.pop("delta") == (
        "maspo_ext: GRPOConfig.delta: expected None, since PolicyLossTrainer has a loss of its own, got 3.0. "
        "Set delta=None, or train with GRPOTrainer."
    )
    assert len(said) == 4
    for name, message in said.items():
        assert message.startswith(f"maspo_ext: GRPOConfig.{name}: expected ")
