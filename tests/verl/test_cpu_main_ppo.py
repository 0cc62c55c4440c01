"""`python -m verl.trainer.main_ppo` on a CPU, started by the script behind `make train`, for two steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maspo_ext import STAT_NAMES

RUN = Path(__file__).resolve().parents[2] / "examples/maspo_trainer/run_tiny_cpu.sh"

TWO_SHORT_STEPS = [
    "trainer.total_training_steps=2",
    "trainer.save_freq=2",
    "trainer.test_freq=-1",
    "data.val_max_samples=16",
]


@pytest.mark.slow
def test_two_steps_with_maspo(tmp_path):
    environment = os.environ | {
        "PYTHON": sys.executable,
        "OUT": str(tmp_path),
        "RATIO_MODE": "maspo",
    }
    result = subprocess.run(
        ["bash", RUN, *TWO_SHORT_STEPS], env=environment, capture_output=True, text=True, timeout=600
    )
    log = result.stdout + result.stderr
    # Two steps cannot reach the goal: the run must say so, and fail for that reason only.
    assert result.returncode == 1, log[-4000:]
    assert "goal missed: val-core/maspo/arithmetic" in log, log[-4000:]

    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2]
    for record in records[1:]:
        data = record["data"]
        assert not [name for name in STAT_NAMES if name not in data]
        assert data["actor/nonfinite_count"] == 0
        # The rollout's log-probs are those of the actor that trains on them.
        assert data["training/rollout_probs_diff_max"] < 1e-4
    # Later mini-batches meet a policy that has moved: the gate has something to do. In the first step, since the learning
    # rate of the second is nearly 0; with the full batch, since of a few prompts all may have answers of one kind.
    first = records[1]["data"]
    assert first["actor/ratio_max"] > 1.0001
    assert first["actor/ratio_min"] < 0.9999
    assert 0 < first["actor/maspo_gate_mean_pos"] < 1
    assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "checkpoints/global_step_2/actor").is_dir()
