"""`python -m verl.trainer.main_ppo` on a CPU, started by the script behind `make train`, for a step or two."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from maspo_ext import stat_names

RUN = Path(__file__).resolve().parents[2] / "examples/maspo_trainer/run_tiny_cpu.sh"

TWO_SHORT_STEPS = [
    "trainer.total_training_steps=2",
    "trainer.save_freq=2",
    "trainer.test_freq=-1",
    "data.val_max_samples=16",
]
FUSED_KERNELS = [
    "actor_rollout_ref.model.use_fused_kernels=True",
    "actor_rollout_ref.model.fused_kernel_options.impl_backend=maspo",
]


def run(out, *overrides, **environment):
    """The script's exit status, what it printed and what verl did into its file, and verl's metrics."""
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(out), "RATIO_MODE": "maspo"} | environment
    result = subprocess.run(["bash", RUN, *overrides], env=environment, capture_output=True, text=True, timeout=600)
    metrics = out / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    assert "pid=" not in result.stdout  # Ray's and verl's output is in the file
    return result.returncode, result.stdout + result.stderr + (out / "console.log").read_text(), records


@pytest.mark.slow
def test_two_steps_with_maspo_and_fused_kernels(tmp_path):
    status, log, records = run(tmp_path, *TWO_SHORT_STEPS, *FUSED_KERNELS)
    # Two steps cannot reach the goal: the run must say so, and fail for that reason only.
    assert status == 1, log[-4000:]
    assert "goal missed: val-core/maspo/arithmetic" in log, log[-4000:]

    assert "linear_logprob takes the place of the Torch backend in Qwen2ForCausalLM" in log
    assert re.search(r"^step   0: held-out 0\.\d{3}$", log, re.MULTILINE)
    for step in (1, 2):
        assert re.search(rf"^step   {step}: .*reward 0\.\d{{3}}, loss -?\d\.\d{{4}}, \d+\.\d s$", log, re.MULTILINE)
    assert (tmp_path / "hydra").is_dir()  # and not outputs/<date>/<time>

    assert [record["step"] for record in records] == [0, 1, 2]
    logged = {name for name in stat_names("maspo") if name is not None}
    for record in records[1:]:
        data = record["data"]
        assert logged <= data.keys()
        assert data["actor/nonfinite_count"] == 0
        assert math.isfinite(data["actor/loss"]) and math.isfinite(data["actor/grad_norm"])
        # The rollout's log-probs, from logits, are those that the actor that trains on them has from the op.
        assert data["training/rollout_probs_diff_max"] < 1e-4
    # Later mini-batches meet a policy that has moved: the gate has something to do. In the first step, since the learning
    # rate of the second is nearly 0; with the full batch, since of a few prompts all may have answers of one kind.
    first = records[1]["data"]
    assert first["actor/ratio_max"] > 1.0001
    assert first["actor/ratio_min"] < 0.9999
    assert 0 < first["actor/maspo_gate_mean_pos"] < 1
    assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "checkpoints/global_step_2/actor").is_dir()


@pytest.mark.slow
def test_other_data_in_an_odd_batch(tmp_path):
    """Prompts in GSM8K's schema, no fused kernels; 5 prompts x 3 answers are a multiple of no batch size."""
    for split in ("train", "test"):
        rows = [
            {
                "data_source": "openai/gsm8k",
                "prompt": [{"role": "user", "content": "Ann has some pens. " * (10 + i) + 'Answer after "####".'}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(i)},
                "extra_info": {"split": split, "index": i, "answer": f"#### {i}", "question": "How many?"},
            }
            for i in range(5)
        ]
        pd.DataFrame(rows).to_parquet(tmp_path / f"{split}.parquet")
    status, log, records = run(
        tmp_path,
        f"data.train_files={tmp_path}/train.parquet",
        f"data.val_files={tmp_path}/test.parquet",
        "data.train_batch_size=5",
        "data.max_prompt_length=512",
        "data.max_response_length=16",
        "actor_rollout_ref.rollout.n=3",
        "trainer.total_training_steps=1",
        "trainer.save_freq=-1",
        WARM_START_STEPS="0",
    )
    assert status == 0, log[-4000:]
    assert [record["step"] for record in records] == [0, 1]
    assert "val-core/openai/gsm8k/acc/mean@2" in records[1]["data"]
    # Cut into several micro-batches and put together again: the log-probs are still those of the rollout. With random
    # weights every probability is near 1 / 262, so that one of another token would differ by little.
    assert records[1]["data"]["perf/total_num_tokens"] > 4096
    assert records[1]["data"]["training/rollout_probs_diff_max"] < 1e-6
    assert records[1]["data"]["actor/nonfinite_count"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "environment", "message"),
    [
        ([], {"RATIO_MODE": "mapso"}, "Did you mean maspo?"),
        (["actor_rollout_ref.actor.optim.lrr=1"], {}, "Key 'lrr' is not in struct"),
        (["actor_rollout_ref.rollout.name=vllm"], {}, "set actor_rollout_ref.rollout.name=hf_cpu"),
    ],
)
def test_wrong_settings_end_the_run_before_anything_is_made(tmp_path, overrides, environment, message):
    command = ["bash", RUN, *overrides]
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path), "RATIO_MODE": "maspo"} | environment
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "settings: " in result.stderr and message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
